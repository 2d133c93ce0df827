"""Supervised rows from files: conversations that end with the assistant, or prompt and completion."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError, DataError
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import RowError
from llamarl.models.tokenizer import Tokenizer
from llamarl.training.sft import SFTRow


def read_sft_rows(
    source: str | Path | Iterable[Mapping[str, Any]], tokenizer: Tokenizer, max_tokens: int | None = None
) -> list[SFTRow]:
    """Encodes every row of a JSONL, Parquet or CSV file, a glob, a Hub id or a list of mappings.

    A row holds `messages` whose last turn is the assistant's, or `prompt` and `completion` (strings, or messages as
    TRL writes them).

    Args:
        source: the rows.
        tokenizer: of the model to train.
        max_tokens: longest row, prompt, completion and end token together: the model's positions. None: no limit.

    Raises:
        DataError: the first bad row, with file, line and field: malformed, too long, or with nothing to learn; or no
            rows.
    """
    rows = []
    for name, line, row in raw_rows(source):
        try:
            if isinstance(row, RowError):
                raise DataError(str(row.at(name, line)))
            rows.append(_fitting(_encoded(row, tokenizer), max_tokens))
        except (DataError, ConfigError) as error:
            raise DataError(str(error) if isinstance(row, RowError) else f"{name}, line {line}: {error}") from None
    if not rows:
        raise DataError(f"{source}: no rows to learn from")
    return rows


def _encoded(row: Mapping[str, Any], tokenizer: Tokenizer) -> SFTRow:
    if "messages" in row:
        return SFTRow.of_chat(_turns(row["messages"], "messages"), tokenizer)
    if "prompt" not in row or "completion" not in row:
        raise DataError(f"fields {sorted(row)}: a row needs 'messages', or 'prompt' and 'completion'")
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return SFTRow.of_pair(prompt, completion, tokenizer)
    return SFTRow.of_chat([*_turns(prompt, "prompt"), *_turns(completion, "completion")], tokenizer)


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


def _turns(value: Any, field: str) -> list[Mapping[str, Any]]:
    is_chat = isinstance(value, list) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )
    if not is_chat or not value:
        raise DataError(f"{field}: must be a non-empty list of messages with 'role' and 'content', got {value!r:.80}")
    return list(value)
