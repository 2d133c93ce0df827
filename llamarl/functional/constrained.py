"""Drift of one completion from the reference, and the share of its reward that it leaves. Plain numbers.

    KL      = sum over tokens of  log policy - log reference          one sample's estimate
    factor  = max(1 - KL / KL_max, 0)

The policy's log-probs are those of sampling. "The Perfect Blend: Redefining RLHF with Mixture of Judges" (CGPO), Xu et
al. 2024, arXiv 2409.20370, equation 11.
"""

from collections.abc import Sequence
from math import fsum
from typing import Literal

KLReduction = Literal["sum", "mean"]
"""Reduction of a sequence's KL estimate over its tokens: their sum, or their mean, which does not favour short ones."""


def sequence_kl(
    logprobs: Sequence[float], reference_logprobs: Sequence[float], reduction: KLReduction = "sum"
) -> float:
    """One-sample estimate of KL(policy || reference) of a whole completion, nats; unbiased, may be negative.

    Args:
        logprobs: `[T]` of the policy that sampled the tokens.
        reference_logprobs: `[T]`.
        reduction: `sum` gives nats per sequence, `mean` nats per token.

    Raises:
        ValueError: lengths differ.
    """
    if len(logprobs) != len(reference_logprobs):
        raise ValueError(f"sequence_kl: {len(logprobs)} log-probs but {len(reference_logprobs)} of the reference")
    total = fsum(logprobs) - fsum(reference_logprobs)
    return total if reduction == "sum" else total / max(1, len(logprobs))


def kl_factor(kl: float, kl_max: float, *, clamp: bool = False) -> float:
    """`max(1 - KL / KL_max, 0)`: 1 at the reference, 0 from `kl_max` on.

    A single sample's estimate may be negative, and the factor then exceeds 1; `clamp` cuts it there.

    Args:
        kl: estimate, nats.
        kl_max: where the factor reaches 0, nats, > 0.
        clamp: at most 1.
    """
    factor = max(0.0, 1.0 - kl / kl_max)
    return min(factor, 1.0) if clamp else factor
