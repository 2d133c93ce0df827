"""The logged groups of a run for the page: found through an index of the file, or a sample that a file can hold.

`rollouts.jsonl` may hold a million completions. The index, an SQLite file beside it (in memory where the disk is
read-only), knows where each line begins and what filters ask for; texts stay where they are. It grows with the file and
is built anew when the file was rewritten.
"""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from llamarl.report.files import Record
from llamarl.report.text import one_line

INDEX_FILE = "rollouts.index.sqlite"
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (version INTEGER, bytes INTEGER, head BLOB, skipped INTEGER);
CREATE TABLE IF NOT EXISTS groups (
  id INTEGER PRIMARY KEY, place INTEGER, size INTEGER, step INTEGER, task TEXT, prompt_id TEXT, samples INTEGER,
  low REAL, high REAL, oldest INTEGER, newest INTEGER, cut INTEGER, head TEXT
);
CREATE INDEX IF NOT EXISTS by_step ON groups (step);
CREATE TABLE IF NOT EXISTS verdicts (judge TEXT, outcome TEXT, group_id INTEGER);
CREATE INDEX IF NOT EXISTS by_verdict ON verdicts (judge, outcome, group_id);
"""
_HEAD_BYTES = 256
"""Bytes at the beginning of the file, by which a rewritten one is told from one that grew."""
COMMIT_GROUPS = 2000
SEARCH_SECONDS = 2.0
"""A search through texts answers after this time with what it found so far, and where to go on."""
MAX_TEXT = 20_000
"""Characters of a text in a page's file, and in a group that is shown at first."""
MAX_TOKENS = 4_000
"""Tokens of a completion likewise."""
HEAD_CHARACTERS = 160
_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Conditions on groups, which one of a group's samples has to meet; empty and None ask for nothing."""

    text: str = ""
    """Text to find in the prompt's last turn or a completion, in capitals or not."""
    prompt: str = ""
    """Part of the prompt's id."""
    task: str = ""
    judge: str = ""
    """Empty: any judge."""
    outcome: str = ""
    """`pass`, `fail`, `scored`, `abstained` or `failed`."""
    reward_from: float | None = None
    reward_to: float | None = None
    step_from: int | None = None
    step_to: int | None = None
    version: int | None = None
    """Version of the policy that sampled one of its tokens."""
    cut: bool = False
    """Completions that the token limit cut."""
    steps: str = ""
    """Ranges `from-to` of steps, with commas between them: those with an alarm."""

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """Reads a query string's values. Raises `ValueError` for what is no number."""
        kinds: dict[str, Callable[[str], Any]] = {
            "reward_from": float, "reward_to": float, "step_from": int, "step_to": int, "version": int, "cut": bool,
        }  # fmt: skip
        known = {each.name for each in fields(cls)}
        return cls(**{name: kinds.get(name, str)(text) for name, text in query.items() if name in known and text})


def outcomes_of(sample: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(judge, outcome) of a sample's verdicts; one that passes or fails is not `scored` besides."""
    for judge, verdict in (sample.get("verdicts") or {}).items():
        passed, status = verdict.get("passed"), verdict.get("status")
        yield judge, {True: "pass", False: "fail"}.get(passed, str(status))


def group_head(record: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a list that shows a group."""
    messages = record.get("messages") or [{}]
    samples = record.get("samples") or []
    return {
        "step": record.get("step"),
        "task": record.get("task"),
        "prompt_id": str(record.get("prompt_id")),
        "prompt": one_line(str(messages[-1].get("content", ""))[: 4 * HEAD_CHARACTERS], HEAD_CHARACTERS),
        "rewards": [sample.get("reward") for sample in samples],
        "passed": [_is_passed(sample) for sample in samples],
    }


def _is_passed(sample: Mapping[str, Any]) -> bool | None:
    found = [verdict.get("passed") for verdict in (sample.get("verdicts") or {}).values()]
    said = [passed for passed in found if passed is not None]
    return all(said) if said else None


def shorten(record: Record) -> Record:
    """The group with texts and tokens cut to what a page holds; `full_length` and `full_tokens` say what was there."""
    samples = []
    for sample in record.get("samples") or []:
        kept = dict(sample)
        text, tokens = str(sample.get("text", "")), sample.get("token_ids") or []
        if len(text) > MAX_TEXT:
            kept |= {"text": text[:MAX_TEXT], "full_length": len(text)}
        if len(tokens) > MAX_TOKENS:
            kept["full_tokens"] = len(tokens)
            for key in ("token_ids", "tokens", "logprobs", "trainer_logprobs", "advantage", "loss_mask"):
                if isinstance(sample.get(key), list):
                    kept[key] = sample[key][:MAX_TOKENS]
        samples.append(kept)
    messages = [
        {**message, "content": f"{message['content'][:MAX_TEXT]}…"}
        if isinstance(message.get("content"), str) and len(message["content"]) > MAX_TEXT
        else message
        for message in record.get("messages") or []
    ]
    return {**record, "samples": samples, "messages": messages}


def sample_groups(path: Path, max_bytes: int) -> dict[str, Any]:
    """Groups spread evenly over the file, the first and the last among them, in at most about `max_bytes`.

    Returns:
        `groups` (each with its `id`, the number of its line), `total_groups`, `held_groups`, `skipped` (lines that are
        no group).
    """
    places = list(_line_places(path))
    if not places:
        return {"groups": [], "total_groups": 0, "held_groups": 0, "skipped": 0}
    sizes = [min(size, 4 * MAX_TEXT) for _, size in places]
    count = len(places) if sum(sizes) <= max_bytes else max(2, int(len(places) * max_bytes / sum(sizes)))
    chosen = [index * (len(places) - 1) // max(1, count - 1) for index in range(min(count, len(places)))]
    groups, used, skipped = [], 0, 0
    with path.open("rb") as file:
        for index in chosen:
            record = _parse(_read_at(file, *places[index]))
            if record is None:
                skipped += 1
                continue
            group = {"id": index, **shorten(record)}
            used += len(json.dumps(group))
            if used > 2 * max_bytes:  # lines of very different lengths
                break
            groups.append(group)
    return {"groups": groups, "total_groups": len(places), "held_groups": len(groups), "skipped": skipped}


class RolloutIndex:
    """Finds groups of one `rollouts.jsonl`. Safe to call from several threads.

    Args:
        path: of the file, which may not exist yet.
        clock: monotonic seconds, for the length of a search.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._lock = threading.RLock()
        self._growing = threading.Lock()  # one thread at a time reads new lines; searches go on beside it
        self._db = _open_index(path.with_name(INDEX_FILE))

    def grow(self, max_seconds: float = float("inf")) -> bool:
        """Reads lines that were added since; False where the time was over before the end of the file."""
        if not self._growing.acquire(blocking=False):
            return False
        try:
            return self._grow(self._clock() + max_seconds)
        finally:
            self._growing.release()

    def progress(self) -> dict[str, Any]:
        """`groups` and `samples` in the index, `share` of the file that it covers, `skipped` lines."""
        size = self._path.stat().st_size if self._path.is_file() else 0
        with self._lock:
            done, skipped = self._db.execute("SELECT bytes, skipped FROM state").fetchone()
            groups, samples = self._db.execute("SELECT COUNT(*), COALESCE(SUM(samples), 0) FROM groups").fetchone()
        return {"groups": groups, "samples": samples, "share": done / size if size else 1.0, "skipped": skipped}

    def choices(self) -> dict[str, Any]:
        """The values of filters (`tasks`, `outcomes` by judge, logged `steps`), and how much the index covers."""
        with self._lock:
            tasks = [row[0] for row in self._db.execute("SELECT DISTINCT task FROM groups ORDER BY task")]
            pairs = self._db.execute("SELECT DISTINCT judge, outcome FROM verdicts ORDER BY judge, outcome").fetchall()
            steps = [row[0] for row in self._db.execute("SELECT DISTINCT step FROM groups ORDER BY step")]
        progress = self.progress()
        covered = {"groups": progress["groups"], "total": progress["groups"], "share": progress["share"]}
        return {"tasks": tasks, "outcomes": pairs, "steps": steps, **covered}

    def find(self, wanted: Filter, start: int | None = None, count: int = 50) -> dict[str, Any]:
        """The heads of groups that fit, the newest first.

        Args:
            wanted: the filter.
            start: largest id to look at: None for all, or `next` of the answer before.
            count: most heads to return.

        Returns:
            `heads`, `next` (None at the end), `matches` (how many fit in all; None where texts were searched) and
            `is_complete` (False where the time was over before `count` were found).
        """
        where, values = _conditions(wanted)
        last = _LARGEST_ID if start is None else start
        sql = f"SELECT id, place, size, head FROM groups WHERE id <= ? AND {where} ORDER BY id DESC"
        with self._lock:
            rows = self._db.execute(sql, (last, *values))
            found = rows.fetchall() if wanted.text else rows.fetchmany(count + 1)
            total = self._db.execute(f"SELECT COUNT(*) FROM groups WHERE {where}", values).fetchone()[0]
        if wanted.text:
            return self._search(wanted.text, found, count)
        heads = [{"id": group_id, **json.loads(head)} for group_id, _, _, head in found[:count]]
        more = found[count][0] if len(found) > count else None
        return {"heads": heads, "next": more, "matches": total, "is_complete": True}

    def read(self, group_id: int, is_whole: bool = False) -> Record | None:
        """One group; None where there is no such id.

        Args:
            group_id: of a head.
            is_whole: without cutting long texts.
        """
        with self._lock:
            row = self._db.execute("SELECT place, size FROM groups WHERE id = ?", (group_id,)).fetchone()
        if row is None:
            return None
        with self._path.open("rb") as file:
            record = _parse(_read_at(file, *row))
        if record is None:
            return None
        return {"id": group_id, **(record if is_whole else shorten(record))}

    def close(self) -> None:
        """Closes the index. Idempotent."""
        with self._lock:
            self._db.close()

    def _search(self, text: str, candidates: Iterable[tuple[Any, ...]], count: int) -> dict[str, Any]:
        needle, until = text.casefold(), self._clock() + SEARCH_SECONDS
        heads: list[dict[str, Any]] = []
        with self._path.open("rb") as file:
            for group_id, place, size, head in candidates:
                is_late = self._clock() > until
                if len(heads) == count or is_late:
                    return {"heads": heads, "next": group_id, "matches": None, "is_complete": not is_late}
                record = _parse(_read_at(file, place, size))
                if record is not None and any(needle in each.casefold() for each in texts_of(record)):
                    heads.append({"id": group_id, **json.loads(head)})
        return {"heads": heads, "next": None, "matches": None, "is_complete": True}

    def _grow(self, until: float) -> bool:
        if not self._path.is_file():
            return True
        with self._path.open("rb") as file, self._lock:
            done, head, skipped = self._db.execute("SELECT bytes, head, skipped FROM state").fetchone()
            now = file.read(_HEAD_BYTES)
            if now[: len(head)] != head or self._path.stat().st_size < done:
                self._db.executescript("DELETE FROM groups; DELETE FROM verdicts;")
                done, skipped = 0, 0
            head = now
        is_over = False
        with self._path.open("rb") as file:
            file.seek(done)
            while not is_over:
                lines: list[tuple[int, bytes]] = []
                while len(lines) < COMMIT_GROUPS and self._clock() <= until:
                    line = file.readline()
                    if not line.endswith(b"\n"):  # the end, or a line that is being written
                        is_over = True
                        break
                    lines.append((done, line))
                    done += len(line)
                with self._lock:
                    skipped += self._add(lines)
                    self._db.execute("UPDATE state SET bytes = ?, head = ?, skipped = ?", (done, head, skipped))
                    self._db.commit()
                if self._clock() > until:
                    return is_over
        return True

    def _add(self, lines: Iterable[tuple[int, bytes]]) -> int:
        """Adds lines with their places in the file; returns how many were no group."""
        skipped = 0
        for place, line in lines:
            record = _parse(line)
            if record is None:
                skipped += bool(line.strip())
                continue
            samples = record["samples"]
            rewards = [sample["reward"] for sample in samples if sample.get("reward") is not None]
            versions = [version for sample in samples for version, _ in sample.get("versions") or []]
            cursor = self._db.execute(
                "INSERT INTO groups VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    place, len(line), record.get("step"), _storable(record.get("task")),
                    _storable(record.get("prompt_id")), len(samples),
                    min(rewards, default=None), max(rewards, default=None),
                    min(versions, default=None), max(versions, default=None),
                    any(sample.get("finish_reason") == "length" for sample in samples),
                    json.dumps(group_head(record)),
                ),
            )  # fmt: skip
            pairs = {pair for sample in samples for pair in outcomes_of(sample)}
            self._db.executemany(
                "INSERT INTO verdicts VALUES (?, ?, ?)",
                [(_storable(judge), outcome, cursor.lastrowid) for judge, outcome in pairs],
            )
        return skipped


def texts_of(record: Mapping[str, Any]) -> Iterator[str]:
    """The texts that a search looks into: the prompt's last turn and the completions."""
    messages = record.get("messages") or [{}]
    yield str(messages[-1].get("content", ""))
    for sample in record.get("samples") or []:
        yield str(sample.get("text", ""))


def _conditions(wanted: Filter) -> tuple[str, list[Any]]:
    """The filter, but for its text, as SQL with values. A reward or a version lies between the group's extremes."""
    tests: list[tuple[str, list[Any]]] = [
        ("task = ?", [wanted.task] if wanted.task else []),
        ("instr(prompt_id, ?) > 0", [wanted.prompt] if wanted.prompt else []),
        ("high >= ?", [] if wanted.reward_from is None else [wanted.reward_from]),
        ("low <= ?", [] if wanted.reward_to is None else [wanted.reward_to]),
        ("step >= ?", [] if wanted.step_from is None else [wanted.step_from]),
        ("step <= ?", [] if wanted.step_to is None else [wanted.step_to]),
        ("oldest <= ? AND newest >= ?", [] if wanted.version is None else [wanted.version, wanted.version]),
    ]
    chosen = [(test, values) for test, values in tests if values]
    if wanted.cut:
        chosen.append(("cut", []))
    if wanted.judge or wanted.outcome:
        pairs = [("judge = ?", wanted.judge), ("outcome = ?", wanted.outcome)]
        inner = [(test, value) for test, value in pairs if value]
        sql = " AND ".join(test for test, _ in inner)
        chosen.append((f"id IN (SELECT group_id FROM verdicts WHERE {sql})", [value for _, value in inner]))
    if wanted.steps:
        ranges = [part.split("-") for part in wanted.steps.split(",")]
        sql = " OR ".join("step BETWEEN ? AND ?" for _ in ranges)
        chosen.append((f"({sql})", [int(end) for part in ranges for end in (part[0], part[-1])]))
    return " AND ".join([test for test, _ in chosen] or ["1"]), [value for _, values in chosen for value in values]


def _storable(value: Any) -> str:
    """Text that SQLite takes: without lone surrogates, which have no UTF-8 form."""
    return str(value).encode(errors="replace").decode()


def _open_index(path: Path) -> sqlite3.Connection:
    """The index file; a fresh one where it is of another version or damaged, in memory where it can't be written."""
    for attempt in (str(path), str(path), ":memory:"):
        try:
            db = sqlite3.connect(attempt, check_same_thread=False, timeout=1.0)
        except sqlite3.Error:
            continue
        try:
            db.execute("PRAGMA synchronous = OFF")  # whatever a crash leaves is built anew
            db.executescript(_SCHEMA)
            row = db.execute("SELECT version FROM state").fetchone()
            if row is None:
                db.execute("INSERT INTO state VALUES (?, 0, x'', 0)", (_VERSION,))
            elif row[0] != _VERSION:
                raise sqlite3.DatabaseError("another version")
            db.execute("UPDATE state SET version = version")  # a read-only file says so here
            db.commit()
            return db
        except sqlite3.Error:
            db.close()
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    raise AssertionError("SQLite refuses a database in memory")


def _line_places(path: Path) -> Iterator[tuple[int, int]]:
    """Place and length of every whole line."""
    if not path.is_file():
        return
    place = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and line.strip():
                yield place, len(line)
            place += len(line)


def _read_at(file: Any, place: int, size: int) -> bytes:
    file.seek(place)
    data: bytes = file.read(size)
    return data


def _parse(line: bytes) -> Record | None:
    """A group, or None where the line is none."""
    try:
        record = json.loads(line)
    except ValueError:  # bad JSON and bad UTF-8 alike
        return None
    if not isinstance(record, dict) or not isinstance(record.get("samples"), list):
        return None
    return record if all(isinstance(sample, dict) for sample in record["samples"]) else None
