"""Replies of a model, one line per finished turn, in a file that outlives the process that writes it.

    OUT/responses.jsonl     {"key", "turn", "response", ...}, appended as turns finish
    OUT/settings.json       what would change the replies; who goes on must have the same
    OUT/.lock               held by the one process that writes

A line is handed to the operating system whole, so killing the process loses no finished turn; the disk itself is
waited for every few seconds.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llamarl.core.errors import ConfigError, DataError
from llamarl.data.jsonl import read_jsonl
from llamarl.data.rows import RowError, excerpt
from llamarl.jobs import Journal, changed_names, lock_directory
from llamarl.report.files import encode, has_torn_tail, read_json, write_json

RESPONSES_FILE = "responses.jsonl"
SETTINGS_FILE = "settings.json"

MAX_LINE_BYTES = 1 << 28
IGNORED_SETTINGS = frozenset({"chat.base_url"})
"""Recorded, but free to change: a server may move."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one turn."""

    key: str
    """The key of the conversation."""
    turn: int
    """The number of the turn, counted from 1."""
    response: str | None
    """The answer as it is graded and as later turns see it. None: the infrastructure failed, and nothing is graded."""
    finish_reason: str = "stop"
    """`stop`; `length`: cut at the token limit; `error`: no answer; or what the server says."""
    error: str | None = None
    """The reason for which there is no response."""
    thinking: str | None = None
    """The thinking that was taken out of the answer."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Thinking included."""
    seconds: float = 0.0
    retries: int = 0
    asked: str | None = None
    """Digest of the user's messages so far, which ties the answer to its question."""


Replies = dict[tuple[str, int], Reply]
"""The replies by conversation key and turn."""


def read_responses(path: str | Path) -> Replies:
    """Replies of a `responses.jsonl`, or of any file of `{"key", "turn", "response"}` lines; other fields may lack.

    A torn last line, as a kill leaves it, is left out. A failure (a null response) gives way to any later line.

    Raises:
        DataError: a line is no reply, or a turn has two responses; names file, line and field.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f'{path}: no such file; give lines of {{"key", "turn", "response"}}')
    replies: Replies = {}
    lines: dict[tuple[str, int], int] = {}
    rows = list(read_jsonl(path, MAX_LINE_BYTES))
    if rows and isinstance(rows[-1][1], RowError) and has_torn_tail(path):
        rows.pop()
    for number, row in rows:
        try:
            reply = _reply(row)
            place = (reply.key, reply.turn)
            if place in replies and replies[place].response is not None:
                problem = f"key {reply.key!r}, turn {reply.turn} already has a response in line {lines[place]}"
                raise RowError("duplicate_turn", "turn", problem, "keep one of them")
        except RowError as error:
            raise DataError(str(error.at(str(path), number))) from None
        replies[place], lines[place] = reply, number
    return replies


def _reply(row: Mapping[str, Any] | RowError) -> Reply:
    if isinstance(row, RowError):
        raise row
    key, turn, response = row.get("key"), row.get("turn"), row.get("response")
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        raise RowError("bad_key", "key", f"no usable key: {excerpt(key)}", "give the key of the conversation")
    if not isinstance(turn, int) or isinstance(turn, bool) or turn < 1:
        raise RowError("bad_turn", "turn", f"no usable turn: {excerpt(turn)}", "give 1, 2 or 3")
    if "response" not in row or not isinstance(response, str | None):
        problem = f"no usable response: {excerpt(response)}"
        raise RowError("bad_response", "response", problem, "give the reply's text, or null where there is none")
    known = {field.name: row[field.name] for field in fields(Reply) if row.get(field.name) is not None}
    return Reply(**{**known, "key": str(key), "turn": turn, "response": response})


class ReplyStore:
    """The replies of one evaluation in its directory. A context manager; only one process may hold it.

    Args:
        out: made where absent.
        settings: what would change the replies; written by the first process, compared by later ones.

    Raises:
        ConfigError: another process holds the directory, or it was begun with other settings (names each difference).
        DataError: its files are damaged.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out = Path(out)
        self._lock = lock_directory(self.out, "evaluating into")
        try:
            _check_settings(self.out, settings)
            self._journal = Journal(self.out / RESPONSES_FILE)
            self._journal.keep_only(lambda line: line.get("response") is not None)  # failures are asked again
            self.finished = read_responses(self._journal.path)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def append(self, reply: Reply) -> None:
        """Writes a reply; see `jobs.Journal`. Raises `DataError` where the disk refuses."""
        self._journal.append(_line(reply))

    def sync(self) -> None:
        """Waits until the disk has what was appended. Raises `DataError` where it refuses."""
        self._journal.sync()

    def close(self) -> None:
        """Syncs, closes, and lets the directory go."""
        try:
            self._journal.close()
        finally:
            self._lock.close()


def _line(reply: Reply) -> dict[str, Any]:
    """The fields that say something, and always the first four."""
    values = asdict(reply)
    defaults = {field.name: field.default for field in fields(Reply)[4:]}
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}


def _check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    path, now = out / SETTINGS_FILE, json.loads(encode(settings))
    if not path.exists():
        responses = out / RESPONSES_FILE
        if responses.exists() and responses.stat().st_size:
            raise ConfigError(
                f"{responses}: holds replies, but there is no {SETTINGS_FILE} beside it that says how they were made; "
                "choose another directory"
            )
        write_json(path, now)
        return
    changes = changed_names(read_json(path), now)
    told = [
        f"{name} was {excerpt(before)}, now {excerpt(after)}"
        for name, (before, after) in changes.items()
        if name not in IGNORED_SETTINGS
    ]
    if told:
        raise ConfigError(
            f"{out}: begun with other settings, which would change the replies: {'; '.join(told)}; "
            "go on with the same settings, or choose another directory"
        )
