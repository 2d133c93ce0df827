"""Rows of CSV and Parquet files, one at a time."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError, MissingDependencyError
from llamarl.data.rows import RowError, excerpt, plain_row

FETCH_ROWS = 1024
"""Parquet rows held in memory at a time."""


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yields (line on which the row ends, row or what is wrong with it). Values are text; empty ones count as absent.

    Read by the standard library rather than by a query engine: it knows lines, and one bad row does not end the file.

    Raises:
        DataError: the header is missing, empty in places, or repeats a column.
    """
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        columns = _header(path, reader)
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield (
                    reader.line_num,
                    RowError("invalid_csv", "", f"no CSV: {error}", "quote the field, double its quotes"),
                )
                continue
            if values:
                yield reader.line_num, _csv_row(columns, values)


def _header(path: Path, reader: Any) -> list[str]:
    columns: list[str] = next(reader, [])
    if len(set(columns)) < len(columns) or "" in columns:
        raise DataError(f"{path}, line 1: the header names a column twice or leaves one without a name: {columns}")
    return columns


def _csv_row(columns: list[str], values: list[str]) -> dict[str, Any] | RowError:
    if len(values) != len(columns):
        problem = f"{len(values)} values for {len(columns)} columns: {excerpt(values)}"
        return RowError("column_count", "", problem, "quote values that hold a comma")
    for column, value in zip(columns, values, strict=True):
        if any("\udc80" <= character <= "\udcff" for character in value):
            return RowError("invalid_utf8", column, f"not UTF-8: {excerpt(value)}", "save the file as UTF-8")
    return {column: value for column, value in zip(columns, values, strict=True) if value}


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yields (row number from 1, row or what is wrong with it).

    Raises:
        DataError: the file is no Parquet.
        MissingDependencyError: duckdb is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise MissingDependencyError("duckdb is not installed; run: pip install duckdb") from None
    with duckdb.connect() as connection:
        try:
            result = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
        except duckdb.Error as error:
            raise DataError(f"{path}: no readable Parquet file: {error}") from None
        columns = [column[0] for column in result.description]
        number = 0
        while rows := result.fetchmany(FETCH_ROWS):
            for values in rows:
                number += 1
                yield number, plain_or_error(dict(zip(columns, values, strict=True)))


def plain_or_error(row: Any) -> dict[str, Any] | RowError:
    """The row in plain values, or why it has none."""
    if not isinstance(row, dict):
        return RowError("not_an_object", "", f"a {type(row).__name__}: {excerpt(row)}", "each row is one mapping")
    try:
        return plain_row(row)
    except RowError as error:
        return error
