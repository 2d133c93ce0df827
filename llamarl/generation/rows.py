"""Per-row buffers of the batcher: seeds, limits, sampling settings, and what was drawn so far.

Rows 0..n-1 are active. All buffers live on the backend's device; nothing here waits for it except `tokens_of` and
`logprobs_of`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llamarl.core.records import GenerationRequest
from llamarl.generation.draw import Filters

_FIRST_WIDTH = 64


class Rows:
    """Numbers of the active rows.

    Args:
        slots: most rows.
        device: where the numbers live.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self._integers = torch.zeros(5, slots, dtype=torch.int64, device=device)
        self.seed, self.count, self.limit, self.token, self._top_k = self._integers
        self._floats = torch.zeros(3, slots, dtype=torch.float32, device=device)
        self._temperature, self._top_p, self._min_p = self._floats
        self._index = torch.arange(slots, device=device)
        self._tokens = torch.zeros(slots, _FIRST_WIDTH, dtype=torch.int32, device=device)
        self._logprobs = torch.zeros(slots, _FIRST_WIDTH, device=device)
        self._used: tuple[bool, ...] = (False,) * 4

    def start(self, first: int, samples: Sequence[tuple[GenerationRequest, int]]) -> None:
        """Fills rows from `first` on: (request, sample index) each."""
        settings = [request.sampling for request, _ in samples]
        last = first + len(samples)
        columns = zip(*((r.seeds[i], 0, r.sampling.max_tokens, 0, r.sampling.top_k) for r, i in samples), strict=True)
        self._integers[:, first:last] = torch.tensor(list(columns)).to(self._integers.device)
        floats = torch.tensor(
            [[s.temperature for s in settings], [s.top_p for s in settings], [s.min_p for s in settings]]
        )
        self._floats[:, first:last] = floats.to(self._floats.device)
        self._widen(max(s.max_tokens for s in settings))

    def use_filters_of(self, requests: Sequence[GenerationRequest]) -> None:
        """Notes which filters the active rows need, so that plain sampling pays for none."""
        distinct = {id(request.sampling): request.sampling for request in requests}.values()
        self._used = (
            any(s.temperature != 1.0 for s in distinct),
            any(s.top_k > 0 for s in distinct),
            any(s.top_p < 1.0 for s in distinct),
            any(s.min_p > 0.0 for s in distinct),
        )

    def filters(self, first: int, last: int) -> Filters:
        """Sampling settings of rows `first` to `last - 1`."""
        columns = (self._temperature, self._top_k, self._top_p, self._min_p)
        return Filters(*(c[first:last] if used else None for c, used in zip(columns, self._used, strict=True)))

    def append(self, first: int, last: int, tokens: Tensor, logprobs: Tensor) -> None:
        """Adds one drawn token to each row `first` to `last - 1`."""
        where = (self._index[first:last], self.count[first:last])
        self._tokens[where] = tokens.int()
        self._logprobs[where] = logprobs
        self.token[first:last] = tokens
        self.count[first:last] += 1

    def tokens_of(self, row: int) -> list[int]:
        """Tokens drawn for a row so far."""
        tokens: list[int] = self._tokens[row, : int(self.count[row])].tolist()
        return tokens

    def logprobs_of(self, row: int) -> list[float]:
        """Log-probs of the tokens drawn for a row so far."""
        logprobs: list[float] = self._logprobs[row, : int(self.count[row])].tolist()
        return logprobs

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Rows `sources` take the places `targets`."""
        for buffer in (self._integers, self._floats):
            buffer[:, targets] = buffer[:, sources]
        for buffer in (self._tokens, self._logprobs):
            buffer[targets] = buffer[sources]

    def _widen(self, width: int) -> None:
        old = self._tokens.shape[1]
        if width <= old:
            return
        tokens, logprobs = (b.new_zeros(b.shape[0], width) for b in (self._tokens, self._logprobs))
        tokens[:, :old], logprobs[:, :old] = self._tokens, self._logprobs
        self._tokens, self._logprobs = tokens, logprobs
