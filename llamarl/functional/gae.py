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


def token_rewards(rewards: "Tensor", penalties: "Tensor", mask: "Tensor") -> "Tensor":
    """Minus each token's penalty, plus the sample's reward at its last token, or each token's own reward.

    Args:
        rewards: `[N]` of whole samples, or `[N, T]` of tokens; of these, anything where masked.
        penalties: `[N, T]`; anything where masked.
        mask: `[N, T]` bool, True on tokens that train.

    Returns:
        `[N, T]`, 0 where masked.
    """
    if rewards.ndim == 2:
        return (rewards - penalties).masked_fill(~mask, 0.0)
    is_last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return (-penalties).masked_fill(~mask, 0.0) + is_last * rewards[:, None]


def generalized_advantages(
    rewards: "Tensor", values: "Tensor", mask: "Tensor", *, gamma: float = 1.0, lam: float = 0.95
) -> Estimate:
    """Advantages as exponentially weighted temporal differences.

        delta_t = r_t + gamma V_(t+1) - V_t        A_t = delta_t + gamma lam A_(t+1)        return_t = A_t + V_t

    Masked tokens are no steps: `t + 1` is the next token that is not. The value after a sample's last token is 0, also
    where the token limit cut it. With `lam = 1` the advantage is the
    discounted return minus the value; with `lam = 0` it is `delta_t`. "High-dimensional continuous control using
    generalized advantage estimation", Schulman et al. 2015, arXiv 1506.02438, equation 16.

    Args:
        rewards: `[N, T]`, 0 where masked.
        values: `[N, T]` of the state before each token; anything where masked. Taken as constants.
        mask: `[N, T]` bool, True on tokens that train.
        gamma: discount.
        lam: 0 trusts the values (less noise), 1 the rewards (no bias).
    """
    known, rewards = values.detach().masked_fill(~mask, 0.0), rewards.detach()
    advantages = rewards.new_zeros(mask.shape)
    next_value = next_advantage = rewards.new_zeros(len(mask))
    for place in range(mask.shape[1] - 1, -1, -1):
        is_step = mask[:, place]
        found = rewards[:, place] + gamma * next_value - known[:, place] + gamma * lam * next_advantage
        advantages[:, place] = found.where(is_step, 0.0)
        next_value, next_advantage = known[:, place].where(is_step, next_value), found.where(is_step, next_advantage)
    return Estimate(advantages, (advantages + known).masked_fill(~mask, 0.0))
