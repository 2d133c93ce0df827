"""AIPO: asynchronous importance-weighted policy optimization, the algorithm of LlamaRL and the default here.

    gradient = sum_t min(policy / behaviour, rho) * A * grad log policy,      A = r - mean of the group's rewards

The weight carries no gradient, so a token far above rho still pulls, with weight rho; a clipped objective drops it.
"LlamaRL", Wu et al. 2025, arXiv 2505.24034, section 6.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import PolicyGradientConfig
from llamarl.functional.advantages import Center, group_advantages
from llamarl.functional.losses import LossBatch
from llamarl.functional.ratios import Objective, weighted_objective

if TYPE_CHECKING:
    from torch import Tensor


class AIPOConfig(PolicyGradientConfig):
    """Settings of AIPO. The paper gives a plain sum over tokens; the mean over the step's tokens is our choice."""

    type: Literal["aipo"] = "aipo"
    rho: float = Field(default=4.0, ge=1.0)
    """Largest importance weight of a token. The paper finds 2 to 10 to work: lower is more biased, higher noisier."""
    center: Center = "mean"
    """Baseline: the paper's group mean, own sample included; `leave_one_out` multiplies advantages by n / (n - 1)."""

    def advantages(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Computes the reward minus the baseline."""
        return group_advantages(rewards, groups, center=self.center)

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes `sg(min(r, rho)) A log policy`."""
        return weighted_objective(batch.logprobs, log_ratios, batch.advantages, high=self.rho)
