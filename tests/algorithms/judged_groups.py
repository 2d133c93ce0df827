"""Judged groups for the tests of constrained algorithms, written as short tuples."""

from collections.abc import Sequence

from llamarl.core.records import Completion, Group, Prompt, Sample, Trajectory

Judged = tuple[float | None, bool | None] | tuple[float | None, bool | None, float]
"""Reward, whether the constraints are met, and the KL estimate (0 where left out)."""


def sample_of(judged: Judged, place: int = 0, text: str | None = None, prompt: int = 0) -> Sample:
    """Two tokens; the reference log-probs are lower by half the KL each."""
    reward, is_satisfied, *rest = judged
    kl = rest[0] if rest else 0.0
    trajectory = Trajectory.sampled((1, 2, prompt), (10 + place, 3), (-0.5, -1.0), (0, 0))
    completion = Completion(trajectory, f"answer {place}" if text is None else text)
    reference = (-0.5 - kl / 2, -1.0 - kl / 2)
    return Sample(completion, {}, reward, is_satisfied=is_satisfied, reference_logprobs=reference)


def group_of(*judged: Judged, index: int = 0, baseline: Sample | None = None) -> Group:
    """One prompt with a sample per entry."""
    samples = tuple(sample_of(entry, place, prompt=index) for place, entry in enumerate(judged))
    return Group(Prompt(f"p{index}", ()), samples, index=index, baseline=baseline)


def places(samples: Sequence[object]) -> list[int]:
    """Which samples of their groups these training samples are."""
    return [sample.trajectory.token_ids[0] - 10 for sample in samples]  # type: ignore[attr-defined]
