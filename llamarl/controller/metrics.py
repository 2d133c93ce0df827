"""Numbers of groups, from the records alone. Every name is explained in docs/reference/metrics.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Self, TypeVar

from llamarl.core import metric_names as names
from llamarl.core.records import Group

Value = TypeVar("Value", float, float | None)


def flatten(metrics: Mapping[str, Value], task_metrics: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """One record of metrics for files and sinks. This is the only place where a task's name becomes part of a metric's.

    With several tasks, each task's metrics stand under `task/<name>/`; a lone task's need no prefix.

    Args:
        metrics: metrics of the whole run; of two equal names, these count.
        task_metrics: by task, every task of the run among them.
    """
    is_alone = len(task_metrics) == 1
    own = {
        key if is_alone else f"task/{task}/{key}": value
        for task, part in task_metrics.items()
        for key, value in part.items()
    }
    return {**own, **metrics}


def mean_reward(groups: Sequence[Group]) -> float | None:
    """Mean over all scored samples, or None if there is none."""
    rewards = [reward for group in groups for reward in group.rewards]
    return fmean(rewards) if rewards else None


@dataclass(frozen=True, slots=True)
class RolloutStats:
    """A batch of groups that is about to train, in numbers."""

    reward: float
    """Mean over the scored samples."""
    reward_deviation: float
    num_scored: int
    """Samples with a reward."""
    frac_zero_deviation: float
    """Share of the groups whose rewards are all equal."""
    response_length: float
    """Mean sampled tokens of a completion."""
    max_response_length: int
    truncated_frac: float
    """Share of the completions that the token limit cut."""
    staleness: float
    """Trainer version minus token version, mean over all tokens."""
    max_staleness: int
    mixed_version_frac: float
    """Share of the completions sampled across a weight update."""
    num_tokens: int

    @classmethod
    def measure(cls, groups: Sequence[Group], version: int) -> Self:
        """The numbers of at least one group that trains at policy version `version`."""
        samples = [sample for group in groups for sample in group.samples]
        trajectories = [sample.completion.trajectory for sample in samples]
        rewards_by_group = [group.rewards for group in groups]
        rewards = [reward for each in rewards_by_group for reward in each]
        lengths = [trajectory.response_length for trajectory in trajectories]
        tokens_by_version: Counter[int] = Counter()
        for trajectory in trajectories:
            for sampled_at, count in trajectory.versions:
                tokens_by_version[sampled_at] += count
        reward = fmean(rewards)
        return cls(
            reward=reward,
            reward_deviation=fmean([(each - reward) ** 2 for each in rewards]) ** 0.5,
            num_scored=len(rewards),
            frac_zero_deviation=fmean([len(set(each)) <= 1 for each in rewards_by_group]),
            response_length=fmean(lengths),
            max_response_length=max(lengths),
            truncated_frac=fmean([trajectory.finish_reason == "length" for trajectory in trajectories]),
            staleness=sum((version - v) * count for v, count in tokens_by_version.items()) / sum(lengths),
            max_staleness=version - min(tokens_by_version),
            mixed_version_frac=fmean([len(trajectory.versions) > 1 for trajectory in trajectories]),
            num_tokens=sum(lengths),
        )

    def as_metrics(self) -> dict[str, float]:
        """The numbers under their names as metrics, `rollout/*`."""
        return {
            names.REWARD: self.reward,
            names.REWARD_COUNT: self.num_scored,
            names.REWARD_STD: self.reward_deviation,
            names.FRAC_ZERO_STD: self.frac_zero_deviation,
            names.RESPONSE_LENGTH: self.response_length,
            names.RESPONSE_LENGTH_MAX: self.max_response_length,
            names.TRUNCATED: self.truncated_frac,
            names.STALENESS_MEAN: self.staleness,
            names.STALENESS_MAX: self.max_staleness,
            names.MIXED_VERSIONS: self.mixed_version_frac,
            names.TOKENS: self.num_tokens,
        }


def evaluation_metrics(groups: Sequence[Group]) -> dict[str, float | None]:
    """`eval/*` of judged held-out groups; nothing of none.

    Of each judge: the mean score over the samples it scored and, if it decides, the share of them that pass.
    """
    samples = [sample for group in groups for sample in group.samples]
    if not samples:
        return {}
    metrics: dict[str, float | None] = {
        names.HELD_OUT_REWARD: mean_reward(groups),
        names.HELD_OUT_COUNT: sum(sample.reward is not None for sample in samples),
        names.HELD_OUT_LENGTH: fmean(sample.completion.trajectory.response_length for sample in samples),
    }
    verdicts = [item for sample in samples for item in sample.verdicts.items()]
    for name in sorted({name for name, _ in verdicts}):
        scored = [verdict for judge, verdict in verdicts if judge == name and verdict.score is not None]
        decided = [verdict.passed for verdict in scored if verdict.passed is not None]
        if scored:
            metrics[f"eval/judge/{name}/mean"] = fmean(verdict.score or 0.0 for verdict in scored)
        if decided:
            metrics[f"eval/judge/{name}/pass_rate"] = fmean(decided)
    satisfied = [sample.is_satisfied for sample in samples if sample.is_satisfied is not None]
    metrics[names.HELD_OUT_SATISFIED] = fmean(satisfied) if satisfied else None
    return metrics
