"""Which part of a tensor a rank holds: boxes with a global shape around them.

A plain tensor is whole. A `DTensor` is sharded as its placements say: under FSDP along its first dimension, under
tensor parallelism along one or the other, and replicated where no placement shards it.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

from llamarl.core.errors import WeightSyncError

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a tensor: the elements from `offset` on, `shape` of them along each dimension."""

    offset: Sizes
    shape: Sizes

    @property
    def numel(self) -> int:
        """Its number of elements; that of a scalar is 1."""
        return math.prod(self.shape)

    @property
    def end(self) -> Sizes:
        """The first index behind it, along each dimension."""
        return tuple(start + size for start, size in zip(self.offset, self.shape, strict=True))

    def intersect(self, other: "Region") -> "Region":
        """The elements of both; of shape 0 along a dimension in which they don't meet."""
        start = tuple(map(max, self.offset, other.offset))
        end = tuple(map(min, self.end, other.end))
        return Region(start, tuple(max(0, stop - begin) for begin, stop in zip(start, end, strict=True)))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.offset, self.end, strict=True)) + "]"


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank holds of one tensor."""

    global_shape: Sizes
    region: Region
    dtype: str
    """As in `torch.DTYPE`: "float32"."""

    @classmethod
    def whole(cls, shape: Sizes, dtype: str) -> "Shard":
        """The shard of a rank that holds all of the tensor."""
        return cls(shape, Region((0,) * len(shape), shape), dtype)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        size: int = getattr(torch, self.dtype).itemsize
        return size


Layout = Mapping[str, Shard]
"""What one rank holds, by parameter name."""


def shard_of(name: str, tensor: Tensor) -> Shard:
    """The part of parameter `name` that this rank holds in `tensor`.

    Raises:
        WeightSyncError: the tensor is a sum that was not reduced yet, or its local part is not what its placements say.
    """
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if not is_sharded(tensor):
        return Shard.whole(shape, dtype)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(placement.is_partial() for placement in tensor.placements):
        raise WeightSyncError(
            f"weights: {name!r} is a sum not yet reduced ({tensor.placements}); redistribute it first"
        )
    local, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    held = list(tensor.to_local().shape)
    if held != list(local):
        raise WeightSyncError(f"weights: {name!r} holds {held} of {list(shape)}, its placements say {list(local)}")
    return Shard(shape, Region(tuple(offset), tuple(local)), dtype)


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor, whose elements lie on several ranks, or on each of them."""
    # Who never imported DTensors holds none; importing them to ask would take a second of each process's start.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """The elements that this rank holds, without a gradient's history; no copy."""
    return (tensor.to_local() if is_sharded(tensor) else tensor).detach()


def view_region(held: Tensor, shard: Shard, region: Region) -> Tensor:
    """The view of `held`, the elements of `shard`, that is `region` of the whole tensor."""
    begins = (begin - start for begin, start in zip(region.offset, shard.region.offset, strict=True))
    return held[tuple(slice(begin, begin + size) for begin, size in zip(begins, region.shape, strict=True))]
