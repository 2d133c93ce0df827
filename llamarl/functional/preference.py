"""Preferences between two completions of one prompt: the Bradley-Terry model and what is made of its gaps.

    P(a is better than b | s) = sigmoid(r(s, a) - r(s, b))

Bradley and Terry, "Rank analysis of incomplete block designs" (1952). The reward r is fixed only up to a constant per
prompt, so nothing here looks at a reward by itself.

Shape legend: N pairs. Nothing here imports torch: only methods of the tensors that come in are used.
"""

import math
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from torch import Tensor


@overload
def calibrated_reward(margin: float) -> float: ...
@overload
def calibrated_reward(margin: "Tensor") -> "Tensor": ...
def calibrated_reward(margin: "float | Tensor") -> "float | Tensor":
    """The probability that a completion beats its prompt's baseline: `sigmoid(r(s, a) - r(s, baseline))`.

    CGPO (arXiv 2409.20370), eq. 5. 0.5 at the baseline itself, strictly increasing, comparable between prompts. Keep
    the margin for ordering: the sigmoid saturates at gaps of about 37 in float64 and 17 in float32.

    Args:
        margin: a number, or a tensor of any shape; any finite size is safe.

    Returns:
        In [0, 1], of the argument's kind and shape.
    """
    if not isinstance(margin, int | float):
        return margin.sigmoid()
    if margin >= 0:
        return 1.0 / (1.0 + math.exp(-margin))
    odds = math.exp(margin)
    return odds / (1.0 + odds)


def log_sigmoid(x: "Tensor") -> "Tensor":
    """`log(1 / (1 + exp(-x)))` of any shape: finite with finite gradient for gaps of any size."""
    return -x.new_zeros(()).logaddexp(-x)


def bradley_terry_loss(chosen: "Tensor", rejected: "Tensor", margin: "Tensor | float" = 0.0) -> "Tensor":
    """Loss of each pair, `-log sigmoid(r_chosen - r_rejected - margin)`, in nats.

    Without margins it is the negative log-likelihood of the preferences: log 2 for equal rewards. A margin asks for a
    gap of that size before the loss is log 2 (Touvron et al., "Llama 2", 2023, eq. 2).

    Args:
        chosen: `[N]` rewards of the preferred completions.
        rejected: `[N]`.
        margin: `[N]` or one number.

    Returns:
        `[N]`.
    """
    return -log_sigmoid(chosen - rejected - margin)


def centering_penalty(chosen: "Tensor", rejected: "Tensor") -> "Tensor":
    """Penalty of each pair, `(r_chosen + r_rejected)^2`: pulls the rewards' free constant to 0, leaves their gap alone.

    Eisenstein et al., "Helping or herding?" (arXiv 2312.09244), eq. 2.
    """
    return (chosen + rejected).square()


def dpo_loss(gap: "Tensor", beta: float, label_smoothing: float = 0.0) -> "Tensor":
    """Loss of each pair, `-(1 - e) log sigmoid(beta gap) - e log sigmoid(-beta gap)`, in nats; `e` is label smoothing.

    Without smoothing it is the loss of "Direct Preference Optimization", Rafailov et al. 2023, arXiv 2305.18290,
    equation 7: `bradley_terry_loss` of the implicit rewards `beta log(policy / reference)`, log 2 at the reference.
    With it, that of "A note on DPO with noisy preferences", Mitchell 2023: a share `e` of the labels is taken to be
    wrong, and the loss is least at `gap = log((1 - e) / e) / beta` instead of at infinity.

    Args:
        gap: `[N]` log(policy / reference) of the chosen completion minus that of the rejected one.
        beta: above 0; strength of the pull towards the reference.
        label_smoothing: in [0, 0.5).

    Returns:
        `[N]`.
    """
    return -(1.0 - label_smoothing) * log_sigmoid(beta * gap) - label_smoothing * log_sigmoid(-beta * gap)


def ipo_loss(gap: "Tensor", beta: float) -> "Tensor":
    """Loss of each pair, `(gap - 1 / (2 beta))^2`: least at a finite gap, so that certain preferences do not run away.

    "A general theoretical paradigm to understand learning from human preferences", Azar et al. 2023, arXiv 2310.12036,
    equation 17, whose tau is `beta`. At the reference it is `1 / (4 beta^2)`.

    Args:
        gap: `[N]` log(policy / reference) of the chosen completion minus that of the rejected one.
        beta: above 0.

    Returns:
        `[N]`.
    """
    return (gap - 1.0 / (2.0 * beta)).square()
