r"""The durable account of every prompt: issued, finished, trained, or dropped with a reason.

One SQLite file per run. Rows change state in memory transactions and are committed together with the optimizer step
that trained them, so the file always describes the moment between two steps. `rewind(version)` undoes what later
steps recorded: after a crash the ledger agrees with the checkpoint the run goes on from.

    issued -> finished -> trained(version)
       \________\______-> dropped(version, reason)
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from llamarl.core.errors import CheckpointError

SCHEMA = """
CREATE TABLE IF NOT EXISTS prompts (
  epoch INTEGER NOT NULL,
  prompt_id TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('issued', 'finished', 'trained', 'dropped')),
  attempts INTEGER NOT NULL DEFAULT 1,
  version INTEGER,
  reason TEXT,
  PRIMARY KEY (epoch, prompt_id)
) WITHOUT ROWID
"""


class Ledger:
    """The account of one run. Use as a context manager or call `close`.

    Args:
        path: the SQLite file, created when absent; ":memory:" for tests.

    Raises:
        CheckpointError: the file is not a ledger.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise CheckpointError(f"{path}: not a ledger ({error}); give the run directory of a llamarl run") from None
        self._db.execute("BEGIN")
        self._counts = self._count()

    def issue(self, epoch: int, prompt_id: str) -> None:
        """A prompt was handed to a generator; again, if its first generator was lost."""
        old = self._status(epoch, prompt_id)
        self._db.execute(
            "INSERT INTO prompts (epoch, prompt_id, status) VALUES (?, ?, 'issued') "
            "ON CONFLICT DO UPDATE SET attempts = attempts + 1, status = 'issued'",
            (epoch, prompt_id),
        )
        if old is not None:
            self._counts[old] -= 1
        self._counts["issued"] += 1

    def finish(self, epoch: int, prompt_id: str) -> None:
        """All its completions came back judged."""
        self._move(epoch, prompt_id, "finished")

    def drop(self, epoch: int, prompt_id: str, version: int, reason: str) -> None:
        """It will not train in this epoch."""
        self._move(epoch, prompt_id, "dropped", version, reason)

    def commit_step(self, version: int, trained: Iterable[tuple[int, str]]) -> None:
        """The step that made `version` trained these (epoch, id): makes them and all moves since the last step durable.

        Raises:
            ValueError: a prompt was trained already in its epoch, or never issued.
        """
        for epoch, prompt_id in trained:
            self._move(epoch, prompt_id, "trained", version)
        self.commit()

    def commit(self) -> None:
        """Makes everything recorded so far durable."""
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def rewind(self, version: int) -> None:
        """Forgets what happened after `version` was made: unfinished prompts, and later trainings and drops."""
        self._db.execute("DELETE FROM prompts WHERE status IN ('issued', 'finished') OR version > ?", (version,))
        self.commit()
        self._counts = self._count()

    def accounted(self, version: int | None = None) -> set[tuple[int, str]]:
        """(epoch, prompt id) of all trained or dropped prompts: what a resumed stream must not issue again.

        Args:
            version: leaves out what happened after it was made, as `rewind` will; None: leaves nothing out.

        Raises:
            CheckpointError: no prompt trained the version: the ledger is not of this run, or older.
        """
        query = "SELECT epoch, prompt_id FROM prompts WHERE status IN ('trained', 'dropped')"
        if version is None:
            return set(self._db.execute(query))
        trained = "SELECT COUNT(*) FROM prompts WHERE status = 'trained' AND version = ?"
        if version > 0 and self._db.execute(trained, (version,)).fetchone() == (0,):
            raise CheckpointError(
                f"{self._path}: knows of no prompt that step {version} trained, so which prompts are left is unknown; "
                "restore the file from a copy, or start a new run from `llamarl export`"
            )
        return set(self._db.execute(f"{query} AND version <= ?", (version,)))

    def counts(self) -> dict[str, int]:
        """`issued` counts every prompt ever handed out; the other states count prompts now in them."""
        return _totals(self._counts)

    def _count(self) -> Counter[str]:
        return Counter(dict(self._db.execute("SELECT status, COUNT(*) FROM prompts GROUP BY status").fetchall()))

    def drop_reasons(self) -> Mapping[str, int]:
        """Dropped prompts by reason."""
        query = "SELECT reason, COUNT(*) FROM prompts WHERE status = 'dropped' GROUP BY reason"
        return dict(self._db.execute(query).fetchall())

    def close(self) -> None:
        """Commits and closes. Idempotent."""
        try:
            if self._db.in_transaction:  # a commit that a full disk refused was rolled back
                self._db.execute("COMMIT")
        except sqlite3.ProgrammingError:
            return
        finally:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _move(
        self, epoch: int, prompt_id: str, status: str, version: int | None = None, reason: str | None = None
    ) -> None:
        old = self._status(epoch, prompt_id)
        if old not in ("issued", "finished"):
            raise ValueError(f"ledger: prompt {prompt_id!r} of epoch {epoch} is not under way, so not {status}")
        self._db.execute(
            "UPDATE prompts SET status = ?, version = ?, reason = ? WHERE epoch = ? AND prompt_id = ?",
            (status, version, reason, epoch, prompt_id),
        )
        self._counts[old] -= 1
        self._counts[status] += 1

    def _status(self, epoch: int, prompt_id: str) -> str | None:
        row = self._db.execute("SELECT status FROM prompts WHERE epoch = ? AND prompt_id = ?", (epoch, prompt_id))
        found = row.fetchone()
        return None if found is None else str(found[0])


def read_counts(path: str | Path) -> dict[str, int]:
    """Counts by state of a ledger that may be in use: opens it read-only. All 0 where nothing was written yet.

    Raises:
        CheckpointError: the file is not a ledger, or cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'prompts'").fetchone():
                return _totals({})
            return _totals(dict(db.execute("SELECT status, COUNT(*) FROM prompts GROUP BY status").fetchall()))
    except sqlite3.Error as error:
        raise CheckpointError(
            f"{path}: not a readable ledger ({error}); restore it from a copy, or move it away to see the rest"
        ) from None


def _totals(states: Mapping[str, int]) -> dict[str, int]:
    return {"issued": sum(states.values()), **{s: states.get(s, 0) for s in ("finished", "trained", "dropped")}}
