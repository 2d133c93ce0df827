"""Rows for supervised fine-tuning: conversations that end with the assistant, or prompt and completion."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Message, OneTurn
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import RowError, read_tools, read_turns
from llamarl.models.template_check import THINKING_TAGS
from llamarl.models.tokenizer import Tokenizer

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Fields in which messages keep thoughts apart from their content."""

Chat = tuple[list[Message], Any]
"""The messages of a row, the answer last, and its tools or None."""


@dataclass(frozen=True, slots=True)
class SFTRow(OneTurn):
    """A prompt and the completion to learn, the end token included. The loss is on `token_ids` only."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Completion tokens."""
        return len(self.token_ids)

    @property
    def key(self) -> str:
        """A hash of prompt and completion."""
        numbers = array("q", (len(self.prompt_ids), *self.prompt_ids, *self.token_ids))
        return hashlib.blake2b(numbers.tobytes(), digest_size=16).hexdigest()

    @classmethod
    def of_chat(
        cls, messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> "SFTRow":
        """Encodes a conversation: learn its last turn, the assistant's, given all before it.

        The answer is encoded on its own and closed with the tokenizer's end token, just as a generator would meet it.
        One with `tool_calls`, or with its thoughts in a field of their own, is what the chat template writes behind the
        prompt, up to its end token.

        Raises:
            DataError: the last turn is not the assistant's, is empty, or doesn't go on from the prompt: a thinking
                block opened twice, never closed, or closed before it begins.
            ConfigError: the chat template refuses the messages, or leaves out what they call.
        """
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            roles = [message["role"] for message in messages]
            raise DataError(f"messages: the last of at least two turns must be the assistant's, got roles {roles}")
        prompt, answer = messages[:-1], messages[-1]
        has_more = any(answer.get(field) for field in ("tool_calls", *THOUGHT_FIELDS))
        if not tokenizer.has_chat_template and not has_more:
            return cls(tokenizer.encode_chat(prompt, tools), _end(tokenizer, answer.get("content") or ""))
        text = tokenizer.render(prompt, tools)
        if has_more:
            return cls(tokenizer.encode(text), _render_answer(tokenizer, messages, tools, text))
        content = answer.get("content") or ""
        _refuse_broken_thinking(text, content)
        return cls(tokenizer.encode(text), _end(tokenizer, content))

    @classmethod
    def of_pair(cls, prompt: str, completion: str, tokenizer: Tokenizer) -> "SFTRow":
        """Encodes one user turn and its answer; without a chat template the prompt is continued as plain text.

        Raises:
            DataError: as `of_chat`.
        """
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return cls.of_chat(chat, tokenizer)


def read_chats(source: str | Path | Iterable[Mapping[str, Any]], split: str | None = None) -> list[tuple[str, Chat]]:
    """The conversation and tools of every row, each after its place: `rows.jsonl, line 3`.

    A row of a JSONL, Parquet or CSV file, a glob, a Hub id or a list of mappings holds `messages` whose last turn is
    the assistant's, or `prompt` and `completion`, each of them text or messages; and `tools` where it has them.

    Raises:
        DataError: the first malformed row, with file, line and field; or no rows.
    """
    chats = []
    for name, line, row in raw_rows(source, split):
        try:
            if isinstance(row, RowError):
                raise row
            chats.append((f"{name}, line {line}", _read_chat(row)))
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
            continued = without_opened_tag(messages, tools, tokenizer)
            row = SFTRow.of_chat(continued, tokenizer, tools)
            _refuse_misfit(row, max_tokens)
            rows.append(row)
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
    """Reads and encodes rows: `read_chats`, then `encode_chats`."""
    return encode_chats(read_chats(source), tokenizer, max_tokens, tell)


def _read_chat(row: Mapping[str, Any]) -> Chat:
    """Reads the conversation and tools of one row, in either format."""
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


def without_opened_tag(messages: list[Message], tools: Any, tokenizer: Tokenizer) -> list[Message]:
    """Takes off the answer a thinking tag that the generation prompt opens already; the same list where none is."""
    content = str(messages[-1].get("content") or "").lstrip()
    for opening, _ in THINKING_TAGS:
        if content.startswith(opening) and len(messages) > 1 and tokenizer.has_chat_template:
            prompt = tokenizer.render(messages[:-1], tools)
            if prompt.rstrip().endswith(opening):
                rest = content.removeprefix(opening)
                rest = rest.removeprefix(prompt[len(prompt.rstrip()) :])  # the line break that the prompt has as well
                return [*messages[:-1], {**messages[-1], "content": rest}]
    return messages


def _refuse_misfit(row: SFTRow, max_tokens: int | None) -> None:
    """Raises `DataError` for a row without a prompt, or of more tokens than the model has positions."""
    if not row.prompt_ids:
        raise DataError("the prompt has no tokens; give it a text or drop the row")
    length = len(row.prompt_ids) + len(row.token_ids)
    if max_tokens is not None and length > max_tokens:
        raise DataError(
            f"{length} tokens ({len(row.prompt_ids)} of the prompt, {len(row.token_ids)} of the completion), but the "
            f"model has {max_tokens} positions; shorten or drop the row, or take a model with a longer context"
        )


def _end(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Encodes a text and closes it with the end token."""
    if not text.strip():
        raise DataError(f"the answer to learn is empty: {text!r:.40}; give it a text or drop the row")
    return (*tokenizer.encode(text), *tokenizer.eos_ids[:1])


def _render_answer(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, prompt: str
) -> tuple[int, ...]:
    """Encodes what the chat template writes behind the prompt for the last turn, up to its first end token."""
    text = tokenizer.render(messages, tools, add_generation_prompt=False)
    if not text.startswith(prompt):
        raise DataError(
            "the chat template's text of the answered prompt doesn't start with the prompt, so what to learn can't be "
            f"told; the prompt ends with {prompt[-60:]!r}; write all of the answer into its content"
        )
    answer = text[len(prompt) :]
    for field in THOUGHT_FIELDS:
        if str(messages[-1].get(field) or "").strip() not in answer:
            raise DataError(f"{field}: the chat template leaves it out; write the thoughts into the content, in tags")
    ids = tokenizer.encode(answer)
    end = next((index for index, token in enumerate(ids) if token in tokenizer.eos_ids), len(ids))
    return (*ids[:end], *(ids[end : end + 1] or tokenizer.eos_ids[:1]))


def _refuse_broken_thinking(prompt: str, answer: str) -> None:
    """Raises `DataError` for an answer that a model could not have given behind this prompt, by its thinking tags."""
    for opening, closing in THINKING_TAGS:
        is_open, begins = prompt.rstrip().endswith(opening), answer.lstrip().startswith(opening)
        if is_open and begins:
            raise DataError(f"the answer begins with {opening!r}, which the prompt ends with already; leave it out")
        if is_open and closing not in answer:
            raise DataError(
                f"the prompt ends with {opening!r}, but the answer never closes it: {answer!r:.60}; write the thoughts "
                f"and {closing!r} before it, or choose a prompt without thinking (chat_template_args)"
            )
        if begins and prompt.rstrip().endswith(closing):
            raise DataError(
                f"the answer begins with {opening!r}, but the prompt ends with a closed block of thoughts; switch "
                "thinking on (chat_template_args), or leave the thoughts out"
            )
