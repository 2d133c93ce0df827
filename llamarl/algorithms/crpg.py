"""CRPG: calibrated, regularised policy gradient. A sample that breaks a constraint, or has drifted too far, earns 0.

    R~ = max(1 - KL / KL_max, 0) * R_calib   where every constraint holds, else 0
    gradient = mean over samples of  (R~ - mean R~ of the task's whole batch) * grad log policy(completion)

No critic, no division by a standard deviation, no clipping, no credit per token. The KL estimate comes from the
log-probs of sampling, so no gradient flows through it. "The Perfect Blend: Redefining RLHF with Mixture of Judges"
(CGPO), Xu et al. 2024, arXiv 2409.20370, equations 8, 11 and 12.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from llamarl.algorithms.base import PolicyGradient, is_judged
from llamarl.algorithms.constrained import KLBoundConfig, OnPolicyConfig, constraint_metrics, kl_metrics, means
from llamarl.core.records import Assignment, Group, Sample
from llamarl.functional.advantages import group_advantages
from llamarl.functional.constrained import kl_factor
from llamarl.functional.losses import LossBatch, Reduction
from llamarl.functional.ratios import Objective

if TYPE_CHECKING:
    from torch import Tensor


class CRPGConfig(OnPolicyConfig, KLBoundConfig):
    """Settings of CRPG. With `off_policy = "aipo"` it is an asynchronous extension, no longer the paper's CRPG."""

    type: Literal["crpg"] = "crpg"
    reduction: Reduction = "sample_sum"
    """The whole completion is one action: its log-prob is a sum."""
    clamp_kl_factor: bool = False
    """Cut the KL factor at 1; one sample's estimate may be negative, and the paper's factor then exceeds 1."""

    def build(self) -> "CRPG":
        """The algorithm with these settings."""
        return CRPG(self)


class CRPG(PolicyGradient[CRPGConfig]):
    """REINFORCE on constrained, KL-shaped rewards minus their mean over the task's batch."""

    name = "crpg"
    compares_within = "batch"

    def __init__(self, config: CRPGConfig) -> None:
        super().__init__(config)
        self.needs_reference = True
        self.corrects_staleness = config.off_policy != "none"

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """As every policy gradient, over the samples whose constraints could be judged; with the task's metrics."""
        rewards = [self.reward(s) for group in groups for s in group.samples if is_judged(s)]
        own = means({"kept_frac": [reward > 0.0 for reward in rewards], "regularized_reward/mean": rewards})
        metrics = {**own, **constraint_metrics(groups), **kl_metrics(groups, self.config)}
        return replace(super().assign(groups), metrics=metrics)

    def reward(self, sample: Sample) -> float:
        """The regularised reward: 0 where a constraint is broken, whatever the judged reward and the KL are."""
        if not sample.is_satisfied:
            return 0.0
        factor = kl_factor(self.config.kl_of(sample), self.config.kl_max, clamp=self.config.clamp_kl_factor)
        return factor * self.config.calibrated(sample)

    def advantages(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Rewards minus their mean over the task's whole batch; equal ones give exact zeros."""
        return group_advantages(rewards, [0] * len(rewards))

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """`A log policy`, or its importance-weighted form."""
        return self.config.score_objective(batch, log_ratios)
