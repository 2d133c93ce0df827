"""RAFT: reward-ranked fine-tuning. Learn the best sample of each prompt by heart.

    gradient = mean over prompts of  grad log policy(best sample)

"RAFT: Reward rAnked FineTuning", Dong et al. 2023, arXiv 2304.06767; as equation 16 of CGPO (arXiv 2409.20370).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from llamarl.algorithms.base import PolicyGradient, judged, reward_of, train_sample
from llamarl.algorithms.constrained import OnPolicyConfig, means
from llamarl.core.records import Assignment, Group
from llamarl.functional.losses import LossBatch, Reduction
from llamarl.functional.ratios import Objective

if TYPE_CHECKING:
    from torch import Tensor


class RAFTConfig(OnPolicyConfig):
    """Settings of RAFT."""

    type: Literal["raft"] = "raft"
    reduction: Reduction = "prompt_sum"
    """The log-prob of the whole completion, over the prompts of the batch."""

    def build(self) -> "RAFT":
        """The algorithm with these settings."""
        return RAFT(self)


class RAFT(PolicyGradient[RAFTConfig]):
    """Maximum likelihood on the best of each group. Constraints are not looked at: see CRRAFT."""

    name = "raft"

    def __init__(self, config: RAFTConfig) -> None:
        super().__init__(config)
        self.corrects_staleness = config.off_policy != "none"
        self.learns_by_heart = config.off_policy == "none"

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """The sample of highest reward of each group, the first of equals, with advantage 1."""
        best = [(group, max(samples, key=reward_of)) for group, samples in judged(groups)]
        samples = tuple(train_sample(sample, group, 1.0) for group, sample in best)
        metrics = means({"best_reward/mean": [reward_of(sample) for _, sample in best]})
        return Assignment(samples, num_prompts=len(best), metrics=metrics)

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """`log policy`, or its importance-weighted form."""
        return self.config.score_objective(batch, log_ratios)
