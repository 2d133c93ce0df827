"""Kullback-Leibler divergence between policy and reference, estimated from the sampled tokens alone.

With `delta = log policy - log reference` of a token that the policy sampled (Schulman, "Approximating KL divergence",
2020, http://joschu.net/blog/kl-approx.html):

    name   value                     as a number                      its gradient, used as a loss
    k1     delta                     unbiased, may be negative        zero on average: no penalty at all
    k2     delta^2 / 2               biased, low variance             that of KL(policy || reference), token by token
    k3     exp(-delta) - 1 + delta   unbiased, never negative         that of KL(reference || policy), token by token

So a number worth reporting and a loss worth minimising are different things. `kl_estimate` gives the number.
`kl_loss` gives the loss, and offers only terms that do pull the policy towards the reference:

    k1_return   k1 as a reward-to-go with the score function: the exact gradient of the KL of whole sequences
    k2          right for each token's distribution, ignores how a token changes the tokens after it
    k3          as published with GRPO; pulls by the forward KL, so it agrees only near the reference

"Exact" holds for tokens sampled by the policy itself. On stale tokens all three still vanish only at the reference.
See "A comedy of estimators" (arXiv 2512.21852) and arXiv 2510.01555.

Shape legend: N samples, T tokens. Nothing here imports torch: only methods of the tensors that come in are used.
"""

from typing import TYPE_CHECKING, Literal, assert_never

if TYPE_CHECKING:
    from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
"""Names of the numbers."""

KLLoss = Literal["k1_return", "k2", "k3"]
"""Names of the losses."""

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this before `exp`: exp(89) overflows float32, and inf times a masked 0 is NaN."""


def kl_estimate(
    logprobs: "Tensor", reference_logprobs: "Tensor", mask: "Tensor", estimator: KLEstimator = "k3"
) -> "Tensor":
    """Per-token estimate of KL(policy || reference) in nats; its mean over sampled tokens is the estimate.

    Args:
        logprobs: `[N, T]` of the policy.
        reference_logprobs: `[N, T]`.
        mask: `[N, T]` bool, True on tokens the policy sampled.
        estimator: see the module.

    Returns:
        `[N, T]`, 0 where masked.
    """
    # Filled, not multiplied: padding may hold inf or NaN, and times 0 both are NaN.
    delta = (logprobs - reference_logprobs).masked_fill(~mask, 0.0)
    if estimator == "k1":
        return delta
    if estimator == "k2":
        return delta.square() / 2
    if estimator == "k3":
        return (-delta).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).expm1() + delta
    assert_never(estimator)


def kl_loss(logprobs: "Tensor", reference_logprobs: "Tensor", mask: "Tensor", kind: KLLoss) -> "Tensor":
    """Per-token loss terms whose gradient pulls the policy towards the reference.

    Args:
        logprobs: `[N, T]` of the policy, with gradient.
        reference_logprobs: `[N, T]`, constant.
        mask: `[N, T]` bool, True on tokens the policy sampled.
        kind: see the module. The value of a `k1_return` term means nothing; its gradient does.

    Returns:
        `[N, T]`, 0 where masked.
    """
    if kind == "k1_return":
        # Detached: the reward-to-go is a weight, and the gradient is that of the score function alone.
        delta = kl_estimate(logprobs.detach(), reference_logprobs, mask, "k1")
        return delta.flip(-1).cumsum(-1).flip(-1) * logprobs.masked_fill(~mask, 0.0)
    return kl_estimate(logprobs, reference_logprobs, mask, kind)
