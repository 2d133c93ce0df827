"""Hidden states of a frozen model that has read some sequences, pooled as probes want them.

What the sequences begin with alike is computed once, and nothing is padded outside attention. Models that the packed
decoder doesn't know run padded, through their own forward pass; both give the same numbers.

Shape legend: N sequences, L layers, d hidden size, M packed tokens, B padded width.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from llamarl.models.classifier import TokenIds
from llamarl.models.decoder import Decoder, why_unsupported
from llamarl.models.rope import rope_threshold, split_by_side
from llamarl.scoring.adapters import prepare_projections
from llamarl.scoring.logprobs import autocast
from llamarl.scoring.next_tokens import split_row
from llamarl.scoring.packing import Packed


class States(NamedTuple):
    """States of some sequences, float32.

    The states behind the last layer are normalised, as the output head sees them; those behind the others are not.
    """

    last: Tensor
    """`[N, L, d]` of the last token, behind each layer."""
    mean: Tensor
    """`[N, d]` behind the last layer, mean over all tokens."""


class StateReader(Protocol):
    """Reads the states of one model, without gradients."""

    def __call__(self, sequences: Sequence[TokenIds], prefix: TokenIds = ()) -> States:
        """The states of each sequence.

        Args:
            sequences: at least one, each of at least one token.
            prefix: what many of them begin with; it costs once, and makes no difference to the result.
        """


class PackedStates:
    """See the module.

    Args:
        model: of a family that `models.decoder.why_unsupported` accepts.
        precision: `fp32` or `bf16`, of the forward pass.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32") -> None:
        self._model, self._precision = model, precision
        self._decoder = prepare_projections(Decoder.live(model.eval()), model)

    @torch.no_grad()
    def __call__(self, sequences: Sequence[TokenIds], prefix: TokenIds = ()) -> States:
        """The states of each sequence."""
        rows = [split_row(ids, prefix) for ids in sequences]
        packed = Packed(rows, self._decoder.device)
        numbers = torch.arange(len(packed.ids), device=self._decoder.device)[:, None]
        places = packed.predicting(numbers)[packed.order, 0].split_with_sizes(
            packed.lengths
        )  # row by row, but for its prefix
        last_places = torch.stack([place[-1] for place in places])
        behind: list[Tensor] = []
        with autocast(self._model, self._precision):
            final = self._decoder.hidden_states(
                packed.ids, packed.positions, packed.attend, watch=lambda x: behind.append(x[last_places].float())
            ).float()
        behind[-1] = final[last_places]
        sums: dict[TokenIds, Tensor] = {}  # of the prefixes, which rows share
        for row, place in zip(rows, places, strict=True):
            if row.prompt_ids not in sums:
                end = int(place[0]) + 1
                sums[row.prompt_ids] = final[end - len(row.prompt_ids) : end].sum(dim=0)
        means = [
            (sums[row.prompt_ids] + final[place[1:]].sum(dim=0)) / len(ids)
            for row, place, ids in zip(rows, places, sequences, strict=True)
        ]
        return States(torch.stack(behind, dim=1), torch.stack(means))


class PaddedStates:
    """The same through the module's own forward pass, every sequence in full.

    Args:
        model: any Hugging Face causal language model.
        precision: `fp32` or `bf16`.
        max_padded: most padded tokens of one forward pass, all of whose states are held at once.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32", max_padded: int = 2048) -> None:
        self._model, self._precision, self._max_padded = model.eval(), precision, max_padded
        self._threshold = rope_threshold(model.config)

    @torch.no_grad()
    def __call__(self, sequences: Sequence[TokenIds], prefix: TokenIds = ()) -> States:
        """The states of each sequence."""
        width = max(map(len, sequences))
        cuts = range(0, len(sequences), max(1, self._max_padded // width))
        parts = [sequences[start:stop] for start, stop in pairwise([*cuts, len(sequences)])]
        return States(*map(torch.cat, zip(*map(self._read_sides, parts), strict=True)))

    def _read_sides(self, sequences: Sequence[TokenIds]) -> States:
        sides = split_by_side([len(ids) for ids in sequences], self._threshold)
        parts = [self._read([sequences[index] for index in side]) for side in sides]
        order = torch.tensor([index for side in sides for index in side]).argsort()
        return States(*(torch.cat(column)[order.to(column[0].device)] for column in zip(*parts, strict=True)))

    def _read(self, sequences: Sequence[TokenIds]) -> States:
        model: Any = self._model
        device = next(model.parameters()).device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(each) for each in sequences], batch_first=True).to(device)
        ends = torch.tensor([len(each) for each in sequences], device=device)
        is_real = torch.arange(ids.shape[1], device=device) < ends[:, None]
        with autocast(model, self._precision):
            # The body without the head: logits of every position would be larger than all states.
            output = model.base_model(
                input_ids=ids, attention_mask=is_real.long(), use_cache=False, output_hidden_states=True
            )
        rows = torch.arange(len(sequences), device=device)
        last = torch.stack([states[rows, ends - 1].float() for states in output.hidden_states[1:]], dim=1)
        final = output.hidden_states[-1].float() * is_real[..., None]
        return States(last, final.sum(dim=1) / ends[:, None])


def build_states(model: nn.Module, precision: str = "fp32") -> StateReader:
    """The packed reader, or the padded one for models the packed decoder does not know."""
    config: Any = model.config
    return (PaddedStates if why_unsupported(config) else PackedStates)(model, precision)
