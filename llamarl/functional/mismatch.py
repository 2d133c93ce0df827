"""Disagreement of generator and trainer about the same tokens under the same weights.

Both should compute the same log-probs. Different kernels, precisions, templates or a forgotten temperature show here
first, on tokens whose policy version is the trainer's own; on older tokens the numbers would mix in staleness.

Nothing here imports torch: only methods of the tensors that come in are used.
"""

from typing import TYPE_CHECKING, NamedTuple

from llamarl.functional.ratios import log_ratio

if TYPE_CHECKING:
    from torch import Tensor


class Mismatch(NamedTuple):
    """Scalars of one micro-batch. Over micro-batches `kl_sum` and `tokens` add up; `prob_max` takes the maximum."""

    kl_sum: "Tensor"
    """Sum over tokens of the k3 estimate of KL(generator || trainer), nats; `kl_sum / tokens` under 1e-3 is healthy."""
    tokens: "Tensor"
    """Number of tokens that were compared."""
    prob_max: "Tensor"
    """Largest absolute difference of a token's two probabilities, in [0, 1]; 0 where nothing was compared."""


def mismatch(logprobs: "Tensor", behavior_logprobs: "Tensor", mask: "Tensor") -> Mismatch:
    """Disagreement of trainer and generator on their common tokens.

    Args:
        logprobs: `[N, T]` the trainer's, before its step.
        behavior_logprobs: `[N, T]` the generator's.
        mask: `[N, T]` bool, True on tokens sampled at the trainer's current version.

    Returns:
        Detached scalars.
    """
    ratios = log_ratio(logprobs.detach(), behavior_logprobs, mask)
    # tokens come from the generator, so k3 of KL(generator || trainer) is r - 1 - log r with r = trainer / generator
    kl_sum = (ratios.expm1() - ratios).sum()
    gaps = (logprobs.detach().exp() - behavior_logprobs.exp()).abs().masked_fill(~mask, 0.0)
    prob_max = gaps.amax() if gaps.numel() else gaps.sum()
    return Mismatch(kl_sum, mask.sum(), prob_max)
