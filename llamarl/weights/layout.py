"""What each rank holds of the weights, and that the ranks together hold them all.

layout_of(named tensors)        this rank's part of each parameter
whole_layout(layouts)           the layout of one rank that would hold everything
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.functional.shards import Layout, Region, Shard, shard_of

Layouts = Mapping[int, Layout]
"""The layout of each rank of one side."""


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, Shard]:
    """This rank's layout, from plain tensors and DTensors.

    Raises:
        WeightSyncError: a tensor's placements don't say what it holds.
    """
    return {name: shard_of(name, tensor) for name, tensor in tensors.items()}


def whole_layout(layouts: Layouts) -> dict[str, Shard]:
    """The layout of a rank that holds every parameter whole.

    Raises:
        WeightSyncError: two ranks disagree on a parameter's shape or dtype.
    """
    whole: dict[str, Shard] = {}
    for rank, layout in layouts.items():
        for name, shard in layout.items():
            mine = Shard.whole(shard.global_shape, shard.dtype)
            if whole.setdefault(name, mine) != mine:
                was, now = describe(whole[name]), describe(mine)
                raise WeightSyncError(f"weights: {name!r} is {was} elsewhere and {now} on rank {rank}")
    return whole


def to_json(layout: Layout) -> dict[str, Any]:
    """The layout as JSON takes it: `{name: [global shape, offset, shape, dtype]}`."""
    return {
        name: [shard.global_shape, shard.region.offset, shard.region.shape, shard.dtype]
        for name, shard in layout.items()
    }


def from_json(stored: Mapping[str, Any]) -> dict[str, Shard]:
    """The layout that `to_json` wrote."""
    return {
        name: Shard(tuple(global_shape), Region(tuple(offset), tuple(shape)), dtype)
        for name, (global_shape, offset, shape, dtype) in stored.items()
    }


def describe(shard: Shard) -> str:
    """Dtype and shape of the whole tensor, for messages."""
    return f"{shard.dtype} {list(shard.global_shape)}"


__all__ = ["Layout", "Layouts", "Region", "Shard", "describe", "from_json", "layout_of", "to_json", "whole_layout"]
