"""What each rank holds of the weights, from tensors, and what all of them hold together.

layout_of(named tensors)        this rank's part of each parameter
gather_sharding(named tensors)  every rank's, from all ranks of the default process group
whole_layout(layouts)           the layout of one rank that would hold everything
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.shards import Layout, Region, Shard, Sharding
from llamarl.functional.shards import shard_of

Layouts = Mapping[int, Layout]
"""The layout of each rank of one side."""


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, Shard]:
    """This rank's layout, from plain tensors and DTensors.

    Raises:
        WeightSyncError: a tensor's placements don't say what it holds.
    """
    return {name: shard_of(name, tensor) for name, tensor in tensors.items()}


def lone_sharding(tensors: Mapping[str, Tensor]) -> Sharding:
    """The sharding of a rank that holds everything.

    Raises:
        WeightSyncError: this rank holds only a part of a tensor.
    """
    layout = layout_of(tensors)
    for name, shard in layout.items():
        if shard.region.shape != shard.global_shape:
            raise WeightSyncError(f"weights: this rank holds {name}{shard.region} of {shard} alone; pass the sharding")
    return Sharding(0, (layout,))


def gather_sharding(tensors: Mapping[str, Tensor]) -> Sharding:
    """The layouts of all ranks of the default process group, each of which calls it with its own tensors."""
    # As JSON, since no rank should unpickle what comes over a network.
    text = torch.frombuffer(bytearray(json.dumps(to_json(layout_of(tensors))).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([len(text)]))
    longest = max(int(length) for length in lengths)
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(texts, torch.cat([text, text.new_zeros(longest - len(text))]))
    told = (bytes(text[: int(length)].numpy()) for text, length in zip(texts, lengths, strict=True))
    return Sharding(dist.get_rank(), tuple(from_json(json.loads(each)) for each in told))


def cast_layout(layout: Layout, dtype: torch.dtype | None) -> Layout:
    """The layout of the same tensors after a cast of those of floating point; None: of the tensors themselves."""
    if dtype is None:
        return layout
    name = str(dtype).removeprefix("torch.")
    floating = {key: getattr(torch, shard.dtype).is_floating_point for key, shard in layout.items()}
    return {key: replace(shard, dtype=name) if floating[key] else shard for key, shard in layout.items()}


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
                raise WeightSyncError(f"weights: {name!r} is {whole[name]} elsewhere and {mine} on rank {rank}")
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
