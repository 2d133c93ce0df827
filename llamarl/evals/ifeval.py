"""IFEval's own form of replies: lines of `{"prompt", "response"}`, known by the prompt's text.

The questions are read by `read_conversations`, and graded in the rules' `google` mode.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import RowError, excerpt
from llamarl.evals.conversations import Conversation
from llamarl.evals.replies import MAX_LINE_BYTES, Replies, Reply


def read_ifeval_responses(path: str | Path, conversations: Sequence[Conversation]) -> Replies:
    """Replies by key, or by prompt where a line has no key; a turn need not be given.

    Raises:
        DataError: a line is no reply, or the second to one prompt; names file, line and field.
    """
    keys: dict[str, list[str]] = {}
    for each in conversations:
        keys.setdefault(each.turns[0].prompt, []).append(each.key)
    replies: Replies = {}
    for name, line, row in raw_rows(path, max_row_bytes=MAX_LINE_BYTES):
        try:
            for reply in _replies(row, keys):
                if (reply.key, 1) in replies:
                    raise RowError("duplicate", "response", f"{reply.key!r} has a response already", "keep one of them")
                replies[reply.key, 1] = reply
        except RowError as error:
            raise DataError(str(error.at(name, line))) from None
    return replies


def _replies(row: Mapping[str, Any] | RowError, keys: Mapping[str, Sequence[str]]) -> list[Reply]:
    """One reply, or one for each conversation that has this prompt. Prompts that nobody asked are no error."""
    if isinstance(row, RowError):
        raise row
    response = row.get("response")
    if "response" not in row or not isinstance(response, str | None):
        raise RowError("no_response", "response", f"no text: {excerpt(response)}", "give the reply, or null")
    if "key" in row:
        return [Reply(str(row["key"]), 1, response)]
    if not isinstance(row.get("prompt"), str):
        raise RowError("no_prompt", "prompt", f"no text: {excerpt(row.get('prompt'))}", "give the prompt, or a key")
    return [Reply(key, 1, response) for key in keys.get(row["prompt"], ())]
