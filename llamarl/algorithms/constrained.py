"""Shared parts of the algorithms of CGPO: constraints, the distance to the reference, and old samples.

"The Perfect Blend: Redefining RLHF with Mixture of Judges" (CGPO), Xu et al. 2024, arXiv 2409.20370.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import PolicyGradientConfig, is_judged, reward_of
from llamarl.core.algorithm import Needs
from llamarl.core.config import Config
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Group, Sample
from llamarl.functional.constrained import KLReduction, kl_factor, sequence_kl
from llamarl.functional.losses import LossBatch
from llamarl.functional.preference import calibrated_reward
from llamarl.functional.ratios import Objective, by_token, weighted_objective

if TYPE_CHECKING:
    from torch import Tensor


VISIBLY_ABOVE_ONE = 1.001
"""KL factors up to this count as 1: at the reference, rounding alone moves them."""


class OnPolicyConfig(PolicyGradientConfig):
    """Settings of algorithms whose published form has no ratio: one step per batch, sampled by the policy it trains."""

    off_policy: Literal["none", "aipo"] = "none"
    """`none`: as published, needs `schedule.max_staleness = 0`. `aipo`: tokens have truncated importance weights."""
    rho: float = Field(default=4.0, ge=1.0)
    """Largest importance weight of a token, with `off_policy = "aipo"`."""

    @property
    def needs(self) -> Needs:
        """The needs of every policy gradient; stale samples are allowed with `off_policy = "aipo"` only."""
        return replace(super().needs, corrects_staleness=self.off_policy != "none")

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes `A log policy`, every weight 1; with `aipo` weighted by `sg(min(r, rho))`."""
        if self.off_policy == "aipo":
            return weighted_objective(batch.logprobs, log_ratios, batch.advantages, high=self.rho)
        nowhere = batch.mask & ~batch.mask
        return Objective(by_token(batch.advantages) * batch.logprobs, is_low=nowhere, is_high=nowhere)


class KLBoundConfig(Config):
    """Settings of the bound on the distance to the reference, and of the judged reward's meaning."""

    kl_max: float = Field(default=10.0, gt=0.0)
    """Bound on the KL to the reference, in nats per completion. The paper names none: our choice."""
    kl: KLReduction = "sum"
    """KL estimate of a completion: the sum over its tokens (the paper's), or their mean, with `kl_max` per token."""
    reward: Literal["calibrated", "as_is", "constant"] = "calibrated"
    """Meaning of the judged reward. `calibrated`: a margin over the baseline response, through a sigmoid (the paper's).
    `as_is`: at least 0, used unchanged. `constant`: only the constraints count; for tasks where no judge pays."""

    def calibrate_reward(self, sample: Sample) -> float:
        """Computes R_calib of a judged sample.

        Raises:
            ConfigError: a negative reward `as_is`: it would rank a good sample below one that breaks a constraint.
        """
        reward = reward_of(sample)
        if self.reward == "as_is" and reward < 0.0:
            raise ConfigError(
                f"algorithm.reward='as_is': a reward is {reward:g}, below the 0 of a broken constraint; rescale the "
                "judge to at least 0, or set algorithm.reward='calibrated'"
            )
        values = {"calibrated": calibrated_reward(reward), "as_is": reward, "constant": 1.0}
        return values[self.reward]

    def kl_of(self, sample: Sample) -> float:
        """Estimates the KL of a sampled completion, in nats.

        Raises:
            DataError: the sample lacks its reference log-probs.
        """
        if sample.reference_logprobs is None:
            raise DataError(
                "Sample.reference_logprobs is missing, but the KL bound needs it; fill it before `assign` "
                "(training.reference.ReferenceExecutor scores completions)"
            )
        return sequence_kl(sample.completion.logprobs, sample.reference_logprobs, self.kl)


def constraint_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Measures `violation_rate` over the judged samples, and `unjudged_frac` over all of them."""
    samples = [sample for group in groups for sample in group.samples]
    violations = [not sample.is_satisfied for sample in samples if is_judged(sample)]
    return means({"violation_rate": violations, "unjudged_frac": [not is_judged(sample) for sample in samples]})


def kl_metrics(groups: Sequence[Group], config: KLBoundConfig) -> dict[str, float]:
    """Averages R_calib and the KL estimate over the judged samples, and counts how often its factor is 0 or above 1."""
    samples = [sample for group in groups for sample in group.samples if is_judged(sample)]
    divergences = [config.kl_of(sample) for sample in samples]
    return means(
        {
            "calibrated_reward/mean": [config.calibrate_reward(sample) for sample in samples],
            "kl/mean": divergences,
            "kl_factor/zero_frac": [kl_factor(kl, config.kl_max) == 0.0 for kl in divergences],
            "kl_factor/above_one_frac": [kl_factor(kl, config.kl_max) > VISIBLY_ABOVE_ONE for kl in divergences],
        }
    )


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Averages each list; lists without an entry are left out."""
    return {name: fmean(entries) for name, entries in values.items() if entries}
