"""A decoder's projections with low-rank adapters, which the packed decoder, reading only weights, would leave out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llamarl.models.decoder import Decoder, Dense, Joined
from llamarl.models.linear import linear
from llamarl.scoring.joined import join_projections


@dataclass(slots=True)
class AdaptedDense(Dense):
    """Computes `x W^T + b + scale x A^T B^T`."""

    layer: Any = None
    """The layer that peft wraps around a linear one."""
    half: Tensor | None = None
    """The weight in half precision, once it was needed."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]`, without the adapters while they are switched off."""
        frozen = linear(x, self._frozen(x.device.type), self.bias)
        if self.layer.disable_adapters:
            return frozen
        low, high = self.layer.lora_A["default"].weight, self.layer.lora_B["default"].weight
        added: Tensor = self.layer.scaling["default"] * linear(linear(x, low), high)
        return frozen + added

    def _frozen(self, device: str) -> Tensor:
        """The weight as autocast wants it: cast once, since it never changes, where autocast would at every call."""
        if self.weight.requires_grad or not torch.is_autocast_enabled(device):
            return self.weight
        if self.half is None:
            self.half = self.weight.detach().to(torch.get_autocast_dtype(device))
        return self.half


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
