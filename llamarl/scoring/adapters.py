"""Lets the packed decoder, which reads only weights, compute with the low-rank adapters beside them."""

from typing import Any

from torch import nn

from llamarl.models.adapted import AdaptedDense
from llamarl.models.blocks import Block, Joined, name_module
from llamarl.models.decoder import Decoder
from llamarl.scoring.joined import join_projections


def prepare_projections(decoder: Decoder, model: nn.Module) -> Decoder:
    """Lets a live decoder compute as the model it reads trains.

    Args:
        decoder: over `model`'s weights; changed in place.
        model: with adapters, which are then added to their projections, or without, whose projections are joined.

    Returns:
        The decoder.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]  # peft has many classes
    if not layers:
        return join_projections(decoder)
    by_weight = {id(layer.weight): layer for layer in layers}

    def adapt(block: Block, projection: Any) -> Any:
        if projection is None:  # of a mixture of experts, which has no adapters
            return None
        if isinstance(projection, Joined):
            return Joined(tuple(adapt(block, part) for part in projection.parts))
        layer = by_weight.get(id(projection.weight))
        if layer is None:
            return projection
        name = next(name for name, module in block.named_modules() if module is projection)
        adapted = AdaptedDense(projection.weight, projection.bias, layer)
        name_module(block, name, adapted)  # so that whatever acts on the block's parameters finds the adapters'
        return adapted

    for block in decoder.blocks:
        layer = block.layer
        layer.qkv, layer.out = adapt(block, layer.qkv), adapt(block, layer.out)
        layer.gate_up, layer.down = adapt(block, layer.gate_up), adapt(block, layer.down)
    return decoder
