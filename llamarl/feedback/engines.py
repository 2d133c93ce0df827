"""The engine of queries over all chunks: DuckDB, in this process and larger than memory."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llamarl.feedback.queries import text_literal
from llamarl.feedback.store import Connection, copy_rows

DUCKDB_TYPES = {"string": "VARCHAR", "int32": "INTEGER", "double": "DOUBLE"}
"""Names of Arrow's types that tables of this process have."""


class QueryEngine(Protocol):
    """Named results of queries, and their rows. The queries are texts of DuckDB's SQL."""

    def define(self, name: str, select: str) -> None:
        """Gives a query a name; it is answered anew whenever another one uses it."""

    def keep(self, name: str, select: str) -> None:
        """Answers a query once, and keeps the rows under a name."""

    def append(self, name: str, select: str) -> None:
        """Adds rows to those that are kept under a name."""

    def load(self, name: str, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> None:
        """Keeps rows of this process under a name.

        Args:
            name: of the table.
            columns: name -> values.
            types: name -> the type of Arrow.
        """

    def forget(self, name: str) -> None:
        """Drops what is kept under a name."""

    def fetch(self, select: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""

    def fetch_arrays(self, select: str) -> list[np.ndarray]:
        """The columns of a query; texts are objects."""

    def write(self, select: str, path: Path) -> None:
        """Writes rows, in the order of the query, to a Parquet file, which appears whole."""

    def write_each(self, select: str, parts: Sequence[Path], folder: Path) -> None:
        """Writes the rows that a query finds in `part`, in the place of which each of some Parquet files stands.

        They become Parquet files in the folder. `late` and `drops` have no rows but those of the part, or all.
        """


class DuckEngine:
    """Answers queries by DuckDB."""

    def __init__(self, connection: Connection, threads: int = 1) -> None:
        self.connection, self._threads = connection, threads

    def define(self, name: str, select: str) -> None:
        """Makes a view."""
        self.connection.execute(f"CREATE VIEW {name} AS {select}")

    def keep(self, name: str, select: str) -> None:
        """Makes a table."""
        self.connection.execute(f"CREATE TABLE {name} AS {select}")

    def append(self, name: str, select: str) -> None:
        """Inserts rows into a table."""
        self.connection.execute(f"INSERT INTO {name} {select}")

    def load(self, name: str, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> None:
        """Makes a table of some rows."""
        # as parameters: to make arrays of Arrow would import pandas, which takes longer than to check 30,000 rows
        selected = ", ".join(
            f"unnest(${place}::{DUCKDB_TYPES[types[key]]}[]) AS {key}" for place, key in enumerate(columns, 1)
        )
        self.connection.execute(f"CREATE TABLE {name} AS SELECT {selected}", [list(each) for each in columns.values()])

    def forget(self, name: str) -> None:
        """Drops a table."""
        self.connection.execute(f"DROP TABLE {name}")

    def fetch(self, select: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        rows: list[tuple[Any, ...]] = self.connection.execute(select).fetchall()
        return rows

    def fetch_arrays(self, select: str) -> list[np.ndarray]:
        """The columns of a query; texts are objects."""
        return [np.asarray(column) for column in self.connection.execute(select).fetchnumpy().values()]

    def write(self, select: str, path: Path) -> None:
        """Writes rows to a Parquet file, which appears whole."""
        copy_rows(self.connection, select, path)

    def write_each(self, select: str, parts: Sequence[Path], folder: Path) -> None:
        """Writes a file for each part; many at a time, as a part has too few rows to be copied by many threads."""

        def write(part: Path) -> None:
            rows = read_parquet(part)
            with self.connection.cursor() as cursor:
                ((first, last),) = cursor.execute(f"SELECT coalesce(min(row), 0), max(row) FROM {rows}").fetchall()
                # else all that is dropped of all parts would be looked at for each
                tables = ", ".join(
                    f"{name} AS (SELECT * FROM main.{name} WHERE row BETWEEN {first} AND {last or 0})"
                    for name in ("drops", "late")
                )
                copy_rows(cursor, f"WITH part AS (SELECT * FROM {rows}), {tables} {select}", folder / part.name)

        with ThreadPoolExecutor(self._threads, "copy") as pool:
            list(pool.map(write, parts))


def read_parquet(path: Path) -> str:
    """The rows of Parquet files, as a table of SQL; the name may be a glob."""
    return f"read_parquet({text_literal(str(path))})"
