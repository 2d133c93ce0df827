"""RLOO: REINFORCE with the mean of a prompt's other samples as baseline.

There is no ratio: tokens are taken to come from the policy being trained, so pair it with `max_staleness = 0` (AIPO
with `center = "leave_one_out"` is its off-policy form). "Back to basics", Ahmadian et al. 2024, arXiv 2402.14740.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import PolicyGradientConfig
from llamarl.core.algorithm import Needs
from llamarl.functional.advantages import group_advantages
from llamarl.functional.kl import KLLoss
from llamarl.functional.losses import LossBatch, Reduction
from llamarl.functional.ratios import Objective, weighted_objective

if TYPE_CHECKING:
    from torch import Tensor


class RLOOConfig(PolicyGradientConfig):
    """Settings of RLOO. Set `kl_coef = 0` to do without a reference model."""

    type: Literal["rloo"] = "rloo"
    reduction: Reduction = "sample_sum"
    """The whole completion is one action: its log-prob is a sum."""
    kl_coef: float = Field(default=0.03, ge=0.0)
    """Weight of the KL term (the paper's summarisation runs)."""
    kl_estimator: KLLoss = "k1_return"
    """The KL belongs to the reward; this has the same expected gradient."""

    @property
    def needs(self) -> Needs:
        """The needs of every policy gradient, and samples of the newest policy only."""
        return replace(super().needs, corrects_staleness=False)

    def advantages(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Computes the reward minus the mean of the group's other rewards."""
        return group_advantages(rewards, groups, center="leave_one_out")

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes `A log policy`: every weight is 1."""
        return weighted_objective(batch.logprobs, log_ratios, batch.advantages, low=1.0, high=1.0)
