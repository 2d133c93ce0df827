"""Generalised advantage estimation: credit for each token from a reward at the end, penalties on the way, and a critic.

Shape legend: N samples, T tokens. Nothing here imports torch: only methods of the tensors that come in are used.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Estimate(NamedTuple):
    """Advantages and returns per token, 0 where masked, without gradient."""

    advantages: "Tensor"
    """`[N, T]`."""
    returns: "Tensor"
    """`[N, T]` what the value of the state before each token should have been."""


def token_rewards(final_rewards: "Tensor", penalties: "Tensor", mask: "Tensor") -> "Tensor":
    """Minus each token's penalty, plus the sample's reward at its last token.

    Args:
        final_rewards: `[N]`.
        penalties: `[N, T]`; anything where masked.
        mask: `[N, T]` bool, True on sampled tokens, padded right.

    Returns:
        `[N, T]`, 0 where masked.
    """
    is_last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return (-penalties).masked_fill(~mask, 0.0) + is_last * final_rewards[:, None]


def generalized_advantages(
    rewards: "Tensor", values: "Tensor", mask: "Tensor", *, gamma: float = 1.0, lam: float = 0.95
) -> Estimate:
    """Advantages as exponentially weighted temporal differences.

        delta_t = r_t + gamma V_(t+1) - V_t        A_t = delta_t + gamma lam A_(t+1)        return_t = A_t + V_t

    The value after a sample's last token is 0, also where the token limit cut it. With `lam = 1` the advantage is the
    discounted return minus the value; with `lam = 0` it is `delta_t`. "High-dimensional continuous control using
    generalized advantage estimation", Schulman et al. 2015, arXiv 1506.02438, equation 16.

    Args:
        rewards: `[N, T]`, 0 where masked.
        values: `[N, T]` of the state before each token; anything where masked. Taken as constants.
        mask: `[N, T]` bool, padded right.
        gamma: discount.
        lam: 0 trusts the values (less noise), 1 the rewards (no bias).
    """
    known = values.detach().masked_fill(~mask, 0.0)
    later = known.roll(-1, -1)
    later[:, -1] = 0.0
    advantages = rewards.detach() + gamma * later - known
    for place in range(advantages.shape[1] - 2, -1, -1):
        advantages[:, place] += gamma * lam * advantages[:, place + 1]
    advantages = advantages.masked_fill(~mask, 0.0)
    return Estimate(advantages, (advantages + known).masked_fill(~mask, 0.0))
