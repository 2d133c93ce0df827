"""Probabilities of a few tokens as the next one after each of many sequences, in one forward pass.

What the sequences begin with alike is computed once, nothing is padded outside attention, and only last positions reach
the output head. Models that the packed decoder doesn't know run padded, through their own forward pass; both give the
same numbers.

Shape legend: N sequences, K tokens asked about, V vocabulary, d hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llamarl.core.records import OneTurn
from llamarl.functional.logprobs import pick_logprobs
from llamarl.models.classifier import TokenIds
from llamarl.models.decoder import Decoder, why_unsupported
from llamarl.models.rope import rope_threshold, split_by_side
from llamarl.scoring.adapters import prepare_projections
from llamarl.scoring.logprobs import MAX_LOGITS, autocast
from llamarl.scoring.packing import Packed


class NextTokenScorer(Protocol):
    """Reads next-token probabilities off one model's current weights; gradients flow to its parameters."""

    def __call__(self, sequences: Sequence[TokenIds], tokens: Sequence[int], prefix: TokenIds = ()) -> Tensor:
        """The log-probs `[N, K]`, float32, of `tokens` after each sequence.

        Args:
            sequences: at least one, each of at least one token.
            tokens: ids asked about.
            prefix: what many of the sequences begin with; it costs once, and makes no difference to the result.
        """

    def split(self, sequences: Sequence[TokenIds], max_tokens: int, prefix: TokenIds = ()) -> list[list[int]]:
        """Parts of similar length that cost at most `max_tokens` each, or hold one sequence; every index once."""


@dataclass(frozen=True, slots=True)
class _Row(OneTurn):
    prompt_ids: TokenIds
    token_ids: TokenIds


class PackedNextTokens:
    """See the module.

    Args:
        model: of a family that `models.decoder.why_unsupported` accepts, with or without adapters; or a decoder over
            such a model.
        precision: `fp32` or `bf16`, of the body; the output head runs in float32.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32") -> None:
        self._model, self._precision = model, precision
        if not isinstance(model, Decoder):
            model = prepare_projections(Decoder.live(model.eval()), model)
        self._decoder = model

    def __call__(self, sequences: Sequence[TokenIds], tokens: Sequence[int], prefix: TokenIds = ()) -> Tensor:
        """The log-probs `[N, K]` of `tokens` after each sequence."""
        logprobs: Tensor = self._decoder(lambda: self._score(sequences, tokens, prefix))
        return logprobs

    def _score(self, sequences: Sequence[TokenIds], tokens: Sequence[int], prefix: TokenIds) -> Tensor:
        packed = Packed([split_row(ids, prefix) for ids in sequences], self._decoder.device)
        with autocast(self._model, self._precision):
            hidden = self._decoder.hidden_states(packed.ids, packed.positions, packed.attend)
        ends = torch.tensor([end - 1 for end in accumulate(packed.lengths)], device=hidden.device)
        last = packed.predicting(hidden).index_select(0, packed.order[ends]).float()  # [N, d]
        wanted = torch.tensor(tokens, device=hidden.device)
        vocabulary, head = self._decoder.vocabulary, self._decoder.head
        size = max(1, MAX_LOGITS // vocabulary.width)  # rows whose logits are held at once
        # Outside autocast: two labels are compared by small differences.
        return torch.cat([vocabulary.logprobs_of(head(part), wanted) for part in torch.split(last, size)])

    def split(self, sequences: Sequence[TokenIds], max_tokens: int, prefix: TokenIds = ()) -> list[list[int]]:
        """Parts whose tokens, the prefix counted once, stay within `max_tokens`."""
        return split_sequences(sequences, max_tokens, prefix)


class PaddedNextTokens:
    """The same through the module's own forward pass, in float32.

    Args:
        model: any Hugging Face causal language model.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32") -> None:
        self._model, self._precision = model.eval(), precision
        config: Any = model.config
        self._threshold, self._vocab_size = rope_threshold(config), config.get_text_config().vocab_size

    def __call__(self, sequences: Sequence[TokenIds], tokens: Sequence[int], prefix: TokenIds = ()) -> Tensor:
        """The log-probs `[N, K]` of `tokens` after each sequence."""
        sides = split_by_side([len(ids) for ids in sequences], self._threshold)
        parts = [self._score([sequences[index] for index in side], tokens) for side in sides]
        order = torch.tensor([index for side in sides for index in side], device=parts[0].device).argsort()
        return torch.cat(parts)[order]

    def _score(self, sequences: Sequence[TokenIds], tokens: Sequence[int]) -> Tensor:
        device = next(self._model.parameters()).device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(each) for each in sequences], batch_first=True).to(device)
        ends = torch.tensor([len(each) for each in sequences], device=device)
        is_real = torch.arange(ids.shape[1], device=device) < ends[:, None]
        with autocast(self._model, self._precision):
            logits = self._model(input_ids=ids, attention_mask=is_real.long(), use_cache=False).logits
        last = logits[torch.arange(len(sequences), device=device), ends - 1]
        return pick_logprobs(last, torch.tensor(tokens, device=device))

    def split(self, sequences: Sequence[TokenIds], max_tokens: int, prefix: TokenIds = ()) -> list[list[int]]:
        """Parts whose padded tokens stay within `max_tokens`, and whose logits, of every position, within memory."""
        most = min(max_tokens, MAX_LOGITS // self._vocab_size)
        parts: list[list[int]] = []
        for index in sorted(range(len(sequences)), key=lambda index: len(sequences[index])):
            if not parts or (len(parts[-1]) + 1) * len(sequences[index]) > most:
                parts.append([])
            parts[-1].append(index)
        return parts


def build_next_tokens(model: nn.Module, precision: str = "fp32") -> NextTokenScorer:
    """The packed scorer, or the padded one for models the packed decoder does not know."""
    config: Any = model.config
    return (PaddedNextTokens if why_unsupported(config) else PackedNextTokens)(model, precision)


def split_sequences(sequences: Sequence[TokenIds], max_tokens: int, prefix: TokenIds = ()) -> list[list[int]]:
    """Parts of similar length whose tokens, the prefix counted once, stay within `max_tokens`, or that hold one."""
    costs = [len(ids) - common_length(ids, prefix) for ids in sequences]
    parts: list[list[int]] = []
    used = 0
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        if not parts or used + costs[index] > max_tokens:
            parts.append([])
            used = len(prefix)
        parts[-1].append(index)
        used += costs[index]
    return parts


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens that two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def split_row(ids: TokenIds, prefix: TokenIds) -> _Row:
    """The row to pack. Its last token is no input, so one is added."""
    cut = max(1, common_length(ids, prefix))
    return _Row(ids[:cut], (*ids[cut:], 0))
