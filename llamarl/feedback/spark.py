"""The same queries on Spark, for logs that outgrow one machine.

Rows are checked by the same program, file by file on Spark's workers, each with a DuckDB of its own. Whatever looks
across rows is the same text, put into Spark's SQL by sqlglot; `FUNCTIONS` are spelled for both. Logs and store lie
where every worker sees them under the same path. What is not said here comes from Spark's own configuration
(spark-defaults.conf, PYSPARK_SUBMIT_ARGS): the master, memory, packages.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llamarl.core.errors import ConfigError, MissingDependencyError
from llamarl.feedback.readers import import_pyarrow

FUNCTIONS = (
    "epoch_us(t TIMESTAMP_NTZ) RETURNS BIGINT RETURN unix_micros(CAST(t AS TIMESTAMP))",
    "opening(x STRING) RETURNS STRING RETURN left(x, 4000)",
    "nth(words ARRAY<STRING>, place INT) RETURNS STRING RETURN element_at(words, place)",
)
"""Functions of the queries that Spark has under other names."""
Session = Any


@contextmanager
def start_session(threads: int) -> Iterator[Session]:
    """A session of Spark, on this machine where its configuration names no other master.

    Raises:
        MissingDependencyError: pyspark or sqlglot is not installed.
        ConfigError: Spark does not start, for want of Java for instance.
    """
    try:
        import sqlglot  # noqa: F401 - asked for here, so that a lack shows before anything is read
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise MissingDependencyError.for_extra("pyspark", "spark") from None
    builder = SparkSession.builder.appName("llamarl feedback ingest")
    settings = {
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.sql.parquet.compression.codec": "zstd",
    }
    if not has_master(os.environ):
        # Otherwise its workers run the first `python3` on PATH, which need not have these packages.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for name, value in settings.items():
        builder = builder.config(name, value)
    if not has_master(os.environ):
        builder = builder.master(f"local[{threads}]").config("spark.sql.shuffle.partitions", str(2 * threads))
    try:
        session = builder.getOrCreate()
    except (PySparkException, OSError) as error:
        raise ConfigError(f"engine=spark: Spark does not start ({error}); it needs Java 17 or later") from None
    try:
        yield session
    finally:
        session.stop()


def has_master(environment: Mapping[str, str]) -> bool:
    """True if Spark is told where to run. Asking Spark itself would start its Java process, too early to configure."""
    if "--master" in environment.get("PYSPARK_SUBMIT_ARGS", "") or "SPARK_REMOTE" in environment:
        return True
    defaults = Path(environment.get("SPARK_CONF_DIR", "")) / "spark-defaults.conf"
    return "SPARK_CONF_DIR" in environment and defaults.exists() and "spark.master" in defaults.read_text()


def map_on_workers(session: Session, do: Callable[[int], Any], count: int) -> list[Any]:
    """The results of a function of 0 to `count` - 1, each called on some worker."""
    found: list[Any] = session.sparkContext.parallelize(range(count), count).map(do).collect()
    return found


class SparkEngine:
    """Answers queries by Spark.

    Args:
        session: of Spark.
        folder: what is kept is written there, as Parquet.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session, self._folder = session, folder
        self._kept: dict[str, list[str]] = {}
        self._count = 0
        for function in FUNCTIONS:
            session.sql(f"CREATE OR REPLACE TEMPORARY FUNCTION {function}")

    def _ask(self, select: str) -> Any:
        import sqlglot

        (text,) = sqlglot.transpile(select, read="duckdb", write="spark")
        return self._session.sql(text)

    def _new_folder(self) -> Path:
        self._count += 1
        return self._folder / f"kept-{self._count}"

    def define(self, name: str, select: str) -> None:
        """Makes a view, which sees what its tables hold when it is used."""
        import sqlglot

        (text,) = sqlglot.transpile(select, read="duckdb", write="spark")
        self._session.sql(f"CREATE OR REPLACE TEMPORARY VIEW {name} AS {text}")

    def keep(self, name: str, select: str) -> None:
        """Writes rows, and makes a view of them."""
        self._kept[name] = []
        self.append(name, select)

    def append(self, name: str, select: str) -> None:
        """Writes more rows."""
        self._add(name, self._ask(select))

    def load(self, name: str, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> None:
        """Writes rows of this process."""
        pyarrow = import_pyarrow()
        table = pyarrow.table({key: pyarrow.array(values, types[key]) for key, values in columns.items()})
        self._kept[name] = []
        self._add(name, self._session.createDataFrame(table))

    def _add(self, name: str, rows: Any) -> None:
        folder = str(self._new_folder())
        rows.write.parquet(folder)
        self._kept[name].append(folder)
        self._session.read.parquet(*self._kept[name]).createOrReplaceTempView(name)

    def forget(self, name: str) -> None:
        """Removes what was written."""
        self._session.catalog.dropTempView(name)
        for folder in self._kept.pop(name):
            shutil.rmtree(folder)

    def fetch(self, select: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return [tuple(row) for row in self._ask(select).collect()]

    def fetch_arrays(self, select: str) -> list[np.ndarray]:
        """The columns of a query; texts are objects."""
        return [column.to_numpy() for column in self._ask(select).toArrow().columns]

    def write(self, select: str, path: Path) -> None:
        """Writes rows to one Parquet file."""
        (part,) = self._write(self._ask(select).coalesce(1))
        shutil.move(part, path)

    def write_each(self, select: str, parts: Sequence[Path], folder: Path) -> None:
        """Writes as many files as Spark likes; `part` is all of `parts` at once."""
        self.define("part", "SELECT * FROM parts")
        for number, file in enumerate(self._write(self._ask(select))):
            shutil.move(file, folder / f"{number:06d}.parquet")

    def _write(self, rows: Any) -> list[Path]:
        folder = self._new_folder()
        rows.write.parquet(str(folder))
        return sorted(folder.glob("part-*.parquet"))
