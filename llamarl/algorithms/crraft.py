"""CRRAFT: calibrated, regularised, reward-ranked fine-tuning. Learn the best sample that keeps to all constraints.

    kept     = samples that meet every constraint and whose KL estimate is at most KL_max
    a*       = the kept sample of highest reward; where none is kept, the baseline response if it meets every constraint
    gradient = mean over prompts, skipped ones included, of  R_calib(a*) * grad log policy(a*)

"The Perfect Blend: Redefining RLHF with Mixture of Judges" (CGPO), Xu et al. 2024, arXiv 2409.20370, equation 18.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from llamarl.algorithms.base import PolicyGradient, is_judged, judged, reward_of, train_sample
from llamarl.algorithms.constrained import KLBoundConfig, OnPolicyConfig, constraint_metrics, kl_metrics, means
from llamarl.core.records import Assignment, Group, Sample
from llamarl.functional.losses import LossBatch, Reduction
from llamarl.functional.ratios import Objective

if TYPE_CHECKING:
    from torch import Tensor


class CRRAFTConfig(OnPolicyConfig, KLBoundConfig):
    """Settings of CRRAFT."""

    type: Literal["crraft"] = "crraft"
    reduction: Reduction = "prompt_sum"
    """The log-prob of the whole completion, over the prompts of the batch, skipped ones included."""

    def build(self) -> "CRRAFT":
        """The algorithm with these settings."""
        return CRRAFT(self)


class CRRAFT(PolicyGradient[CRRAFTConfig]):
    """Weighted maximum likelihood on the best sample of each group that keeps to the constraints and the KL bound."""

    name = "crraft"
    compares_within = None
    uses_baseline: bool = True
    """Whether `Group.baseline` is read."""

    def __init__(self, config: CRRAFTConfig) -> None:
        super().__init__(config)
        self.needs_reference = True
        self.corrects_staleness = config.off_policy != "none"

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """At most one sample of each group, its calibrated reward as the advantage."""
        batch = judged(groups)
        samples, fallbacks = [], []
        for group, candidates in batch:
            best = self._best(candidates)
            fallbacks.append(best is None and _is_good(group.baseline))
            if best is not None:
                samples.append(train_sample(best, group, self.config.calibrated(best)))
            elif group.baseline is not None and _is_good(group.baseline):
                samples.append(train_sample(group.baseline, group, self.config.calibrated(group.baseline)))
        own = {"skipped_prompts": float(len(batch) - len(samples)), **means({"fallback_frac": fallbacks})}
        own |= {"kept_frac": len(samples) / len(batch)} if batch else {}
        metrics = {**own, **constraint_metrics(groups), **kl_metrics(groups, self.config)}
        return Assignment(tuple(samples), num_prompts=len(batch), metrics=metrics)

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """`R_calib log policy`, or its importance-weighted form."""
        return self.config.score_objective(batch, log_ratios)

    def _best(self, candidates: Sequence[Sample]) -> Sample | None:
        """By the judged reward, which ranks as R_calib does but never saturates."""
        kept = [s for s in candidates if s.is_satisfied and self.config.kl_of(s) <= self.config.kl_max]
        return max(kept, key=reward_of, default=None)


def _is_good(baseline: Sample | None) -> bool:
    return baseline is not None and is_judged(baseline) and bool(baseline.is_satisfied)
