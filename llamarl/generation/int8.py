"""Dynamic int8 projections for CPUs with VNNI: the low-precision generator on a laptop.

    W ~ s_w[:, None] * Q,   x ~ s_x[:, None] * P,   x W^T ~ (P Q^T) * s_x[:, None] * s_w + x_o W_o^T

Weights are quantised per output when they are written, activations per row at each call. A few input channels of every
trained model are tens of times larger than the rest and would leave the others few levels: these outliers `o` stay in
float32 (LLM.int8(), Dettmers et al. 2022), chosen once by what the channels carry on arbitrary tokens, since they are
the same for all text. On a 135M Llama this takes the KL divergence to the float32 policy from 0.041 to 0.009 nats.
Trainer and generator still differ: that is what the importance ratio against the recorded log-probs corrects.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from llamarl.core.errors import ConfigError

_LEVELS = 127
_SMALLEST = 1e-12
"""Scale of an all-zero row, which must not divide by zero."""
_OUTLIER_SHARE = 1 / 32
"""Share of a projection's input channels that stay in float32. Twice as many gain little."""


class Int8:
    """`x W^T + b` through int8; the weights exist in int8 only, but for the columns of outliers.

    Args:
        weight: `[out, in]`, any float dtype.
        bias: `[out]` or None, kept as it is.
        outliers: int64 indices of input channels that stay in float32; None means none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, outliers: Tensor | None = None) -> None:
        self.bias = bias
        self.outliers = torch.empty(0, dtype=torch.int64) if outliers is None else outliers
        self.kept = torch.empty(len(weight), len(self.outliers), dtype=torch.float32, device=weight.device)
        self.quantised = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        self.scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        self.write(slice(None), weight)

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]` float32 to `[M, out]` float32."""
        scale, levels = quantise_rows(x.index_fill(1, self.outliers, 0.0))
        result = torch._int_mm(levels, self.quantised.t()) * self.scale
        result *= scale
        result.addmm_(x[:, self.outliers], self.kept.t())
        return result if self.bias is None else result.add_(self.bias)

    @property
    def num_bytes(self) -> int:
        """Bytes of levels, scales and the columns kept in float32."""
        return self.quantised.nbytes + self.scale.nbytes + self.kept.nbytes

    def write(self, rows: slice, weight: Tensor) -> None:
        """Quantises `weight [rows, in]` as the weights of these outputs."""
        self.scale[rows], self.quantised[rows], self.kept[rows] = self._quantise(weight)

    def holds(self, rows: slice, weight: Tensor) -> bool:
        """True if these outputs hold what `weight` is quantised to, level by level: one small update changes some."""
        held = (self.scale[rows], self.quantised[rows], self.kept[rows])
        return all(torch.equal(mine, new) for mine, new in zip(held, self._quantise(weight), strict=True))

    def _quantise(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scales `[rows]`, levels `[rows, in]` and the float32 columns of the outliers."""
        weight = weight.to(self.scale)
        scale, levels = quantise_rows(weight.index_fill(1, self.outliers, 0.0))
        return scale[:, 0], levels, weight[:, self.outliers]


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scales `[M, 1]` float32 and levels `[M, in]` int8 in -127..127, such that `x ~ scale * levels`."""
    scale = x.abs().amax(dim=1, keepdim=True).div_(_LEVELS).clamp_(min=_SMALLEST)
    return scale, (x / scale).round_().to(torch.int8)


@torch.no_grad()
def find_outliers(model: nn.Module, num_tokens: int = 256) -> dict[str, Tensor]:
    """Finds the input channels that carry the largest values: by name of each linear module of `model`, int64 indices.

    Args:
        model: a transformers `*ForCausalLM` in evaluation mode.
        num_tokens: arbitrary tokens to read; outliers hardly depend on the text.
    """
    config: Any = model.config
    found: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest = inputs[0].abs().flatten(0, -2).amax(dim=0)
        found[name] = largest.topk(max(1, int(len(largest) * _OUTLIER_SHARE))).indices

    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(functools.partial(note, name)) for name, module in linears]
    try:
        length = min(num_tokens, config.max_position_embeddings)
        # Seeded, so that all generators of a run keep the same channels.
        ids = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
        model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def check_int8(device: torch.device | str) -> None:
    """Raises `ConfigError` where the int8 product is missing or slow."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_units = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    if torch.device(device).type != "cpu" or not has_units or not hasattr(torch, "_int_mm"):
        raise ConfigError(
            f"precision 'int8' needs a CPU with VNNI and a torch that offers _int_mm; device is {str(device)!r}, VNNI "
            f"{'found' if has_units else 'not found'}; set precision to fp32 or bf16"
        )
