r"""The durable account of every prompt: issued, finished, trained, or dropped with a reason.

One SQLite file per run. Rows change state in memory transactions and are committed together with the optimizer step
that trained them, so the file always describes the moment between two steps. `rewind(version)` undoes what later
steps recorded: after a crash the ledger agrees with the checkpoint the run goes on from. That it does is checked:
a checkpoint keeps `digest(version)`, a sum over the rows that its run trained or dropped so far.

    issued -> finished -> trained(version)
       \________\______-> dropped(version, reason)
"""

import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from hashlib import blake2b
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

_REFUSED = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""SQLite's codes for a disk that takes nothing more; extended codes hold them in their low byte."""


class Ledger:
    """The account of one run. Use as a context manager or call `close`.

    Args:
        path: the SQLite file, created when absent; ":memory:" for tests.

    Raises:
        CheckpointError: the file is not a ledger, is damaged, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        with _explain(path):
            # No transactions of Python's own: ours last from step to step, and a kill loses the open one as a whole.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                # Others may read the counts while the run writes, and a committed step survives a loss of power.
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute(SCHEMA)
                _check(self._db)
                self._db.execute("BEGIN")
                self._recount()
            except BaseException:
                self._db.close()
                raise

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
        """Records that a prompt will not train in this epoch, and why."""
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
        self._recount()

    def read_accounted(self, version: int | None = None) -> set[tuple[int, str]]:
        """(epoch, prompt id) of all trained or dropped prompts: what a resumed stream must not issue again.

        Args:
            version: leaves out what happened after it was made, as `rewind` will; None: leaves nothing out.
        """
        query = "SELECT epoch, prompt_id FROM prompts WHERE status IN ('trained', 'dropped')"
        if version is None:
            return set(self._db.execute(query))
        return set(self._db.execute(f"{query} AND version <= ?", (version,)))

    def digest(self, version: int) -> str:
        """A fingerprint of all that was trained or dropped up to `version`, in whatever order; kept up row by row."""
        return f"{sum(part for at, part in self._digests.items() if at <= version) % _MODULUS:032x}"

    def check_digest(self, version: int, expected: str) -> None:
        """Compares with what `digest` was when `version` was saved.

        Raises:
            CheckpointError: rows were lost, added or altered: the ledger is damaged, older, or of another run.
        """
        if self.digest(version) != expected:
            raise CheckpointError(
                f"{self._path}: differs from what it held when step {version} was saved, so which prompts are left is "
                "unknown; restore the file from a copy, or start a new run from `llamarl export`"
            )

    def counts(self) -> dict[str, int]:
        """`issued` counts every prompt ever handed out; the other states count prompts now in them."""
        return _totals(self._counts)

    def _recount(self) -> None:
        counts = self._db.execute("SELECT status, COUNT(*) FROM prompts GROUP BY status").fetchall()
        self._counts: Counter[str] = Counter(dict(counts))
        self._digests: Counter[int] = Counter()
        query = "SELECT epoch, prompt_id, status, version FROM prompts WHERE status IN ('trained', 'dropped')"
        for epoch, prompt_id, status, version in self._db.execute(query):
            self._digests[version] += _row_digest(epoch, prompt_id, status, version)

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
        if version is not None:
            self._digests[version] += _row_digest(epoch, prompt_id, status, version)

    def _status(self, epoch: int, prompt_id: str) -> str | None:
        row = self._db.execute("SELECT status FROM prompts WHERE epoch = ? AND prompt_id = ?", (epoch, prompt_id))
        found = row.fetchone()
        return None if found is None else str(found[0])


def read_counts(path: str | Path) -> dict[str, int]:
    """Counts by state of a ledger that may be in use: opens it read-only. All 0 where nothing was written yet.

    Raises:
        CheckpointError: the file is not a ledger, is damaged, or cannot be read.
    """
    return read_account(path)["counts"]


def read_account(path: str | Path) -> dict[str, dict[str, int]]:
    """`counts` by state, and dropped prompts by their `reasons`, of a ledger that may be in use (see `read_counts`)."""
    path = Path(path)
    with _explain(path):
        try:
            return _read_account(path)
        except sqlite3.OperationalError as error:
            if not is_refused(error):
                raise
        # Even to be read, a ledger wants a file beside it, which a read-only or full disk refuses.
        log = Path(f"{path}-wal")
        if not log.exists() or not log.stat().st_size:
            return _read_account(path, "immutable=1")
        with tempfile.TemporaryDirectory() as folder:  # the log of a run that was killed, or goes on
            for part in (path, log):
                shutil.copy(part, folder)
            return _read_account(Path(folder) / path.name)


def _read_account(path: Path, how: str = "mode=ro") -> dict[str, dict[str, int]]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'prompts'").fetchone():
            return {"counts": _totals({}), "reasons": {}}
        states = dict(db.execute("SELECT status, COUNT(*) FROM prompts GROUP BY status").fetchall())
        why = db.execute("SELECT reason, COUNT(*) FROM prompts WHERE status = 'dropped' GROUP BY reason").fetchall()
        return {"counts": _totals(states), "reasons": {str(reason): count for reason, count in why}}


def _check(db: sqlite3.Connection) -> None:
    """Raises `sqlite3.DatabaseError` for a file that SQLite finds damaged, or rows that no ledger wrote."""
    if (found := db.execute("PRAGMA integrity_check(1)").fetchone()) != ("ok",):
        raise sqlite3.DatabaseError(f"integrity_check: {found[0]}")
    odd = db.execute(
        "SELECT epoch, prompt_id, status, version FROM prompts WHERE typeof(epoch) <> 'integer' "
        "OR typeof(prompt_id) <> 'text' OR status NOT IN ('issued', 'finished', 'trained', 'dropped') "
        "OR (status IN ('trained', 'dropped') AND typeof(version) <> 'integer')"
    ).fetchone()
    if odd:
        raise sqlite3.DatabaseError("prompt {1!r} of epoch {0!r} has the status {2!r}, version {3!r}".format(*odd))


@contextmanager
def _explain(path: str | Path) -> Iterator[None]:
    """Raises `CheckpointError` in place of what SQLite or the disk says."""
    try:
        yield
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:  # a damaged schema makes messages that are no text
        if isinstance(error, OSError) or (isinstance(error, sqlite3.Error) and is_refused(error)):
            text = f"{path}: the disk refuses it ({error}); make room, or make it writable"
        else:
            text = (
                f"{path}: not a ledger, or a damaged one ({error}); restore it from a copy, or start a new run from "
                "`llamarl export`"
            )
        raise CheckpointError(text) from None


def is_refused(error: sqlite3.Error) -> bool:
    """True if the disk refuses to be written, so that nothing is wrong with the ledger itself."""
    code = error.sqlite_errorcode if hasattr(error, "sqlite_errorcode") else 0  # Python's own errors have none
    return code & 0xFF in _REFUSED


_MODULUS = 1 << 128


def _row_digest(epoch: int, prompt_id: str, status: str, version: int) -> int:
    content = f"{epoch} {status} {version} {prompt_id}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(content, digest_size=16).digest(), "big")


def _totals(states: Mapping[str, int]) -> dict[str, int]:
    return {"issued": sum(states.values()), **{s: states.get(s, 0) for s in ("finished", "trained", "dropped")}}
