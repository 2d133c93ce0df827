"""Shards of tensors (`core.shards`): of plain tensors, which are whole, and of DTensors, whose placements say it.

Under FSDP a DTensor is sharded along its first dimension, under tensor parallelism along one or the other; it is
replicated where no placement shards it.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.shards import Region, Shard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


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
