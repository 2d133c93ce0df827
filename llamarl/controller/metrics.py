"""Numbers of one batch, from the records alone. Every key is explained in docs/reference/metrics.md."""

from collections.abc import Sequence
from statistics import fmean

from llamarl.core.records import Group


def mean_reward(groups: Sequence[Group]) -> float | None:
    """Mean over all scored samples, or None if there is none."""
    rewards = [reward for group in groups for reward in group.rewards]
    return fmean(rewards) if rewards else None


def rollout_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """`rollout/*` of one batch about to train at `version`.

    Denominators: rewards over scored samples, lengths and truncation over all samples, staleness over all tokens,
    `frac_zero_std` over groups.
    """
    samples = [sample for group in groups for sample in group.samples]
    completions = [sample.completion for sample in samples]
    rewards = [reward for group in groups for reward in group.rewards]
    lengths = [len(completion.token_ids) for completion in completions]
    stale = [version - v for completion in completions for v in completion.versions]
    return {
        "rollout/reward/mean": fmean(rewards),
        "rollout/reward/count": len(rewards),
        "rollout/reward/std": fmean([(r - fmean(rewards)) ** 2 for r in rewards]) ** 0.5,
        "rollout/frac_zero_std": fmean([len(set(group.rewards)) <= 1 for group in groups]),
        "rollout/response_len/mean": fmean(lengths),
        "rollout/response_len/max": max(lengths),
        "rollout/truncated_frac": fmean([completion.finish_reason == "length" for completion in completions]),
        "rollout/staleness/mean": fmean(stale),
        "rollout/staleness/max": max(stale),
        "rollout/mixed_version_frac": fmean([len(set(completion.versions)) > 1 for completion in completions]),
        "rollout/tokens": sum(lengths),
    }
