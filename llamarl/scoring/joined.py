"""Separate weights of one input as one product, forward and backward: fewer, larger matrix products on a CPU.

    forward    y  = x [W1; W2]^T               one product; no activations are copied together
    backward   dx = dy [W1; W2]                one product; no sum over parts
               d[W1; W2] = dy^T x              one product; the parts are views

The joined matrix is made anew each time instead of being kept, so no memory is held between the passes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llamarl.models.blocks import Joined
from llamarl.models.decoder import Decoder
from llamarl.models.linear import linear


class JoinedOnce:
    """A `models.decoder.Projection` over several live weights: one product on a CPU, one per weight elsewhere."""

    def __init__(self, joined: Joined) -> None:
        self._apart = joined

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]` to `[M, out]`."""
        if not x.is_cpu or torch.is_autocast_enabled("cpu"):
            return self._apart(x)
        # Read at each call: where weights are sharded, another tensor is whole each time.
        weights = [part.weight for part in self._apart.parts]
        biases = [part.bias for part in self._apart.parts if part.bias is not None]
        product: Tensor = _Product.apply(x, *weights)  # type: ignore[no-untyped-call]
        return product + torch.cat(biases) if biases else product


def join_projections(decoder: Decoder) -> Decoder:
    """Lets a live decoder compute q, k, v in one product, and gate and up in another."""
    for layer in decoder.layers:
        if isinstance(layer.qkv, Joined):
            layer.qkv = JoinedOnce(layer.qkv)
        if isinstance(layer.gate_up, Joined):
            layer.gate_up = JoinedOnce(layer.gate_up)
    return decoder


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        return linear(x, torch.cat(weights))

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, *weights = ctx.saved_tensors
        by_column = linear(x.t(), grad.t())  # [in, out]: oneDNN copies its left side, and x is the smaller one
        return linear(grad, torch.cat(weights).t()), *_split(by_column.t(), weights)


def _split(joined: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.split(joined, [len(weight) for weight in weights])  # type: ignore[no-any-return, no-untyped-call]
