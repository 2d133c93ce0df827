"""`x W^T + b` by the fastest fp32 product of this machine.

torch multiplies fp32 matrices on a CPU with MKL, which leaves AVX-512 unused on CPUs of other makers; oneDNN, which
torch ships too, uses it and is about twice as fast there. Everywhere else this is `torch.nn.functional.linear`.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW_ROWS = 16
"""Fewer rows than this, times a small weight, are bound by the call itself, and MKL's call is shorter."""
_FEWEST_ROWS = 6
"""Six rows take as long as one, and less than two: their kernel reads memory faster."""
_SMALL_WEIGHT = 1 << 16
_MANY_ROWS = 256
"""Up to here row counts recur (decode steps), and oneDNN keeps the kernels it built for them, at 0.4 ms each."""
_WORTH_BUILDING = 1 << 26
"""Multiplications from which a product gains more than building its kernel costs, however rare its row count."""
_COMMON = 64
"""Row counts that are a multiple of this recur: who packs many rows rounds up."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [M, in]`, `weight [out, in]`, `bias [out]` -> `[M, out]`; differentiable once."""
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    rows = x.shape[0]
    if rows <= _MANY_ROWS and rows < (rounded := round_rows(rows)):
        return linear(F.pad(x, (0, 0, 0, rounded - rows)), weight, bias)[:rows]
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        result: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
        return result if bias is None else result + bias
    return product(x, weight, bias)


def round_rows(rows: int) -> int:
    """The next row count for which kernels recur: fewer different ones to build and to keep."""
    if rows <= _FEWEST_ROWS:
        return _FEWEST_ROWS
    unit = 4 if rows <= _FEW_ROWS else 8 if rows <= _MANY_ROWS else _COMMON
    return rows + -rows % unit


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.dtype != torch.float32 or x.dim() != 2 or not x.is_cpu or not is_onednn_faster():
        return False
    if torch.is_autocast_enabled("cpu"):  # who asked for half precision must get it, and oneDNN runs it anyway
        return False
    rows = x.shape[0]
    if rows < _FEW_ROWS:
        return rows > 0 and weight.numel() >= _SMALL_WEIGHT
    return rows <= _MANY_ROWS or rows % _COMMON == 0 or rows * weight.numel() >= _WORTH_BUILDING


@cache
def is_onednn_faster() -> bool:
    """True where fp32 products belong to oneDNN: on an AVX-512 CPU that isn't Intel's."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    is_foreign = "intel" not in str(capabilities.get("cpu_name", "intel")).lower()
    has_op = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return is_foreign and has_op and bool(capabilities.get("avx512_f"))


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` by oneDNN, without gradients; `weight` may be in oneDNN's own order."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if needs_x else None,
            _weight_gradient(gradient, x) if needs_weight else None,
        )


def _weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """`gradient^T x`. oneDNN copies its left side: where that is the larger one, MKL is faster after all."""
    return gradient.t() @ x if gradient.shape[1] >= x.shape[1] else product(gradient.t(), x.t())
