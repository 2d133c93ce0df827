"""RAFT: reward-ranked fine-tuning. Learn the best sample of each prompt by heart.

    gradient = mean over prompts of  grad log policy(best sample)

"RAFT: Reward rAnked FineTuning", Dong et al. 2023, arXiv 2304.06767; as equation 16 of CGPO (arXiv 2409.20370).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from llamarl.algorithms.base import judged_groups, reward_of, train_sample
from llamarl.algorithms.constrained import OnPolicyConfig, means
from llamarl.core.algorithm import Credit, Needs
from llamarl.core.records import Assignment, Group
from llamarl.functional.losses import Reduction


class RAFTConfig(OnPolicyConfig):
    """Settings of RAFT. Constraints are not looked at: see CRRAFT."""

    type: Literal["raft"] = "raft"
    reduction: Reduction = "prompt_sum"
    """The log-prob of the whole completion, over the prompts of the batch."""

    @property
    def needs(self) -> Needs:
        """Groups with a best sample; as published it is pure imitation."""
        return replace(super().needs, ignores_behavior_logprobs=self.off_policy == "none")

    def credit(self) -> Credit:
        """Builds the half that picks the best samples."""
        return RAFTCredit(self)


class RAFTCredit(Credit):
    """Picks the sample of highest reward of each group, the first of equals, with advantage 1."""

    def __init__(self, config: RAFTConfig) -> None:
        self._config = config

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """Picks one sample of each group that has a judged one that may train."""
        batch = judged_groups(groups)
        candidates = [(group, [s for s in samples if self._config.may_train(s)]) for group, samples in batch]
        best = [(group, max(samples, key=reward_of)) for group, samples in candidates if samples]
        samples = tuple(train_sample(sample, group, 1.0) for group, sample in best)
        metrics = means({"best_reward/mean": [reward_of(sample) for _, sample in best]})
        metrics |= self._config.mask_metrics(groups)
        return Assignment(samples, num_prompts=len(batch), metrics=metrics)
