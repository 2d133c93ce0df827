"""A weight channel that lies, for tests of those who must notice."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from llamarl.core.protocols import WeightChannel
from llamarl.core.shards import Sharding

Fault = Literal["none", "skipped", "partial", "zeros", "old", "swapped"]
"""Fault of `fetch`, by what it does to the receiver:

- skipped: nothing is copied, yet the fetch succeeds;
- partial: the second half of each tensor is not copied;
- zeros: all tensors are zero;
- old: the version before arrives under the new number;
- swapped: two tensors of one shape change places.
"""


class FaultyChannel:
    """Wraps a channel; `fetch(version, into)` succeeds but delivers something else.

    Args:
        channel: the one that works.
        fault: what goes wrong from now on; assign `fault` to change it.
    """

    def __init__(self, channel: WeightChannel, fault: Fault = "none") -> None:
        self.channel = channel
        self.dtype = channel.dtype
        self.fault: Fault = fault

    def open(self, host: str) -> "FaultyChannel":
        """Opens faithfully; the receivers' end has the fault of now."""
        return FaultyChannel(self.channel.open(host), self.fault)

    def publish(self, version: int, tensors: Mapping[str, Tensor], sharding: Sharding | None = None) -> None:
        """Publishes faithfully."""
        self.channel.publish(version, tensors, sharding)

    @torch.no_grad()
    def fetch(self, version: int, into: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """Fetches, then spoils the result. Without `into` the receiver is taken to start from ones."""
        good = self.channel.fetch(version - 1 if self.fault == "old" else version)
        into = {name: torch.ones_like(tensor) for name, tensor in good.items()} if into is None else into
        if self.fault == "swapped":
            good = _swap(good)
        for name, target in into.items():
            target.detach().copy_(self._spoil(target.detach(), good[name].to(target)))
        return into

    @contextmanager
    def reading(self, version: int) -> Iterator[Mapping[str, Tensor]]:
        """Lends what `fetch` would deliver."""
        if self.fault == "none":
            with self.channel.reading(version) as tensors:
                yield tensors
        else:
            yield self.fetch(version)

    async def prepare(self, version: int) -> None:
        """Prepares faithfully."""
        await self.channel.prepare(version)

    def close(self) -> None:
        """Closes the wrapped channel."""
        self.channel.close()

    def _spoil(self, held: Tensor, sent: Tensor) -> Tensor:
        if self.fault == "skipped":
            return held
        if self.fault == "zeros":
            return torch.zeros_like(sent)
        if self.fault == "partial":
            half = sent.numel() // 2
            return torch.cat([sent.flatten()[:half], held.flatten()[half:]]).view(sent.shape)
        return sent


def _swap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Exchanges the first two tensors that have one shape and different values."""
    names = list(tensors)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if tensors[a].shape == tensors[b].shape and not torch.equal(tensors[a], tensors[b]):
                return {**tensors, a: tensors[b], b: tensors[a]}
    raise ValueError(f"no two tensors to swap among {names}")
