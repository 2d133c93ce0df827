"""What clients get: the JSON values of OpenAI's completions and chat completions, whole and as events.

A choice also says which weights drew its tokens, in vLLM's words: `weight_versions: [{"version", "start", "end"}]`.
"""

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from llamarl.core.records import Completion
from llamarl.inference.decoding import Draw
from llamarl.inference.texts import TokenTexts
from llamarl.models.tokenizer import Tokenizer
from llamarl.report.rollouts import token_texts


def label(kind: str, prefix: str, model: str, fingerprint: str) -> dict[str, Any]:
    """The fields that stand in an answer and in each of its events."""
    name = f"{prefix}-{uuid.uuid4().hex}"
    stamp = {"created": int(time.time()), "model": model, "system_fingerprint": fingerprint}
    return {"id": name, "object": kind, **stamp}


def count_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The counts of tokens."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def list_versions(completion: Completion) -> list[dict[str, Any]]:
    """The stretches of tokens that one version of the weights drew."""
    stretches, start = [], 0
    for version, count in completion.trajectory.versions:
        stretches.append({"version": str(version), "start": start, "end": start + count})
        start += count
    return stretches


class Format(Protocol):
    """How one of the two routes writes its choices."""

    kind: str
    event_kind: str
    prefix: str

    def choice(self, index: int, text: str, reason: str, draws: Sequence[Draw] | None) -> dict[str, Any]:
        """A whole choice."""

    def first_events(self, index: int) -> list[dict[str, Any]]:
        """What a stream of a choice begins with."""

    def event(self, index: int, text: str, reason: str | None, draws: Sequence[Draw] | None) -> dict[str, Any]:
        """A piece of a choice."""


class CompletionFormat:
    """Choices of `/v1/completions`."""

    kind = event_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, tokenizer: Tokenizer, texts: TokenTexts) -> None:
        self._tokenizer, self._texts = tokenizer, texts
        self._offsets: dict[int, int] = {}

    def choice(self, index: int, text: str, reason: str | None, draws: Sequence[Draw] | None) -> dict[str, Any]:
        """A whole choice."""
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": self._logprobs(index, draws)}

    def first_events(self, index: int) -> list[dict[str, Any]]:
        """Nothing."""
        return []

    event = choice

    def _logprobs(self, index: int, draws: Sequence[Draw] | None) -> dict[str, Any] | None:
        if draws is None:
            return None
        texts = token_texts([draw.token_id for draw in draws], lambda ids: self._tokenizer.decode(ids))
        offsets, offset = [], self._offsets.get(index, 0)
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        self._offsets[index] = offset
        return {
            "tokens": [self._texts[draw.token_id] for draw in draws],
            "token_logprobs": [draw.logprob for draw in draws],
            "top_logprobs": [self._by_text(draw.top) for draw in draws] if any(draw.top for draw in draws) else None,
            "text_offset": offsets,
        }

    def _by_text(self, top: Iterable[tuple[int, float]]) -> dict[str, float]:
        """Log-probs by the tokens' texts; where several have one text, the likeliest counts, which comes first."""
        by_text: dict[str, float] = {}
        for token_id, logprob in top:
            by_text.setdefault(self._texts[token_id], logprob)
        return by_text


class ChatFormat:
    """Choices of `/v1/chat/completions`."""

    kind, event_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts

    def choice(self, index: int, text: str, reason: str, draws: Sequence[Draw] | None) -> dict[str, Any]:
        """A whole choice."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "finish_reason": reason, "logprobs": self._logprobs(draws)}

    def first_events(self, index: int) -> list[dict[str, Any]]:
        """The role."""
        return [
            {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}
        ]

    def event(self, index: int, text: str, reason: str | None, draws: Sequence[Draw] | None) -> dict[str, Any]:
        """A piece of a choice."""
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": self._logprobs(draws)}

    def _logprobs(self, draws: Sequence[Draw] | None) -> dict[str, Any] | None:
        if draws is None:
            return None
        listed = []
        for draw in draws:
            top = [self._entry(token_id, logprob) for token_id, logprob in draw.top]
            listed.append({**self._entry(draw.token_id, draw.logprob), "top_logprobs": top})
        return {"content": listed, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._texts[token_id]
        is_whole = "\N{REPLACEMENT CHARACTER}" not in text  # else its bytes are unknown
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_whole else None}
