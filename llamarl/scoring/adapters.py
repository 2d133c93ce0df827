"""A decoder's projections with low-rank adapters, which the packed decoder, reading only weights, would leave out."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from llamarl.models.decoder import Decoder, Dense, Joined
from llamarl.models.linear import linear
from llamarl.scoring.joined import join_projections


@dataclass(slots=True)
class AdaptedDense(Dense):
    """Computes `x W^T + b + scale x A^T B^T`."""

    layer: Any = None
    """The layer that peft wraps around a linear one."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]`."""
        low, high = self.layer.lora_A["default"].weight, self.layer.lora_B["default"].weight
        added: Tensor = self.layer.scaling["default"] * linear(linear(x, low), high)
        return linear(x, self.weight, self.bias) + added


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

    def adapt(projection: Any) -> Any:
        if isinstance(projection, Joined):
            return Joined(tuple(adapt(part) for part in projection.parts))
        layer = by_weight.get(id(projection.weight))
        return projection if layer is None else AdaptedDense(projection.weight, projection.bias, layer=layer)

    for block in decoder.layers:
        block.qkv, block.out = adapt(block.qkv), adapt(block.out)
        block.gate_up, block.down = adapt(block.gate_up), adapt(block.down)
    return decoder
