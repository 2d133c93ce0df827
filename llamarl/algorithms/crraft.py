"""CRRAFT: calibrated, regularised, reward-ranked fine-tuning. Learn the best sample that keeps to all constraints.

    kept     = samples that meet every constraint and whose KL estimate is at most KL_max
    a*       = the kept sample of highest reward; where none is kept, the baseline response if it meets every constraint
    gradient = mean over prompts, skipped ones included, of  R_calib(a*) * grad log policy(a*)

"The Perfect Blend: Redefining RLHF with Mixture of Judges" (CGPO), Xu et al. 2024, arXiv 2409.20370, equation 18.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from llamarl.algorithms.base import is_judged, judged_groups, reward_of, train_sample
from llamarl.algorithms.constrained import KLBoundConfig, OnPolicyConfig, constraint_metrics, kl_metrics, means
from llamarl.core.algorithm import Credit, Needs
from llamarl.core.records import Assignment, Group, Sample
from llamarl.functional.losses import Reduction


class CRRAFTConfig(OnPolicyConfig, KLBoundConfig):
    """Settings of CRRAFT."""

    type: Literal["crraft"] = "crraft"
    reduction: Reduction = "prompt_sum"
    """The log-prob of the whole completion, over the prompts of the batch, skipped ones included."""

    @property
    def needs(self) -> Needs:
        """The reference for the KL bound, and baseline responses to fall back on; one sample teaches by itself."""
        calibrated = self.reward == "calibrated"
        return replace(super().needs, reference=True, baseline=True, comparison=None, calibrated_reward=calibrated)

    def credit(self) -> Credit:
        """Builds the half that picks the best samples."""
        return CRRAFTCredit(self)


class CRRAFTCredit(Credit):
    """Picks the best sample of each group that keeps to the constraints and the KL bound, weighted by R_calib."""

    def __init__(self, config: CRRAFTConfig) -> None:
        self._config = config

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """Picks at most one sample of each group, its calibrated reward as the advantage."""
        batch = judged_groups(groups)
        samples, fallbacks = [], []
        for group, candidates in batch:
            best = self._best(candidates)
            fallbacks.append(best is None and _is_good(group.baseline))
            if best is not None:
                samples.append(train_sample(best, group, self._config.calibrate_reward(best)))
            elif group.baseline is not None and _is_good(group.baseline):
                samples.append(train_sample(group.baseline, group, self._config.calibrate_reward(group.baseline)))
        own = {"skipped_prompts": float(len(batch) - len(samples)), **means({"fallback_frac": fallbacks})}
        own |= {"kept_frac": len(samples) / len(batch)} if batch else {}
        own |= {**constraint_metrics(groups), **kl_metrics(groups, self._config)}
        metrics = {**own, **self._config.mask_metrics(groups)}
        return Assignment(tuple(samples), num_prompts=len(batch), metrics=metrics)

    def _best(self, candidates: Sequence[Sample]) -> Sample | None:
        """Picks by the judged reward, which ranks as R_calib does but never saturates."""
        config = self._config
        kept = [s for s in candidates if s.is_satisfied and config.kl_of(s) <= config.kl_max and config.may_train(s)]
        return max(kept, key=reward_of, default=None)


def _is_good(baseline: Sample | None) -> bool:
    return baseline is not None and is_judged(baseline) and bool(baseline.is_satisfied)
