"""A store of messages: a folder with one table, which a reader sees whole or not at all.

    store.json               what is in it, how it was made, what was dropped; names the folder of the data
    data-XXXX/messages/*.parquet    one row for each message shown
    data-XXXX/dropped/*.parquet     file, line, field and reason of each row that was not kept
    data-XXXX/suspicious.parquet    user, reason, value and limit

`store.json` is replaced in one step when all its data lie on the disk: an ingest that is interrupted leaves the store
as it was. Ids are keyed hashes; the key is nowhere in it.
"""

import hashlib
import os
import re
import shutil
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError, DataError, MissingDependencyError
from llamarl.feedback.queries import text_literal
from llamarl.feedback.queries.functions import FUNCTIONS
from llamarl.report.files import read_json, write_json

STORE_FILE = "store.json"
FORMAT = 1
Connection = Any
"""A connection of DuckDB, which has no types of its own."""


@dataclass(frozen=True, slots=True)
class Store:
    """A store that is complete."""

    path: Path
    record: Mapping[str, Any]
    """The record in `store.json`."""

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """The store in a folder. Raises `DataError` where there is none, or one of another version."""
        path = Path(path)
        if not (path / STORE_FILE).exists():
            raise DataError(f"{path}: no store of messages; make one with llamarl feedback ingest LOGS --out {path}")
        record = read_json(path / STORE_FILE)
        if record.get("format") != FORMAT:
            raise DataError(f"{path}: format {record.get('format')!r}, not {FORMAT}; ingest the logs again")
        store = cls(path, record)
        if not store.data.is_dir():
            raise DataError(f"{path}: its folder {store.data.name} is gone; ingest the logs again, or copy all of it")
        return store

    @property
    def data(self) -> Path:
        """The folder of the tables."""
        return self.path / str(self.record["data"])

    @property
    def messages(self) -> str:
        """The Parquet files of the messages, as one glob."""
        return str(self.data / "messages" / "*.parquet")

    @property
    def dropped(self) -> str:
        """The Parquet files of the rows that were not kept, as one glob."""
        return str(self.data / "dropped" / "*.parquet")

    @property
    def suspicious(self) -> str:
        """The Parquet file of the users who were found out."""
        return str(self.data / "suspicious.parquet")


def publish(path: Path, data: Path, record: Mapping[str, Any]) -> Store:
    """Makes new data the store's, and removes what they replace and what killed ingests left."""
    write_json(path / STORE_FILE, {"format": FORMAT, "data": data.name, **record})
    for old in path.glob("data-*"):
        if old != data:
            shutil.rmtree(old)
    for draft in path.glob(f".{STORE_FILE}.*.tmp"):
        draft.unlink()
    return Store.open(path)


def import_duckdb() -> Any:
    """The module, or `MissingDependencyError`."""
    try:
        import duckdb
    except ImportError:
        raise MissingDependencyError.for_extra("duckdb", "feedback") from None
    return duckdb


def connect(*, threads: int, memory: str, folder: Path, time_zone: str = "UTC") -> Connection:
    """A database in memory with `FUNCTIONS`, which goes on in the folder where the memory ends."""
    duckdb = import_duckdb()
    connection = duckdb.connect(
        config={
            "threads": threads,
            "memory_limit": memory,
            "temp_directory": str(folder),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    try:
        connection.execute(f"SET TimeZone = {text_literal(time_zone)}")
    except duckdb.Error:
        raise ConfigError(f"time_zone: {time_zone!r} is unknown; use a name such as Europe/Paris") from None
    for head, body in FUNCTIONS.items():
        connection.execute(f"CREATE MACRO {head} AS {body}")
    return connection


def find_version() -> str:
    """The version of DuckDB: another one may have another hash()."""
    return str(import_duckdb().__version__)


@contextmanager
def explain_limits(out: Path, memory: str) -> Iterator[None]:
    """Says in one line what to do where the disk or the memory of the queries is at its end.

    Raises:
        ConfigError: it is.
    """
    duckdb = import_duckdb()
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise ConfigError(f"memory={memory}: too little for the queries; allow more, such as 4GB") from None
    except (duckdb.IOException, OSError) as error:
        code = re.search(r'"errno":"(\d+)"', str(error))  # DuckDB may wrap the system's word in JSON
        text = os.strerror(int(code[1])) if code else str(error).splitlines()[0]
        raise ConfigError(
            f"out={out}: cannot be written ({text}); free space, and the same command goes on, or choose another"
        ) from None


SMALL = "COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 5000"
QUICK = "COMPRESSION snappy, DICTIONARY_SIZE_LIMIT 5000, PARQUET_VERSION V2"
"""Settings of Parquet that stays, and that is read by this ingest only: other readers may lack encodings of V2."""


def copy_rows(connection: Connection, select: str, path: Path, options: str = SMALL) -> None:
    """Writes the rows of a query to a Parquet file, which appears whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    connection.execute(f"COPY ({select}) TO {text_literal(str(temporary))} (FORMAT parquet, {options})")
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())  # else a power cut may leave the name and not the rows
    os.replace(temporary, path)


def derive_key(secret: bytes) -> bytes:
    """32 bytes that the hashes of a store begin with."""
    return hashlib.sha256(secret).digest()


def hash_user(user: str, secret: bytes) -> str:
    """The name of a user in a store whose ingest had this secret: 72 bits of a keyed SHA-256, as 12 characters."""
    digest = hashlib.sha256(derive_key(secret) + f"user:{user.strip()}".encode()).digest()
    return b64encode(digest[:9]).decode()
