"""Rewards under constraints, as plain numbers for the controller: calibrated, and fading as the policy drifts away.

    calibrated   R_calib = sigmoid(r(s, a) - r(s, a_base))      how likely a beats the prompt's baseline response
    constrained  R_cr    = R_calib where every constraint holds, else 0
    regularised  R~_cr   = max(1 - KL / KL_max, 0) * R_cr

"The Perfect Blend: Redefining RLHF with Mixture of Judges" (CGPO), Xu et al. 2024, arXiv 2409.20370, equations 5, 8
and 11.
"""

from collections.abc import Sequence
from math import exp, fsum
from typing import Literal, assert_never

from llamarl.core.errors import ConfigError

KLReduction = Literal["sum", "mean"]
"""How a sequence's KL estimate counts its tokens: their sum, or their mean, which does not favour short ones."""

RewardKind = Literal["calibrated", "as_is", "constant"]
"""What the judged reward is: a margin over the baseline response, a number in use as it is, or nothing that counts."""


def calibrated_reward(reward: float, kind: RewardKind = "calibrated") -> float:
    """R_calib of a judged reward: `sigmoid(reward)`, the reward itself, or 1.

    `sigmoid` lies in (0, 1), is 1/2 at the baseline response itself, and finite for any margin.

    Raises:
        ConfigError: `as_is` of a negative reward, which would rank a good sample below one that breaks a constraint.
    """
    if kind == "constant":
        return 1.0
    if kind == "as_is":
        if reward < 0.0:
            raise ConfigError(
                f"reward={reward:g} is below 0, the reward of a broken constraint; with reward = 'as_is' rewards must "
                "be at least 0: rescale the judge, or set reward = 'calibrated'"
            )
        return reward
    if kind == "calibrated":
        small = exp(-abs(reward))  # never overflows
        return (1.0 if reward >= 0 else small) / (1.0 + small)
    assert_never(kind)


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
