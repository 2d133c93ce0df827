"""CRPG: calibrated, regularised policy gradient. A sample that breaks a constraint, or has drifted too far, earns 0.

    R~ = max(1 - KL / KL_max, 0) * R_calib   where every constraint holds, else 0
    gradient = mean over samples of  (R~ - mean R~ of the task's whole batch) * grad log policy(completion)

No critic, no division by a standard deviation, no clipping, no credit per token. The KL estimate comes from the
log-probs of sampling, so no gradient flows through it. "The Perfect Blend: Redefining RLHF with Mixture of Judges"
(CGPO), Xu et al. 2024, arXiv 2409.20370, equations 8, 11 and 12.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from llamarl.algorithms.base import is_judged
from llamarl.algorithms.constrained import KLBoundConfig, OnPolicyConfig, constraint_metrics, kl_metrics, means
from llamarl.core.algorithm import Needs
from llamarl.core.records import Group, Sample
from llamarl.functional.advantages import group_advantages
from llamarl.functional.constrained import kl_factor
from llamarl.functional.losses import Reduction


class CRPGConfig(OnPolicyConfig, KLBoundConfig):
    """Settings of CRPG. With `off_policy = "aipo"` it is an asynchronous extension, no longer the paper's CRPG."""

    type: Literal["crpg"] = "crpg"
    reduction: Reduction = "sample_sum"
    """The whole completion is one action: its log-prob is a sum."""
    clamp_kl_factor: bool = False
    """Cut the KL factor at 1; one sample's estimate may be negative, and the paper's factor then exceeds 1."""

    @property
    def needs(self) -> Needs:
        """The reference for the KL bound; a sample is compared with the whole batch."""
        calibrated = self.reward == "calibrated"
        return replace(super().needs, reference=True, comparison="batch", calibrated_reward=calibrated)

    def shaped_reward(self, sample: Sample) -> float:
        """Computes the regularised reward: 0 where a constraint is broken, whatever reward and KL are."""
        if not sample.is_satisfied:
            return 0.0
        factor = kl_factor(self.kl_of(sample), self.kl_max, clamp=self.clamp_kl_factor)
        return factor * self.calibrate_reward(sample)

    def advantages(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Computes rewards minus their mean over the task's whole batch; equal ones give exact zeros."""
        return group_advantages(rewards, [0] * len(rewards))

    def batch_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Measures how much reward the constraints and the KL bound leave, and what they cut."""
        rewards = [self.shaped_reward(s) for group in groups for s in group.samples if is_judged(s)]
        own = means({"kept_frac": [reward > 0.0 for reward in rewards], "regularized_reward/mean": rewards})
        return {**own, **constraint_metrics(groups), **kl_metrics(groups, self)}
