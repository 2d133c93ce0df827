"""What the loop tells the outside. The run directory's reporter implements it; tests record it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from llamarl.core.records import Group, WeightProof


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step, as the loop saw it."""

    version: int
    """Policy version after the step: the x-axis of every curve."""
    reward: float
    """Mean over the batch's scored samples."""
    metrics: Mapping[str, float]
    groups: Sequence[Group]
    proofs: Sequence[WeightProof]
    """The newest weight proof of each generator."""
    trainer_logprobs: Mapping[tuple[int, tuple[int, ...]], Sequence[float]] = field(default_factory=dict)
    """(group, token ids) -> the trainer's log-prob of each token, for samples of watched groups that trained."""


class Observer(Protocol):
    """Is told what happens, synchronously; must be quick."""

    def span(self, executor: str, activity: str) -> AbstractContextManager[None]:
        """Wraps the time an executor spends on something."""

    def watched(self, version: int, groups: Sequence[Group]) -> Sequence[int]:
        """Indices of the groups whose trainer log-probs are wanted, in the step that makes `version`."""

    def on_group(self, group: Group, dropped: str | None) -> None:
        """A group was judged; `dropped` says why it will not train."""

    def on_step(self, record: StepRecord) -> None:
        """An optimizer step was made and recorded in the ledger."""

    def on_evaluation(self, version: int, groups: Sequence[Group], metrics: Mapping[str, float]) -> None:
        """Held-out prompts were answered with the weights of `version`; `metrics` are what algorithms found of them."""

    def on_message(self, text: str) -> None:
        """Something a person should know: a lost executor, a damaged checkpoint."""
