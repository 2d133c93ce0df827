"""Scores of conversations that share their start, packed: what chosen and rejected have in common is computed once.

The packed form runs the families that the decoder knows. `PaddedClassifier`, the module's own forward pass, runs all
others and is the reference in tests; both give the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llamarl.core.errors import ConfigError
from llamarl.core.records import OneTurn
from llamarl.models.classifier import PaddedClassifier, TokenIds, live_decoder, without_padding
from llamarl.models.decoder import Decoder, why_unsupported
from llamarl.scoring.adapters import prepare_projections
from llamarl.scoring.packing import Packed

Conversations = tuple[TokenIds, ...]
"""Alternatives that begin alike: the chosen and the rejected one, or a single one."""


class ConversationScorer(Protocol):
    """Scores conversations under one model's current weights; gradients flow to its parameters."""

    def __call__(self, groups: Sequence[Conversations]) -> Tensor:
        """Logits `[N, L]` in float32 of all conversations, group after group."""


@dataclass(frozen=True, slots=True)
class _Row(OneTurn):
    prompt_ids: TokenIds
    token_ids: TokenIds


class PackedConversations:
    """Common starts once, no padding in the linear layers, the head on last tokens only.

    Args:
        model: a `*ForSequenceClassification` of a family that `models.decoder.why_unsupported` accepts; or a decoder
            over one.
        precision: of the body; the head runs in float32.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32") -> None:
        config: Any = model.config
        if not isinstance(model, Decoder):
            model = prepare_projections(live_decoder(model.eval()), model)
        self._decoder = model
        self._pad_id: int | None = config.pad_token_id
        self._is_half = precision == "bf16"

    def __call__(self, groups: Sequence[Conversations]) -> Tensor:
        """Logits `[N, L]` in float32 of all conversations, group after group."""
        logits: Tensor = self._decoder(lambda: self._score(groups))
        return logits

    def _score(self, groups: Sequence[Conversations]) -> Tensor:
        rows = [row for group in groups for row in _rows([without_padding(ids, self._pad_id) for ids in group])]
        device = self._decoder.device
        packed = Packed(rows, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._is_half):
            hidden = self._decoder.hidden_states(packed.ids, packed.positions, packed.attend)
        ends = torch.tensor([end - 1 for end in accumulate(packed.lengths)], device=device)
        last = packed.predicting(hidden).index_select(0, packed.order[ends])
        return self._decoder.head(last.float())  # outside autocast: rewards are compared by small differences


class PaddedConversations:
    """The same through the module's own forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self._score = PaddedClassifier(model)

    def __call__(self, groups: Sequence[Conversations]) -> Tensor:
        """Logits `[N, L]` in float32 of all conversations, group after group."""
        return self._score([ids for group in groups for ids in group])


def build_conversation_scorer(model: nn.Module, precision: str = "fp32") -> ConversationScorer:
    """The packed scorer, or the padded one for models the packed decoder does not know.

    Raises:
        ConfigError: half precision for a model that only the padded one runs.
    """
    config: Any = model.config
    reason = why_unsupported(config)
    if reason is None:
        return PackedConversations(model, precision)
    if precision != "fp32":
        raise ConfigError(f"precision={precision!r}: {reason}, and such models train in fp32; set precision='fp32'")
    return PaddedConversations(model)


def split_groups(groups: Sequence[Conversations], max_tokens: int) -> list[list[int]]:
    """Micro-batches: indices of groups of similar length whose packed tokens stay within `max_tokens`.

    A group larger than that stands alone; none is divided. Every index exactly once.
    """
    costs = [sum(map(len, group)) - (len(group) - 1) * _common_length(group) for group in groups]
    batches: list[list[int]] = []
    used = 0
    for index in sorted(range(len(groups)), key=costs.__getitem__):
        if not batches or used + costs[index] > max_tokens:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += costs[index]
    return batches


def _rows(group: Sequence[TokenIds]) -> list[_Row]:
    """Makes the rows to pack: a common prompt and each rest. A packed row's last token is no input, so one is added."""
    cut = max(1, _common_length(group))
    return [_Row(ids[:cut], (*ids[cut:], 0)) for ids in group]


def _common_length(group: Sequence[TokenIds]) -> int:
    """Counts the tokens that all sequences begin with."""
    columns = zip(*group, strict=False)
    return next((place for place, column in enumerate(columns) if len(set(column)) > 1), min(map(len, group)))
