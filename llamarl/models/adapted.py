"""A linear map with low-rank adapters beside it, as a decoder computes it where they are trained."""

from typing import Any

import torch
from torch import Tensor

from llamarl.models.blocks import Dense, Split
from llamarl.models.linear import linear


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
        return self._compute(x, self.bias)

    def multiply(self, x: Tensor) -> Tensor:
        """Maps `x [M, in]` without the bias."""
        return self._compute(x, None)

    def _compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        frozen = linear(x, self._frozen(x.device.type), bias)
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


class SharedDense(Dense):
    """A map that all ranks of a block have as a whole, each for its own inputs or outputs.

    Args:
        weight: `[out, in]`, the same on all ranks.
        split: sums its gradients over the ranks.
    """

    def __init__(self, weight: Tensor, split: Split) -> None:
        super().__init__(weight)
        self.split = split

    def forward(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]`."""
        return linear(x, self.split.enter(self.weight))
