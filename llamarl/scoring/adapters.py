"""A decoder's projections with low-rank adapters, which the packed decoder, reading only weights, would leave out."""

from typing import Any

import torch
from torch import Tensor, nn

from llamarl.models.blocks import Block, Dense, Joined, name_module
from llamarl.models.decoder import Decoder
from llamarl.models.linear import linear
from llamarl.scoring.joined import join_projections


class AdaptedDense(Dense):
    """Computes `x W^T + b + scale x A^T B^T`.

    Args:
        weight: `[out, in]`, frozen.
        bias: `[out]`.
        layer: the layer that peft wraps around a linear one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: Any) -> None:
        super().__init__(weight, bias)
        self.cast_weight: Tensor | None = None
        """The weight in half precision, once it was needed."""
        self.is_sharded = False
        """Set where `weight` is gathered from several ranks at each call."""
        self.lora_A, self.lora_B = Dense(layer.lora_A["default"].weight), Dense(layer.lora_B["default"].weight)
        self._layer = (layer,)  # in a tuple: its parameters have their names here already

    @property
    def layer(self) -> Any:
        """The layer that peft wraps around a linear one."""
        return self._layer[0]

    def forward(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]`, without the adapters while they are switched off."""
        frozen = linear(x, self._frozen(x.device.type), self.bias)
        if self.layer.disable_adapters:
            return frozen
        added: Tensor = self.layer.scaling["default"] * self.lora_B(self.lora_A(x))
        return frozen + added

    def _frozen(self, device: str) -> Tensor:
        """The weight as autocast wants it: cast once, since it never changes, where autocast would at every call.

        Not where it is sharded: whole weights are there for the time of a call only.
        """
        if self.is_sharded or self.weight.requires_grad or not torch.is_autocast_enabled(device):
            return self.weight
        if self.cast_weight is None:
            self.cast_weight = self.weight.detach().to(torch.get_autocast_dtype(device))
        return self.cast_weight


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
