"""Verdicts kept on disk under the hash of all that made them. Processes may share one file."""

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError
from llamarl.core.records import Status, Verdict

BUSY_SECONDS = 30.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS verdicts "
    "(key TEXT PRIMARY KEY, score REAL NOT NULL, passed INTEGER, reason TEXT NOT NULL, created REAL NOT NULL)"
)


def content_key(*parts: Any) -> str:
    """SHA-256 of JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class VerdictCache:
    """Scored verdicts by key, in one SQLite file on a local disk. May be used from any thread."""

    def __init__(self, path: str | Path) -> None:
        """Opens or makes the file. Raises `ConfigError` where that fails or the file is something else."""
        self.path = Path(path)
        self._lock = threading.Lock()  # one connection, called from helper threads
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cache={str(path)!r}: {error}; give a file on a local disk, or delete this one"
            ) from None

    def _prepare(self) -> None:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:  # turning on the write-ahead log does not wait for other processes by itself
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=NORMAL")
                self._connection.execute(_TABLE)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def get(self, key: str) -> Verdict | None:
        """The verdict under this key, without cost; None where there is none."""
        with self._lock:
            row = self._connection.execute(
                "SELECT score, passed, reason FROM verdicts WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        score, passed, reason = row
        return Verdict.scored(score, None if passed is None else bool(passed), reason)

    def put(self, key: str, verdict: Verdict) -> None:
        """Keeps a scored verdict; others are not kept, since the next try may do better. The first one stays."""
        if verdict.status is not Status.SCORED:
            return
        row = (key, verdict.score, verdict.passed, verdict.reason, time.time())
        with self._lock:
            self._connection.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._connection.close()
