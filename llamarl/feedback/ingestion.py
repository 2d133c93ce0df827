"""Logs -> a store: every row checked, ids hashed, secrets taken out, and users found who don't react as people do.

Three stages. Chunks of the logs become staged Parquet parts, many at a time and each by itself; an ingest that was
interrupted goes on with the parts that are missing. Then queries over all parts decide what is dropped; they read few
columns, and spill to the disk. Last the parts are copied without what was dropped, and the store is published.
"""

import hmac
import json
import math
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from threading import get_ident
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.machine import try_lock, usable_cores
from llamarl.feedback.engines import DuckEngine, QueryEngine, read_parquet
from llamarl.feedback.queries import quote, selection
from llamarl.feedback.queries import rows as row_queries
from llamarl.feedback.queries.rows import FIELDS, KEPT, Columns
from llamarl.feedback.queries.suspects import SELECT_ACTIVITY
from llamarl.feedback.reactions import NAMES, name_reaction
from llamarl.feedback.readers import (
    BROKEN,
    LINE,
    MEGABYTE,
    TEXT,
    Chunk,
    OnProgress,
    find_format,
    follow_progress,
    import_pyarrow,
    read_chunks,
)
from llamarl.feedback.settings import Ingest
from llamarl.feedback.spark import Session, SparkEngine, map_on_workers, start_session
from llamarl.feedback.store import (
    QUICK,
    Connection,
    Store,
    connect,
    copy_rows,
    derive_key,
    explain_limits,
    find_version,
    import_duckdb,
    publish,
)
from llamarl.feedback.suspects import find_suspects

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
STAGING = ".staging"
LEAST_KEY_CHARACTERS = 16
MOST_SPELLINGS = 10_000
"""Spellings of reactions that a thread remembers from chunk to chunk."""
FIRST_BAD_ROWS = 20
"""Rows that were not kept which `store.json` shows; the store has all."""


def ingest(
    settings: Ingest,
    *,
    environment: Mapping[str, str] | None = None,
    now: datetime | None = None,
    on_progress: OnProgress | None = None,
) -> Store:
    """Reads logs into a store.

    Args:
        settings: what and how.
        environment: where `key_env` is looked up; this process's by default.
        now: no message is from more than a day after it; the clock's time by default.
        on_progress: called with the megabytes of the logs that are read, and all. Spark's workers don't call it.

    Raises:
        ConfigError: a setting is wrong, or another process writes this store.
        DataError: a log lacks a column, or no row of the logs is good. The store is then as it was.
    """
    key = _read_key(settings.key_env, os.environ if environment is None else environment)
    files = find_logs(settings.logs)
    for field in settings.columns:
        if field not in FIELDS:
            raise ConfigError(f"columns: {field!r} is no field.{suggest(field, list(FIELDS))}")
    for name in settings.reactions.values():
        if name not in NAMES:
            raise ConfigError(f"reactions: {name!r} is no reaction.{suggest(name, list(NAMES))}")
    _check_kept(settings.keep)
    import_pyarrow()
    with _hold(settings.out), explain_limits(settings.out, settings.memory):
        return _Run(settings, files, key, now or datetime.now(UTC)).run(on_progress)


def _check_kept(names: Sequence[str]) -> None:
    """Refuses names that a store's table has anyway, or would have twice: it doesn't tell capitals from others."""
    taken = {*FIELDS, *selection.STORED_COLUMNS}
    for name in names:
        if name.lower() in taken:
            raise ConfigError(f"keep: {name} is the name of a column that a store has anyway; leave it out")
    if twice := [name for name in names if [other.lower() for other in names].count(name.lower()) > 1]:
        raise ConfigError(f"keep: {', '.join(twice)} are one name to a store; leave all but one out")


def find_logs(names: Sequence[str]) -> list[Path]:
    """The files behind names and globs, each once. Raises `ConfigError` where a name leads nowhere."""
    files: dict[Path, None] = {}
    for name in names:
        found = [name] if os.path.isfile(name) else sorted(glob(name, recursive=True)) if has_magic(name) else []
        found = [path for path in found if os.path.isfile(path)]
        if not found:
            example = f"a directory; give its files, for instance '{name}/*.jsonl'" if os.path.isdir(name) else None
            problem = "no regular file" if os.path.exists(name) else "no such file"
            raise ConfigError(f"{name}: {example or f'{problem}; give log files or a glob of them'}")
        files |= dict.fromkeys(Path(path) for path in found)
    for path in files:
        find_format(path)
    return list(files)


def _read_key(variable: str | None, environment: Mapping[str, str]) -> bytes:
    if variable is None:
        return secrets.token_bytes(32)
    key = environment.get(variable, "")
    if len(key) < LEAST_KEY_CHARACTERS:
        problem = "not set" if not key else f"shorter than {LEAST_KEY_CHARACTERS} characters"
        raise ConfigError(
            f"key_env: ${variable} is {problem}; set it, for instance to the output of: openssl rand -hex 32"
        )
    return key.encode()


@contextmanager
def _hold(path: Path) -> Iterator[None]:
    """Makes the folder, and keeps other ingests out of it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / ".lock", "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ConfigError(f"out={path}: cannot be written ({error.strerror}); choose another directory") from None
    with file:
        if not try_lock(file):
            raise ConfigError(f"out={path}: another ingest writes this store; wait until it ends")
        yield


class _Run:
    """One ingest, with the store's folder to itself."""

    def __init__(self, settings: Ingest, files: Sequence[Path], key: bytes, now: datetime) -> None:
        self._settings = settings
        self._files = files
        self._key = derive_key(key)
        self._latest = now + timedelta(days=1)
        self._columns = Columns(settings.columns, settings.keep)
        self._threads = settings.threads or usable_cores()
        self._staging = settings.out / STAGING
        self._unreadable: list[tuple[int, str]] = []
        self._connections: dict[int, Connection] = {}
        self._files_of_talks: set[int] = set()
        self._digests = self._digest_files(key)

    def _digest_files(self, key: bytes) -> list[str]:
        """Digests of what the parts of each file depend on: DuckDB, the file's place, itself, settings, the key."""
        settings = self._settings.model_dump(
            mode="json", include={"columns", "keep", "reactions", "time_zone", "context_messages"}
        )
        digests = []
        for number, path in enumerate(self._files):
            state = path.stat()
            log = [number, str(path.absolute()), state.st_size, state.st_mtime_ns]
            inputs = json.dumps([find_version(), log, settings])
            digests.append(hmac.digest(key, inputs.encode(), "sha256").hex()[:16])
        return digests

    def run(self, on_progress: OnProgress | None) -> Store:
        self._prepare_staging()
        if self._settings.engine == "spark":
            with start_session(self._threads) as session:
                self._stage(session)
                store = self._finish(lambda: nullcontext(SparkEngine(session, self._staging / "spill")), on_progress)
        else:
            self._stage(None, on_progress)
            store = self._finish(self._open_duckdb, on_progress)
        shutil.rmtree(self._staging)
        return store

    @contextmanager
    def _open_duckdb(self) -> Iterator[QueryEngine]:
        with self._connect(self._threads) as connection:
            yield DuckEngine(connection, self._threads)

    # ---- chunks -> parts

    def _prepare_staging(self) -> None:
        """Keeps the parts of an interrupted ingest that are still right, and no others."""
        self._staging.mkdir(exist_ok=True)
        for path in self._staging.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name.split("-")[0] not in self._digests:
                path.unlink()

    def _part(self, number: int, chunk: int) -> Path:
        return self._staging / f"{self._digests[number]}-{chunk:06d}.parquet"

    @contextmanager
    def _open_pool(self, threads: int) -> Iterator[ThreadPoolExecutor]:
        """Threads to check chunks, each with a connection for all of its chunks."""
        try:
            with ThreadPoolExecutor(threads, "ingest") as pool:
                yield pool
        finally:
            while self._connections:
                self._connections.popitem()[1].close()

    def _stage(self, session: Session | None, on_progress: OnProgress | None = None) -> None:
        """Makes a part of every chunk, some at a time; on Spark each file is one worker's."""
        numbers = range(len(self._files))
        if session is None:
            follow = follow_progress(self._files, on_progress)
            with self._open_pool(self._threads) as pool:
                problems = [self._stage_file(number, pool, partial(follow, number)) for number in numbers]
        else:
            told = map_on_workers(session, self._stage_alone, len(numbers))
            if refused := next((text for text, is_final in told if is_final), None):
                raise DataError(refused)
            problems = [text for text, _ in told]
        self._unreadable = [(number, text) for number, text in zip(numbers, problems, strict=True) if text is not None]

    def _stage_alone(self, number: int) -> tuple[str | None, bool]:
        """Stages a file on a worker of Spark, which wraps errors: what is wrong, and whether the ingest must end."""
        try:
            with self._open_pool(1) as pool:
                return self._stage_file(number, pool), False
        except _MissingColumnError as error:
            return str(error), True

    def _stage_file(
        self, number: int, pool: ThreadPoolExecutor, follow: Callable[[float], None] = lambda share: None
    ) -> str | None:
        """Makes the parts of one file; returns why it cannot be read, if so."""
        path = self._files[number]
        running: deque[Future[None]] = deque()
        try:
            for chunk in read_chunks(path):
                if chunk.index == 0:
                    self._check_columns(path, chunk)
                part = self._part(number, chunk.index)
                if part.exists():
                    follow(chunk.share)
                    continue
                if len(running) > self._threads:  # else a quick reader fills the memory with chunks
                    running.popleft().result()
                running.append(pool.submit(self._stage_chunk, number, chunk, part))
                follow(chunk.share)
            while running:
                running.popleft().result()
        except _MissingColumnError:
            raise
        except DataError as error:
            wait(running)
            for part in self._staging.glob(f"{self._digests[number]}-*.parquet"):
                part.unlink()  # half a file is no log: what came before the damage goes, too
            return str(error)
        finally:
            for job in running:
                job.cancel()
        return None

    def _stage_chunk(self, number: int, chunk: Chunk, part: Path) -> None:
        """Checks a chunk's rows; its part appears whole, so that its presence says that the chunk is done."""
        columns, connection = self._columns, self._connect_thread()
        connection.register("chunk", self._pick_columns(chunk))
        kinds = {} if chunk.is_json else _kinds(chunk.table.schema)
        messages = columns.column("messages")
        if chunk.is_json:
            is_talk = number in self._files_of_talks
        else:
            is_talk = chunk.may_have(messages) or chunk.may_have(messages.split(".")[0])
        clocks = frozenset() if is_talk else row_queries.find_clocks(columns, kinds)

        def select_turns(*, is_valid: bool, is_talk: bool) -> str:
            if chunk.is_json:
                raw = row_queries.select_raw_json(columns, is_valid=is_valid)
            else:
                raw = row_queries.select_raw_table(columns, kinds, clocks)
            return row_queries.select_turns(raw, columns, self._settings.context_messages, is_talk=is_talk)

        def copy(turns: str) -> None:
            copy_rows(connection, row_queries.select_and_check(turns, columns, number, clocks), part, QUICK)

        try:
            copy(select_turns(is_valid=True, is_talk=is_talk))
        except import_duckdb().InvalidInputException:
            # a line that is no JSON, a reaction unlike those before, or the first conversation of the file
            turns = select_turns(is_valid=False, is_talk=is_talk or chunk.is_json)
            connection.execute(f"CREATE TABLE all_turns AS {turns}")
            if connection.execute("SELECT count(*) FROM all_turns WHERE turn > 0").fetchone() != (0,):
                self._files_of_talks.add(number)
            self._name_reactions(connection)
            copy("FROM all_turns")
            connection.execute("DROP TABLE all_turns")
        connection.unregister("chunk")  # its memory is free for the next one

    def _pick_columns(self, chunk: Chunk) -> Any:
        """The columns that are read: DuckDB may lack the types of others, or take their capitals for small letters."""
        if chunk.is_json:
            return chunk.table
        wanted = {self._columns.column(field) for field in self._columns.fields}
        wanted |= {column.split(".")[0] for column in wanted} | {LINE, BROKEN}
        return chunk.table.select([name for name in chunk.table.column_names if name in wanted])

    def _connect_thread(self) -> Connection:
        """The connection of this thread: to make one takes as long as to check 3,000 rows."""
        if get_ident() not in self._connections:
            connection = self._connections[get_ident()] = self._connect(threads=1)
            connection.execute("SET VARIABLE hash_key = $1", [self._key])
            for name, time in (("earliest", EARLIEST), ("latest", self._latest)):
                connection.execute(f"CREATE MACRO {name}() AS {int(time.timestamp() * 1e6)}")
            connection.execute("CREATE TABLE reaction_names (spelling VARCHAR, meaning VARCHAR)")
        return self._connections[get_ident()]

    def _name_reactions(self, connection: Connection) -> None:
        """Adds the spellings of `all_turns` to `reaction_names`; one that is not known has no name."""
        ((count,),) = connection.execute("SELECT count(*) FROM reaction_names").fetchall()
        if count > MOST_SPELLINGS:
            connection.execute("DELETE FROM reaction_names")
        found = connection.execute("""
            SELECT DISTINCT reaction FROM all_turns
            WHERE reaction IS NOT NULL AND reaction NOT IN (SELECT spelling FROM reaction_names)""").fetchall()
        spellings = [text for (text,) in found]
        names = [name_reaction(text, self._settings.reactions) for text in spellings]
        connection.execute(
            "INSERT INTO reaction_names SELECT unnest($1::VARCHAR[]), unnest($2::VARCHAR[])", [spellings, names]
        )

    def _check_columns(self, path: Path, chunk: Chunk) -> None:
        """Refuses a log that is named wrong altogether, where single rows would only be counted."""
        found = _columns_of(chunk)
        if not found:
            return
        lacking = {field for field in FIELDS if self._columns.column(field).split(".")[0] not in found}
        for field, column in self._settings.columns.items():
            if field in lacking:
                raise _MissingColumnError(f"{path}: no column {column!r} for {field};{suggest(column, sorted(found))}")
        if "messages" not in lacking:
            needed = {"user"} & lacking
        elif "response" in lacking and not {"reaction", "message_id"} & lacking:
            needed = set()  # reactions only
        else:
            needed = {"user", "ts", "prompt", "response"} & lacking
        if needed:
            field = sorted(needed)[0]
            raise _MissingColumnError(
                f"{path}: no column for {', '.join(sorted(needed))} among {', '.join(sorted(found))}; "
                f"say where it is: --columns {field}=COLUMN"
            )

    def _connect(self, threads: int) -> Connection:
        return connect(
            threads=threads,
            memory=self._settings.memory,
            folder=self._staging / "spill",
            time_zone=self._settings.time_zone,
        )

    # ---- parts -> store

    def _finish(
        self, open_engine: Callable[[], AbstractContextManager[QueryEngine]], on_progress: OnProgress | None
    ) -> Store:
        """Decides what is dropped, copies the rest, and publishes it."""

        def tell(note: str) -> None:
            if on_progress is not None:
                size = math.ceil(sum(path.stat().st_size for path in self._files) / MEGABYTE)
                on_progress(size, size, note=note)

        data = self._settings.out / f"data-{secrets.token_hex(4)}"
        import_pyarrow().default_memory_pool().release_unused()  # else Arrow holds what the queries need now
        try:
            for folder in (data, data / "messages", data / "dropped"):
                folder.mkdir()
            with open_engine() as engine:
                record = self._write_data(engine, data, tell)
            return publish(self._settings.out, data, record)
        except BaseException:
            shutil.rmtree(data, ignore_errors=True)
            raise

    def _write_data(self, engine: QueryEngine, data: Path, tell: Callable[[str], None]) -> dict[str, Any]:
        settings = self._settings
        parts = sorted(self._staging.glob("*.parquet"))
        if not parts:
            what = "no log can be read" if self._unreadable else "the logs are empty"
            raise DataError("\n".join([what, *(text for _, text in self._unreadable)]))
        engine.define("parts", f"SELECT * FROM {read_parquet(self._staging / '*.parquet')}")
        engine.load("unreadable", {"file": [number for number, _ in self._unreadable]}, {"file": "int32"})
        tell("looking for duplicates and suspicious users")
        notes = drop_rows(engine, settings)
        tell("writing the store")
        numbers = ", ".join(f"{quote(name)} AS {quote(name.removeprefix(KEPT))}" for name in self._columns.numbers)
        engine.write_each(selection.SELECT_STORED.format(numbers=numbers), parts, data / "messages")
        engine.write(selection.SELECT_DROPPED, data / "dropped" / "rows.parquet")
        engine.write("SELECT * FROM suspicious ORDER BY user_hash, reason, detail", data / "suspicious.parquet")
        engine.define("stored", f"SELECT * FROM {read_parquet(data / 'messages' / '*.parquet')}")
        engine.define("dropped", f"SELECT * FROM {read_parquet(data / 'dropped' / '*.parquet')}")
        return self._summarize(engine, notes)

    def _summarize(self, engine: QueryEngine, notes: list[str]) -> dict[str, Any]:
        """The record in `store.json`, beside where the data are."""
        ((kept, users, loves, first, last),) = engine.fetch(selection.SELECT_TOTALS)
        dropped = dict(engine.fetch(selection.SELECT_REASONS))
        names = [str(path) for path in self._files]
        shown = engine.fetch(selection.SELECT_FIRST_BAD.format(limit=FIRST_BAD_ROWS))
        bad_rows = [
            {"file": names[file], "line": line, "field": field, "reason": reason} for file, line, field, reason in shown
        ]
        if not kept:
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "the logs are empty"
            first_bad = "".join(
                f"\n  {bad['file']}, line {bad['line']}, {bad['field']}: {bad['reason']}" for bad in bad_rows[:5]
            )
            if {"invalid_json", "not_an_object"} & dropped.keys():
                reasons += "; JSON lines have one object a line (jq -c '.[]' makes them of a list)"
            raise DataError(f"no row of the logs is good: {reasons}{first_bad}")
        ((late, redacted),) = engine.fetch(selection.SELECT_LATE_AND_REDACTED)
        ((suspicious,),) = engine.fetch("SELECT count(DISTINCT user_hash) FROM suspicious")
        notes = [*(text for _, text in self._unreadable), *notes]
        for name in self._settings.keep:
            ((count,),) = engine.fetch(f"SELECT count({quote(name)}) FROM stored")
            if not count:
                notes.append(f"no row has {self._columns.column(name)!r}, which --keep names")
        if not loves:
            notes.append("no message has a love reaction: nothing can be learnt from this log alone")
        return {
            "rows": kept + sum(dropped.values()),
            "kept": kept,
            "dropped": dropped,
            "users": users,
            "suspicious_users": suspicious,
            "loves": loves,
            "first": f"{first}",
            "last": f"{last}",
            "reactions_from_other_rows": late,
            "redacted": redacted,
            "notes": notes,
            "bad_rows": bad_rows,
            "files": names,
            "settings": self._settings.model_dump(mode="json", exclude={"out", "logs"}),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def drop_rows(engine: QueryEngine, settings: Ingest) -> list[str]:
    """Keeps `drops`, `late` and `suspicious` of `parts`: duplicates, reactions, suspicious users, caps, in this order.

    Returns:
        What a reader of the store should know.
    """
    engine.define("staged", selection.SELECT_STAGED)
    engine.keep("drops", selection.SELECT_DUPLICATE_MESSAGES)
    engine.keep("told", selection.SELECT_TOLD)
    engine.keep("events", selection.SELECT_EVENTS)
    engine.append("drops", selection.SELECT_BAD_EVENTS)
    engine.keep("late", selection.SELECT_LATE)
    engine.define("messages", selection.SELECT_MESSAGES)
    engine.keep("activity", SELECT_ACTIVITY)
    notes = find_suspects(engine, settings)
    if not settings.keep_suspicious:
        engine.append("drops", selection.SELECT_ROWS_OF_SUSPECTS)
    engine.append("drops", selection.SELECT_DUPLICATE_TEXTS)
    engine.forget("activity")
    engine.keep("activity", SELECT_ACTIVITY)
    engine.append("drops", selection.SELECT_ROWS_ABOVE_CAP.format(cap=settings.max_messages_per_user))
    return notes


class _MissingColumnError(DataError):
    """A log lacks a column; the ingest ends."""


def _columns_of(chunk: Chunk) -> set[str]:
    """The columns of a table, or the keys in the first thousand lines that are JSON objects."""
    if not chunk.is_json:
        return set(chunk.table.column_names) - {LINE, BROKEN}
    found: set[str] = set()
    for text in chunk.table.column(TEXT).slice(0, 1000).to_pylist():
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        found |= row.keys() if isinstance(row, dict) else set()
    return found


def _kinds(schema: Any) -> dict[str, str]:
    """Kinds of a table's columns: of text, of times, of other plain values, or nested."""
    from pyarrow import types

    def kind(of: Any) -> str:
        if types.is_dictionary(of):
            return kind(of.value_type)
        if types.is_nested(of):
            return "nested"
        if types.is_timestamp(of):
            return "time"
        return "text" if types.is_string(of) or types.is_large_string(of) or types.is_string_view(of) else "plain"

    return {field.name: kind(field.type) for field in schema}
