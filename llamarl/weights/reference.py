"""Weights from one layout to another in one process, by way of the whole tensors: what every other way must equal."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.functional.shards import view_region
from llamarl.weights.layout import Layouts, whole_layout

Held = Mapping[int, Mapping[str, Tensor]]
"""The local tensors of each rank, by parameter name."""


def reshard(held: Held, sources: Layouts, destinations: Layouts) -> dict[int, dict[str, Tensor]]:
    """What each destination must hold in the end, in the sources' dtype.

    Args:
        held: the local tensors of each source.
        sources: their layouts.
        destinations: the layouts of the ranks that receive.

    Raises:
        WeightSyncError: the sources do not hold every element, or hold different values of one.
    """
    whole = assemble(held, sources)
    shapes = whole_layout(sources)
    return {
        rank: {name: view_region(whole[name], shapes[name], shard.region).clone() for name, shard in layout.items()}
        for rank, layout in destinations.items()
    }


def assemble(held: Held, sources: Layouts) -> dict[str, Tensor]:
    """The whole tensors, from all ranks' parts.

    Raises:
        WeightSyncError: an element is missing, or two ranks hold different values of it.
    """
    tensors: dict[str, Tensor] = {}
    for name, whole in whole_layout(sources).items():
        tensors[name] = torch.empty(whole.global_shape, dtype=getattr(torch, whole.dtype))
        is_filled = torch.zeros(whole.global_shape, dtype=torch.bool)
        for rank, layout in sources.items():
            if name not in layout:
                continue
            region, part = layout[name].region, held[rank][name]
            target, filled = view_region(tensors[name], whole, region), view_region(is_filled, whole, region)
            if not torch.equal(target[filled], part[filled]):
                raise WeightSyncError(f"weights: rank {rank} holds other values of {name}{region} than ranks before it")
            target.copy_(part)
            filled.fill_(True)
        if not is_filled.all():
            raise WeightSyncError(f"weights: no source holds all of {name!r}")
    return tensors
