"""Numbers of one batch, from the records alone. Every key is explained in docs/reference/metrics.md."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from llamarl.core.records import Assignment, Group


def batch_metrics(
    batches: Mapping[str, Sequence[Group]], assignments: Sequence[Assignment], version: int
) -> dict[str, float]:
    """`rollout/*` and `algorithm/*` of one step's batches about to train at `version`.

    With several tasks, `rollout/*` pools them, and each task has its own numbers under `task/<name>/`.
    """
    pooled = rollout_metrics([group for batch in batches.values() for group in batch], version)
    parts = [{f"algorithm/{key}": value for key, value in found.metrics.items()} for found in assignments]
    if len(batches) == 1:
        return pooled | parts[0]
    own = [rollout_metrics(batch, version) if batch else {} for batch in batches.values()]
    return pooled | by_task(list(batches), own) | by_task(list(batches), parts)


def by_task(names: Sequence[str], parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each task's metrics under `task/<name>/`."""
    pairs = zip(names, parts, strict=True) if parts else ()
    return {f"task/{name}/{key}": value for name, part in pairs for key, value in part.items()}


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


def evaluation_metrics(groups: Sequence[Group]) -> dict[str, float | None]:
    """`eval/*` of judged held-out groups; where their prompts are of several tasks, also `task/<name>/eval/*`.

    Of each judge the mean score over the samples it scored and, if it decides, the share of them that pass.
    """
    metrics = _evaluation_of(groups)
    tasks = sorted({group.prompt.task for group in groups})
    if len(tasks) > 1:
        parts = [_evaluation_of([group for group in groups if group.prompt.task == name]) for name in tasks]
        metrics |= {
            f"task/{name}/{key}": value for name, part in zip(tasks, parts, strict=True) for key, value in part.items()
        }
    return metrics


def _evaluation_of(groups: Sequence[Group]) -> dict[str, float | None]:
    samples = [sample for group in groups for sample in group.samples]
    metrics: dict[str, float | None] = {
        "eval/reward/mean": mean_reward(groups),
        "eval/reward/count": sum(sample.reward is not None for sample in samples),
        "eval/response_len/mean": fmean(len(sample.completion.token_ids) for sample in samples),
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
    metrics["eval/satisfied_frac"] = fmean(satisfied) if satisfied else None
    return metrics
