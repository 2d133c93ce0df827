"""The events that the loop reports. The run directory's reporter implements the observer; tests record them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from llamarl.controller.metrics import RolloutStats
from llamarl.core.group_judge import JudgesStatus
from llamarl.core.records import Group, TrainSample, WeightProof


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step, as the loop saw it."""

    version: int
    """Policy version after the step: the x-axis of every curve."""
    rollouts: RolloutStats
    """The step's groups in numbers."""
    judges: JudgesStatus
    metrics: Mapping[str, float]
    """Metrics of the whole step."""
    task_metrics: Mapping[str, Mapping[str, float]]
    """Each task's own metrics, by the task's name."""
    groups: Sequence[Group]
    proofs: Sequence[WeightProof]
    """The newest weight proof of each generator."""
    trainer_logprobs: Mapping[tuple[int, bytes], Sequence[float]] = field(default_factory=dict)
    """The trainer's log-probs of samples of watched groups that trained (`StepResult.logprobs`)."""
    trained: Mapping[tuple[int, bytes], TrainSample] = field(default_factory=dict)
    """(group, `Trajectory.key`) -> how a sample of a watched group trained; absent where it did not."""


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """Held-out prompts, answered with the weights of one version."""

    version: int
    groups: Mapping[str, Sequence[Group]]
    """The judged groups of every task, by the task's name."""
    algorithm_metrics: Mapping[str, Mapping[str, float]]
    """Task name -> metrics of its held-out groups that the task's algorithm computes."""

    @property
    def all_groups(self) -> list[Group]:
        """The groups of all tasks in a row."""
        return [group for groups in self.groups.values() for group in groups]


class Observer(Protocol):
    """Is told what happens, synchronously; must be quick."""

    def span(self, executor: str, activity: str) -> AbstractContextManager[None]:
        """Wraps the time an executor spends on something."""

    def choose_watched(self, version: int, groups: Sequence[Group]) -> Sequence[int]:
        """Indices of the groups whose trainer log-probs are wanted, in the step that makes `version`."""

    def on_group(self, group: Group, dropped: str | None) -> None:
        """A group was judged; `dropped` says why it will not train."""

    def on_step(self, record: StepRecord) -> None:
        """An optimizer step was made and recorded in the ledger."""

    def on_evaluation(self, record: EvaluationRecord) -> None:
        """Held-out prompts were answered and judged."""

    def on_progress(self) -> None:
        """The trainer is still at its step, a second later."""

    def on_message(self, text: str) -> None:
        """Something a person should know: a lost executor, a damaged checkpoint."""
