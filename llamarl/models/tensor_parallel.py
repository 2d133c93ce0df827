"""A decoder whose blocks are cut up over ranks: each computes some of the heads and some of the MLP's inner width.

    q, k, v, gate, up     rows of their weights    each rank a share of the outputs
    out, down             columns                  each rank a share of the inputs; what they give is summed

Everything else, embeddings, head and experts included, every rank computes as a whole. "Megatron-LM: Training
Multi-Billion Parameter Language Models Using Model Parallelism", Shoeybi et al. 2019,
https://arxiv.org/abs/1909.08053, section 3.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llamarl.models.blocks import Dense, Projection
from llamarl.models.decoder import Decoder, why_unsupported
from llamarl.models.linear import linear

_BY_ROWS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_BY_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")


class Cut(NamedTuple):
    """The stretch of one dimension of a parameter that a rank has."""

    dim: int
    start: int
    size: int
    """Length of the whole dimension."""


def why_not_split(config: Any, num_parts: int) -> str | None:
    """Says why a model of `config` cannot be cut into `num_parts`; None if it can."""
    if num_parts == 1:
        return None
    if reason := why_unsupported(config):
        return f"only llamarl's own modules can be cut up, and {reason}"
    heads = config.num_attention_heads
    sizes = {
        "query heads": heads,
        "key/value heads": config.num_key_value_heads or heads,
        "numbers of the MLP's inner width": config.intermediate_size,
    }
    uneven = [f"{size} {name}" for name, size in sizes.items() if size % num_parts]
    return f"{', '.join(uneven)} cannot be cut into {num_parts} equal parts" if uneven else None


def cut_up(decoder: Decoder, part: int, num_parts: int, group: Any) -> dict[str, Cut]:
    """Leaves of a live decoder one part of each block, in place.

    Args:
        decoder: of a config for which `why_not_split` has no reason.
        part: number of this rank's part.
        num_parts: parts together.
        group: the process group of the ranks that share a block.

    Returns:
        What of each parameter was kept; those that stay whole are not named.
    """
    cuts: dict[str, Cut] = {}
    split = Summed(group)
    for block in decoder.blocks:
        prefix = f"model.layers.{block.index}."
        for names, dim in ((_BY_ROWS, 0), (_BY_COLUMNS, 1)):
            for name in names:
                if name.startswith("mlp.") and block.layer.experts is not None:
                    continue  # experts stay whole: every rank computes the same
                cuts |= _cut(block.get_submodule(name), dim, part, num_parts, f"{prefix}{name}")
        block.num_heads, block.num_kv_heads = block.num_heads // num_parts, block.num_kv_heads // num_parts
        block.split = split
        for norm in (block.layer.query_norm, block.layer.key_norm):
            if norm is not None:
                norm.split = split
    return cuts


def _cut(dense: nn.Module, dim: int, part: int, num_parts: int, name: str) -> dict[str, Cut]:
    assert isinstance(dense, Dense)
    size = dense.weight.shape[dim]
    length = size // num_parts
    stretch = slice(part * length, (part + 1) * length)
    dense.weight = _parameter(dense.weight[stretch] if dim == 0 else dense.weight[:, stretch], dense.weight)
    cuts = {f"{name}.weight": Cut(dim, stretch.start, size)}
    if dim == 0 and dense.bias is not None:
        dense.bias = _parameter(dense.bias[stretch], dense.bias)
        cuts[f"{name}.bias"] = Cut(0, stretch.start, size)
    return cuts


def _parameter(kept: Tensor, whole: Tensor) -> nn.Parameter:
    return nn.Parameter(kept.detach().clone(), requires_grad=whole.requires_grad)


class Summed:
    """The sums over the ranks of one group that make a block whole; a `blocks.Split`."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def enter(self, x: Tensor) -> Tensor:
        """Returns `x`; its gradients are summed over the ranks."""
        entered: Tensor = _Enter.apply(x, self._group)  # type: ignore[no-untyped-call]
        return entered

    def leave(self, projection: Projection, x: Tensor) -> Tensor:
        """Sums what `projection` makes of each rank's `x`; a bias is added once."""
        bias = projection.bias if isinstance(projection, Dense) else None
        product = linear(x, projection.weight) if isinstance(projection, Dense) else projection(x)
        total: Tensor = _Leave.apply(product, self._group)  # type: ignore[no-untyped-call]
        return total if bias is None else total + bias


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
