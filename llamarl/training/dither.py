"""Float32 weights that passes in bf16 see move.

    w  ->  a random place in  [(w- + w) / 2, (w + w+) / 2],   w-, w+ the neighbours of w in bf16

Mixed precision keeps weights in float32 and rounds them to bf16 for each pass. Released checkpoints are in bf16, so
each weight begins in the middle of what rounds to it, and no pass sees a change before it exceeds half the spacing: at
a weight of 0.1, 2.4e-4, which takes Adam 24 steps at 1e-5 if all go one way. The policy is trained, published and
proved, and hardly moves. From a random place on, a share of the weights crosses at each step, and what passes see is
what was added, on average, from the first step. The rounded weights at the start are the same.

This is dither, as of sound and pictures (L. G. Roberts, "Picture coding using pseudo-random noise", 1962), drawn once,
and not at each rounding as in stochastic rounding: trainer and generators round alike.
"""

import hashlib

import torch
from torch import Tensor, nn

_INSIDE = 1 - 2.0**-14
"""Share of an interval that is drawn from: at its very ends float32 itself could round to the wrong side."""

_NEXT_TO_ZERO = 2 * torch.finfo(torch.bfloat16).tiny


@torch.no_grad()
def dither_weights(model: nn.Module, seed: int) -> None:
    """Moves the float32 matrices that are trained within what rounds to the same bf16 numbers; all else stays.

    Norms and biases, which passes read in float32, would show the noise itself.

    Args:
        model: whole, on each of several ranks, which draw the same.
        seed: of the noise, with each parameter's name.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and parameter.requires_grad:
            digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
            generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest))
            low, high = _interval(parameter)
            middle, share = (low + high) / 2, torch.rand(parameter.shape, generator=generator, device=parameter.device)
            moved = middle + (high - low) * _INSIDE * (share - 0.5)
            # Zeros, as of a padding token, stay zeros: bf16 is fine enough around them.
            parameter.copy_(torch.where(parameter.abs() > _NEXT_TO_ZERO, moved, parameter))


def _interval(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of what rounds to the same bf16 numbers as `weights`: halfway to either neighbour."""
    rounded = weights.bfloat16()
    infinity = torch.tensor(torch.inf, dtype=torch.bfloat16, device=weights.device)
    low, high = (torch.nextafter(rounded, end).float() for end in (-infinity, infinity))
    return (rounded.float() + low) / 2, (rounded.float() + high) / 2
