"""Responses read from files: what `llamarl generate --json` prints, rows of prompt and completion, conversations.

{"prompt": "2 + 2 =", "completions": [{"text": "4"}, {"text": "four"}]}         llamarl generate --json
{"prompt": "2 + 2 =", "completion": "4"}                                        llamarl judge run; a list of texts too
{"prompt": "2 + 2 =", "response": "4", "conversation_id": "c1"}                 rows of one conversation are a session
{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}               a whole conversation
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.data.prompts import RawRow, raw_rows
from llamarl.data.rows import RowError, excerpt, read_turns
from llamarl.data.tables import plain_or_error
from llamarl.monitors.monitors import Session

TEXTS = ("completions", "completion", "response")
"""Columns that hold responses; a row has one of them, or `messages`."""


def read_sessions(source: str | Path | Iterable[Mapping[str, Any]], task: str | None = None) -> list[Session]:
    """The sessions of a file: the responses to one prompt together, and those of one conversation.

    Args:
        source: JSON lines, JSON, Parquet, CSV, or a glob of them; or rows.
        task: only rows of this task, and rows that name none.

    Raises:
        DataError: no such file, a bad row with its place, or no response at all.
    """
    by_prompt: dict[str, list[str]] = {}
    by_conversation: dict[str, list[str]] = {}
    number = 0
    for name, line, row in response_rows(source):
        number += 1
        try:
            if isinstance(row, RowError):
                raise row
            if task is not None and row.get("task") not in (None, task):
                continue
            texts, conversation = _read(row)
        except RowError as error:
            raise DataError(str(error.at(name, line))) from None
        if conversation is None:
            by_prompt.setdefault(str(row.get("prompt")), []).extend(texts)
        else:
            by_conversation.setdefault(conversation or f"row {number}", []).extend(texts)
    sessions = [Session(texts) for texts in by_prompt.values()]
    sessions += [Session(texts, len(texts)) for texts in by_conversation.values()]
    if not sessions:
        of = "" if task is None else f" of task {task!r}"
        raise DataError(f"{source if isinstance(source, str | Path) else 'rows'}: no responses{of}")
    return sessions


def response_rows(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[RawRow]:
    """Every row with its place; a JSON document that is a list, as `llamarl generate --json` prints, row by row."""
    path = Path(source) if isinstance(source, str | Path) else None
    if path is not None and path.suffix == ".json" and path.is_file():
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            document = None  # JSON lines after all, or broken: whoever reads them says where
        if isinstance(document, list):
            return ((str(path), number, plain_or_error(row)) for number, row in enumerate(document, start=1))
    return raw_rows(source)


def _read(row: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """The responses of a row, and the conversation that they are of: "" where the row is one by itself, or None."""
    if row.get("messages") is not None:
        turns = read_turns(row["messages"], "messages", "user")
        return _not_empty([str(turn["content"]) for turn in turns if turn["role"] == "assistant"]), ""
    named = [name for name in TEXTS if row.get(name) is not None]
    if len(named) != 1:
        problem = f"columns {', '.join(list(row)[:8]) or 'none'}" if not named else f"both {' and '.join(named)}"
        raise RowError("missing_response", "response", problem, f"give one of {', '.join(TEXTS)}, messages")
    conversation = row.get("conversation_id")
    if conversation is None and row.get("prompt") is None:
        raise RowError("missing_prompt", "prompt", "missing", "give it, or conversation_id: what responses belong to")
    return _texts(row[named[0]], named[0]), None if conversation is None else f"id {conversation}"


def _texts(value: Any, field: str) -> list[str]:
    found: list[str] = []
    for place, item in enumerate(value if isinstance(value, list) else [value]):
        text = item.get("text") if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            problem = f"got {excerpt(text)}"
            raise RowError("bad_response", f"{field}[{place}]", problem, "give a text, or a list of texts")
        found.append(text)
    return _not_empty(found)


def _not_empty(texts: list[str]) -> list[str]:
    if not texts:
        raise RowError("missing_response", "response", "no response", "leave such rows out")
    return texts
