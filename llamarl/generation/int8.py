"""Dynamic int8 projections for CPUs with VNNI: the low-precision generator on a laptop.

    W ~ s_w[:, None] * Q,   x ~ s_x[:, None] * P,   x W^T ~ (P Q^T) * s_x[:, None] * s_w

Weights are quantised per output when they are written, activations per row at each call; the product is exact in int32,
so a row's result doesn't depend on the rows beside it. Trainer and generator then differ: that is what the importance
ratio against the recorded log-probs corrects.
"""

from typing import Any

import torch
from torch import Tensor

from llamarl.core.errors import ConfigError

_LEVELS = 127
_SMALLEST = 1e-12
"""Scale of an all-zero row, which must not divide by zero."""


class Int8:
    """`x W^T + b` through int8; the weights exist in int8 only.

    Args:
        weight: `[out, in]`, any float dtype.
        bias: `[out]` or None, kept as it is.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self.quantised = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        self.scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        self.write(slice(None), weight)

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]` float32 to `[M, out]` float32."""
        scale, levels = quantise_rows(x)
        result = torch._int_mm(levels, self.quantised.t()) * self.scale
        result *= scale
        return result if self.bias is None else result.add_(self.bias)

    def write(self, rows: slice, weight: Tensor) -> None:
        """Quantises `weight [rows, in]` as the weights of these outputs."""
        scale, levels = quantise_rows(weight.to(self.scale))
        self.scale[rows], self.quantised[rows] = scale[:, 0], levels

    def gap(self, rows: slice, weight: Tensor) -> float:
        """Largest distance between held and given weights in units of half a level: at most 1 if they are the same."""
        scale = self.scale[rows].unsqueeze(1)
        distance = (self.quantised[rows] * scale - weight.to(scale)).abs() / (0.5 * scale)
        return float(distance.max()) / (1 + 1e-4)  # the rounding of the division itself


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scales `[M, 1]` float32 and levels `[M, in]` int8 in -127..127, such that `x ~ scale * levels`."""
    scale = x.abs().amax(dim=1, keepdim=True).div_(_LEVELS).clamp_(min=_SMALLEST)
    return scale, (x / scale).round_().to(torch.int8)


def check_int8(device: torch.device | str) -> None:
    """Raises `ConfigError` where the int8 product is missing or slow."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_units = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    if torch.device(device).type != "cpu" or not has_units or not hasattr(torch, "_int_mm"):
        raise ConfigError(
            f"precision 'int8' needs a CPU with VNNI and a torch that offers _int_mm; device is {str(device)!r}, VNNI "
            f"{'found' if has_units else 'not found'}; set precision to fp32 or bf16"
        )
