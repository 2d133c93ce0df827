"""Small logs, and what a store made of them holds."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from llamarl.feedback import Ingest, Store, ingest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "a secret of enough characters"
ENVIRONMENT = {"FEEDBACK_KEY": SECRET}


def message(index: int = 0, **changes: Any) -> dict[str, Any]:
    """A good row; a change of None takes the field out."""
    row = {
        "user": f"somebody-{index}",
        "ts": f"2025-03-01T10:{index % 60:02d}:00Z",
        "message_id": f"m{index}",
        "conversation_id": f"c{index}",
        "prompt": f"question {index}?",
        "response": f"answer number {index}",
    }
    return {name: value for name, value in {**row, **changes}.items() if value is not None}


def write_lines(path: Path, rows: list[Any]) -> Path:
    """A row that is text or bytes is a line as it stands."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def ingest_rows(folder: Path, rows: list[Any], **settings: Any) -> Store:
    """The store of one log of JSON lines."""
    return ingest_files(folder, [write_lines(folder / "logs.jsonl", rows)], **settings)


def ingest_files(folder: Path, files: list[Path], **settings: Any) -> Store:
    """The store of some logs."""
    values = {"logs": [str(path) for path in files], "out": folder / "store", "threads": 1, "key_env": "FEEDBACK_KEY"}
    return ingest(Ingest.parse({**values, **settings}), environment=ENVIRONMENT, now=NOW)


def query(sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    rows: list[tuple[Any, ...]] = duckdb.sql(sql).fetchall()
    return rows


def stored(store: Store, columns: str = "*") -> list[tuple[Any, ...]]:
    """Columns of the store's messages, in the order of time."""
    return query(f"SELECT {columns} FROM '{store.messages}' ORDER BY ts, response")


def dropped(store: Store) -> list[tuple[Any, ...]]:
    """Line, field and reason of what was not kept."""
    return query(f"SELECT line, field, reason FROM '{store.dropped}' ORDER BY line, turn")
