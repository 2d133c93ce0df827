"""Objectives that correct for tokens sampled by an older (or less precise) policy than the one being trained.

With `r = policy / behaviour` per token and the advantage A, two families:

    weighted   sg(clamp(r, low, high)) A log policy     truncated importance weight; every token keeps a gradient
    clipped    min(r A, clamp(r, 1 - low, 1 + high) A)   PPO; a token outside of the range loses its gradient,
               and at least delta A where A < 0          and far above it too, where the advantage is negative

    gradient with respect to log policy, A = 1, upper bound 2     at r = 5     at r = 1.5
    weighted, high = 2                                             2            1.5
    clipped, high = 1 (so 1 + high = 2)                            0            1.5

The behaviour log-probs are those the generator recorded while sampling, so r also holds whatever numerics set generator
and trainer apart.

Shape legend: N samples, T tokens. Nothing here imports torch: only methods of the tensors that come in are used.
"""

from typing import TYPE_CHECKING, NamedTuple

from llamarl.functional.kl import LOG_RATIO_LIMIT

if TYPE_CHECKING:
    from torch import Tensor


class Objective(NamedTuple):
    """Objective to maximise, per token, and where the correction was cut. Values at masked positions mean nothing."""

    values: "Tensor"
    """`[N, T]`."""
    is_low: "Tensor"
    """`[N, T]` bool: the lower bound acted."""
    is_high: "Tensor"
    """`[N, T]` bool: the upper bound acted."""
    is_floored: "Tensor | None" = None
    """`[N, T]` bool: the objective's own lower bound acted; None without one."""


def log_ratio(logprobs: "Tensor", behavior_logprobs: "Tensor", mask: "Tensor") -> "Tensor":
    """`log policy - log behaviour` per token, clamped to +-20, and 0 where masked, whatever the padding holds.

    Args:
        logprobs: `[N, T]` of the policy.
        behavior_logprobs: `[N, T]` recorded at sampling time.
        mask: `[N, T]` bool, True on tokens the behaviour policy sampled.

    Returns:
        `[N, T]`.
    """
    difference = (logprobs - behavior_logprobs).masked_fill(~mask, 0.0)
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence_log_ratio(log_ratios: "Tensor", mask: "Tensor") -> "Tensor":
    """Length-normalised log-ratio of whole completions, the mean over their tokens, repeated at each token (GSPO).

    Group Sequence Policy Optimization, Zheng et al. 2025, arXiv 2507.18071, equation 7.

    Args:
        log_ratios: `[N, T]` from `log_ratio`.
        mask: `[N, T]` bool.

    Returns:
        `[N, T]`, constant along T.
    """
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    return (log_ratios.sum(-1, keepdim=True) / lengths).expand_as(log_ratios)


def by_token(advantages: "Tensor") -> "Tensor":
    """Advantages as they multiply `[N, T]` tokens: `[N]` repeats along T, `[N, T]` stays."""
    return advantages if advantages.ndim == 2 else advantages[:, None]


def weighted_objective(
    logprobs: "Tensor", log_ratios: "Tensor", advantages: "Tensor", *, low: float = 0.0, high: float
) -> Objective:
    """REINFORCE under a truncated importance weight that carries no gradient: `sg(clamp(r, low, high)) A log policy`.

    With `low = 0` this is AIPO's estimator (LlamaRL, arXiv 2505.24034, section 6), the per-token truncation of V-trace
    (IMPALA, arXiv 1802.01561); ratios below 1 are left alone. At r = 1 it is plain REINFORCE.

    Args:
        logprobs: `[N, T]` of the policy, with gradient.
        log_ratios: `[N, T]` from `log_ratio`.
        advantages: `[N]`, or `[N, T]` where each token has its own.
        low: smallest weight.
        high: largest weight: rho.

    Returns:
        The objective; `is_low`, `is_high` mark truncated weights.
    """
    ratio = log_ratios.detach().exp()
    values = ratio.clamp(low, high) * by_token(advantages) * logprobs
    return Objective(values, ratio < low, ratio > high)


def clipped_objective(
    log_ratios: "Tensor", advantages: "Tensor", *, low: float, high: float, delta: float | None = None
) -> Objective:
    """PPO's clipped surrogate, `min(r A, clamp(r, 1 - low, 1 + high) A)`, with a bound of its own on each side.

    Proximal Policy Optimization, Schulman et al. 2017, arXiv 1707.06347, equation 7; `low != high` is DAPO's
    "clip-higher". At r = 1 its gradient is that of REINFORCE, `A` times the score.

    Where A < 0 nothing bounds `r A` from below: a token that has become many times likelier since it was sampled pushes
    with its whole ratio. `delta` is that bound, `max(..., delta A)`: such a token loses its gradient ("dual clip",
    Ye et al. 2020, arXiv 1912.09729, equation 5).

    Args:
        log_ratios: `[N, T]` per token or from `sequence_log_ratio`, with gradient.
        advantages: `[N]`, or `[N, T]` where each token has its own.
        low: how far r may fall below 1 before a negative advantage stops pushing.
        high: how far r may rise above 1 before a positive advantage stops pushing.
        delta: the r, above 1, from which a negative advantage stops pushing; None: never.

    Returns:
        The objective; `is_low`, `is_high`, `is_floored` mark tokens that lost their gradient.
    """
    ratio = log_ratios.exp()
    scores = by_token(advantages)
    values = (ratio * scores).minimum(ratio.clamp(1 - low, 1 + high) * scores)
    is_low, is_high = (ratio < 1 - low) & (scores < 0), (ratio > 1 + high) & (scores > 0)
    if delta is None:
        return Objective(values, is_low, is_high)
    is_floored = (ratio > delta) & (scores < 0)
    return Objective(values.where(~is_floored, delta * scores), is_low, is_high, is_floored)
