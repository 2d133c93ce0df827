"""The parts of a decoder: linear maps, norms, and the transformer block that is made of them.

Each is a module, so that whatever acts on modules acts on them: hooks, sharding, checkpoints of activations. Their
parameters have the names that Hugging Face gives them. A generator's block holds plain tensors in wide matrices instead
of parameters, and computes the same.

Shape legend: M tokens, d hidden size, H query heads, K key/value heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from llamarl.models.experts import Experts
from llamarl.models.linear import linear

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`(layer index, q [M, H, D], k [M, K, D], v [M, K, D]) -> [M, H * D]`; q and k are already rotated."""


Recompute = Literal["none", "selective", "full"]
"""Activations of a block that are computed again in the backward pass: none, those between matrix products, or all."""


class Projection(Protocol):
    """A linear map `[M, in] -> [M, out]`: dense, joined from several weights, or quantised."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]`."""


class Dense(nn.Module):
    """`x W^T + b`.

    Args:
        weight: `[out, in]`; a parameter is trained, a plain tensor is not.
        bias: `[out]`.
        padding_id: the token whose embedding takes no gradient, as in `nn.Embedding`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, padding_id: int | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.padding_id = weight, bias, padding_id

    def forward(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]`."""
        return linear(x, self.weight, self.bias)

    def multiply(self, x: Tensor) -> Tensor:
        """Maps `x [M, in]` without the bias."""
        return linear(x, self.weight)

    def lookup(self, ids: Tensor) -> Tensor:
        """The weights of the outputs `ids [M]`, `[M, in]`: as an embedding."""
        return F.embedding(ids, self.weight, self.padding_id)


class FixedDense(Dense):
    """A generator's map. It is called for every token, so that even to look for hooks would take time."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]`."""
        return linear(x, self.weight, self.bias)


@dataclass(slots=True)
class Joined:
    """Several maps of one input, side by side: separate weights behave as one wide matrix."""

    parts: tuple[Dense, ...]

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]`."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


class Split(Protocol):
    """The share that one of several ranks has in a block whose heads and whose inner width are split over them."""

    def enter(self, x: Tensor) -> Tensor:
        """Returns `x`, the same on all ranks, for this rank's share; its gradients are summed over the ranks."""

    def leave(self, projection: Projection, x: Tensor) -> Tensor:
        """Sums over the ranks what `projection` makes of each one's `x`."""


class Norm(nn.Module):
    """Root-mean-square norm over the last dimension, times a weight.

    Args:
        weight: one number for each place of that dimension.
        eps: added to the mean square.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps
        self._eps = torch.full((), eps, device=weight.device)
        self.split: Split | None = None
        """Set where each rank norms other heads with the same weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Norms `x [..., d]`."""
        if torch.is_grad_enabled() or x.dtype != torch.float32:
            weight = self.weight if self.split is None else self.split.enter(self.weight)
            return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), self.eps)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # on a CPU, two thirds of rms_norm's time
        scale = torch.addcmul(self._eps, norm, norm, value=1.0 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(self.weight)


class FixedNorm(Norm):
    """A generator's norm, called as directly as `FixedDense`."""

    def __call__(self, x: Tensor) -> Tensor:
        """Norms `x [..., d]`."""
        return self.forward(x)


@dataclass(slots=True)
class Layer:
    """The maps of one transformer block, in the order in which they are applied."""

    attention_norm: Norm
    qkv: Projection
    query_norm: Norm | None
    key_norm: Norm | None
    out: Projection
    mlp_norm: Norm
    gate_up: Projection | None
    down: Projection | None
    experts: Experts | None = None
    """A mixture of experts, in the place of `gate_up` and `down`."""


class Block(nn.Module):
    """One transformer block: attention and a gated MLP, each behind a norm and beside the residual stream.

    Args:
        index: number of the block.
        layer: its maps. Where they hold parameters, `names` gives these their names.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: size of a head.
        names: modules with parameters, by the names that they have below this block.
    """

    def __init__(
        self,
        index: int,
        layer: Layer,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        names: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.index, self.layer = index, layer
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.split: Split | None = None
        """Set where several ranks share the block."""
        self.recompute: Recompute = "none"
        for name, module in (names or {}).items():
            name_module(self, name, module)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, num_tokens: int, experts: Tensor | None = None
    ) -> Tensor:
        """Computes `[M, d] -> [M, d]`.

        Args:
            x: the residual stream, `[M, d]`.
            cos: rotary factors, `[M, 1, D]`.
            sin: likewise, its first half negated.
            attend: the attention strategy.
            num_tokens: rows that mean something; attention sees no others.
            experts: `[M, k]`, the experts that each token goes to, with -1 where the router chooses; None: everywhere.
        """
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self._compute(x, cos, sin, attend, num_tokens, experts)
        options: dict[str, Any] = {"context_fn": _keep_products} if self.recompute == "selective" else {}
        # Nothing is drawn at random, so the state of the generators need not be kept.
        computed: Tensor = checkpoint(
            *(self._compute, x, cos, sin, attend, num_tokens, experts),
            use_reentrant=False,
            preserve_rng_state=False,
            **options,
        )
        return computed

    def _compute(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, num_tokens: int, experts: Tensor | None
    ) -> Tensor:
        x = x + self._leave(self.layer.out, self._attention(x, cos, sin, attend, num_tokens))
        return x + self._mlp(self.layer.mlp_norm(x), experts)

    def _mlp(self, x: Tensor, experts: Tensor | None) -> Tensor:
        layer = self.layer
        if layer.experts is not None:
            mixed: Tensor = layer.experts(x, experts)
            return mixed
        assert layer.gate_up is not None and layer.down is not None
        gate, up = layer.gate_up(self._enter(x)).chunk(2, dim=-1)
        return self._leave(layer.down, F.silu(gate) * up)

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, num_tokens: int) -> Tensor:
        layer, num_q, num_qk = self.layer, self.num_heads, self.num_heads + self.num_kv_heads
        qkv = layer.qkv(self._enter(layer.attention_norm(x))).view(len(x), -1, self.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            qk = torch.cat([layer.query_norm(qkv[:, :num_q]), layer.key_norm(qkv[:, num_q:num_qk])], dim=1)
        else:
            qk = qkv[:, :num_qk]
        qk = rotate(qk, cos, sin)
        if num_tokens < len(x):
            qk, qkv = qk[:num_tokens], qkv[:num_tokens]
        mixed = attend(self.index, qk[:, :num_q], qk[:, num_q:], qkv[:, num_qk:])
        return F.pad(mixed, (0, 0, 0, len(x) - num_tokens)) if len(mixed) < len(x) else mixed

    def _enter(self, x: Tensor) -> Tensor:
        return x if self.split is None else self.split.enter(x)

    def _leave(self, projection: Projection, x: Tensor) -> Tensor:
        return projection(x) if self.split is None else self.split.leave(projection, x)


def kept_products() -> list[Any]:
    """The operations whose results `selective` recomputation keeps, as they are dear: products and attention."""
    aten = torch.ops.aten
    return [
        *(aten.mm.default, aten.addmm.default, aten.bmm.default, torch.ops.mkldnn._linear_pointwise.default),
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    ]


def _keep_products() -> Any:
    """Contexts of a checkpoint that keeps what matrix products and attention give."""
    return create_selective_checkpoint_contexts(kept_products())  # type: ignore[no-untyped-call]


def name_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` below `root` under a dotted name, with plain modules on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, `x [M, heads, D]` (RoFormer, Su et al. 2021, in the half-split layout)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
