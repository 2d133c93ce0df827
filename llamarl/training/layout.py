"""Which part of each parameter every rank of a trainer holds, and how the parts become one tensor again."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llamarl.core.shards import Region, Shard, Sharding
from llamarl.training.ranks import ALONE, Ranks


class Layout:
    """Everyone's shards of each parameter. An optimizer's moments lie as their parameters do.

    Args:
        ranks: who holds them.
        shards: by parameter, one for each rank. What is not named, every rank has as a whole.
    """

    def __init__(self, ranks: Ranks, shards: Mapping[str, tuple[Shard, ...]]) -> None:
        self.ranks, self._shards = ranks, shards
        mine = {name: of_all[ranks.rank].region for name, of_all in shards.items()}
        self.copies = frozenset(
            name for name, region in mine.items() if region in [s.region for s in shards[name][: ranks.rank]]
        )
        """Parameters whose numbers here are also those of a rank of a lower number."""

    def region(self, name: str) -> Region | None:
        """This rank's part of a parameter, or of `<parameter>.<moment>`; None where it has all of it."""
        shards = self._find(name)
        return None if shards is None else shards[self.ranks.rank].region

    @property
    def sharding(self) -> Sharding:
        """What every rank holds, as weight channels are told it."""
        of_rank = ({name: shards[rank] for name, shards in self._shards.items()} for rank in range(self.ranks.count))
        return Sharding(self.ranks.rank, tuple(of_rank))

    def shape(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        """The shape of the whole of which this rank holds `tensor`."""
        shards = None if tensor.ndim == 0 else self._find(name)
        return tuple(tensor.shape) if shards is None else shards[0].global_shape

    def num_bytes(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> int:
        """Bytes of the whole tensors of which this rank holds `tensors`, after a cast to `dtype`."""
        sizes = {name: torch.Size(self.shape(name, tensor)).numel() for name, tensor in tensors.items()}
        return sum(sizes[name] * (dtype or tensor.dtype).itemsize for name, tensor in tensors.items())

    @torch.no_grad()
    def put_together(self, name: str, tensor: Tensor) -> Tensor | None:
        """The whole tensor on the first rank, None on the others; `tensor` is what this rank holds. All call it."""
        shards = None if tensor.ndim == 0 else self._find(name)
        if shards is None:
            return tensor if self.ranks.is_first else None
        found = self.ranks.collect(tensor, max(shard.region.numel for shard in shards))
        if found is None:
            return None
        whole = tensor.new_empty(shards[0].global_shape)
        for flat, shard in zip(found, shards, strict=True):
            whole[index_of(shard.region)] = flat[: shard.region.numel].view(shard.region.shape)
        return whole

    def _find(self, name: str) -> tuple[Shard, ...] | None:
        return self._shards.get(name) or self._shards.get(name.rpartition(".")[0])


def index_of(region: Region) -> tuple[slice, ...]:
    """The region as an index into the whole tensor."""
    return tuple(slice(start, end) for start, end in zip(region.offset, region.end, strict=True))


WHOLE = Layout(ALONE, {})
"""The layout of one rank."""
