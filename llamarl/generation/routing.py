"""The experts that the tokens in the cache went to, row by row: a record beside the cache, which it follows.

Shape legend: M tokens of a pass, L layers with experts, k experts per token.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


class RoutedRows:
    """`[tokens, L, k]` uint8 for each cache row."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Tensor]] = {}

    def read(self, rows: Sequence[int], num_known: int, experts: Tensor) -> None:
        """Notes `experts [M, L, k]` of tokens that rows read behind the first `num_known`, which they hold already."""
        for row in rows:
            known = [torch.cat(self._parts[row])[:num_known]] if num_known else []
            self._parts[row] = [*known, experts]

    def append(self, experts: Tensor) -> None:
        """Notes `experts [n, L, k]` of one more token of rows 0..n-1."""
        for row, own in enumerate(torch.split(experts, 1)):
            self._parts[row].append(own)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Rows `targets` have from now on what rows `sources` had before, all at once."""
        moved = [list(self._parts[source]) for source in sources]
        self._parts |= dict(zip(targets, moved, strict=True))

    def hold(self, rows: Collection[int]) -> None:
        """Forgets all rows but these."""
        self._parts = {row: parts for row, parts in self._parts.items() if row in rows}

    def of(self, row: int) -> bytes:
        """The experts of all tokens of a row, one token's after those of another."""
        return torch.cat(self._parts[row]).cpu().numpy().tobytes()
