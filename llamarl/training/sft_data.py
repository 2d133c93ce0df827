"""Supervised rows from files: conversations that end with the assistant, or prompt and completion."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Message
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import RowError, read_tools, read_turns
from llamarl.models.template_check import THINKING_TAGS
from llamarl.models.tokenizer import Tokenizer
from llamarl.training.sft import SFTRow

Chat = tuple[list[Message], Any]
"""Messages of a row, the answer last, and its tools or None."""


def read_chats(source: str | Path | Iterable[Mapping[str, Any]]) -> list[tuple[str, Chat]]:
    """The conversation and tools of every row, each after its place: `rows.jsonl, line 3`.

    A row of a JSONL, Parquet or CSV file, a glob, a Hub id or a list of mappings holds `messages` whose last turn is
    the assistant's, or `prompt` and `completion`, each of them text or messages; and `tools` where it has them.

    Raises:
        DataError: the first malformed row, with file, line and field; or no rows.
    """
    chats = []
    for name, line, row in raw_rows(source):
        try:
            if isinstance(row, RowError):
                raise row
            chats.append((f"{name}, line {line}", _chat(row)))
        except RowError as error:
            raise DataError(str(error.at(name, line))) from None
    if not chats:
        raise DataError(f"{source}: no rows to learn from")
    return chats


def encode_chats(
    chats: Iterable[tuple[str, Chat]],
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[SFTRow]:
    """Encodes the conversations of `read_chats`, whose last turn is learnt.

    Where the chat template's generation prompt already opens a block of thoughts, the tag is taken off answers that
    open it too.

    Args:
        chats: as read.
        tokenizer: of the model to train.
        max_tokens: longest row, prompt, completion and end token together: the model's positions. None: no limit.
        tell: hears, in one sentence, of how many answers lost such a tag.

    Raises:
        DataError: the first bad row, with its place: too long, with nothing to learn, or not to be rendered.
    """
    rows, num_opened, total = [], 0, 0
    for place, (messages, tools) in chats:
        try:
            continued = _without_opened_tag(messages, tools, tokenizer)
            rows.append(_fitting(SFTRow.of_chat(continued, tokenizer, tools), max_tokens))
        except (DataError, ConfigError) as error:
            raise DataError(f"{place}: {error}") from None
        num_opened, total = num_opened + (continued is not messages), total + 1
    if num_opened and tell is not None:
        tell(
            f"{num_opened} of {total} answers begin with the thinking tag that the chat template's generation prompt "
            "writes already; it is left out of them"
        )
    return rows


def read_sft_rows(
    source: str | Path | Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[SFTRow]:
    """`read_chats` and `encode_chats` in one."""
    return encode_chats(read_chats(source), tokenizer, max_tokens, tell)


def _chat(row: Mapping[str, Any]) -> Chat:
    row = {name: value for name, value in row.items() if value is not None}
    tools = read_tools(row.get("tools"))
    if "messages" in row:
        messages = read_turns(row["messages"], "messages", "user")
    elif "prompt" in row and "completion" in row:
        messages = [
            *read_turns(row["prompt"], "prompt", "user"),
            *read_turns(row["completion"], "completion", "assistant"),
        ]
    else:
        remedy = "a row needs 'messages', or 'prompt' and 'completion'"
        raise RowError("missing_field", "", f"fields {sorted(row)}", remedy)
    return messages, tools


def _without_opened_tag(messages: list[Message], tools: Any, tokenizer: Tokenizer) -> list[Message]:
    """The messages, the last without the tag that it and the generation prompt open; the same list where none is."""
    content = str(messages[-1].get("content") or "").lstrip()
    for opening, _ in THINKING_TAGS:
        if content.startswith(opening) and len(messages) > 1 and tokenizer.has_chat_template:
            prompt = tokenizer.render(messages[:-1], tools)
            if prompt.rstrip().endswith(opening):
                rest = content.removeprefix(opening)
                rest = rest.removeprefix(prompt[len(prompt.rstrip()) :])  # the line break that the prompt has as well
                return [*messages[:-1], {**messages[-1], "content": rest}]
    return messages


def _fitting(row: SFTRow, max_tokens: int | None) -> SFTRow:
    if not row.prompt_ids:
        raise DataError("the prompt has no tokens; give it a text or drop the row")
    length = len(row.prompt_ids) + len(row.token_ids)
    if max_tokens is not None and length > max_tokens:
        raise DataError(
            f"{length} tokens ({len(row.prompt_ids)} of the prompt, {len(row.token_ids)} of the completion), but the "
            f"model has {max_tokens} positions; shorten or drop the row, or take a model with a longer context"
        )
    return row
