"""The declarations that every algorithm makes: its needs, and its two halves.

    settings.needs       read by recipe, controller and trainer, without building anything
    settings.credit()    the controller's half: judged groups -> training samples with advantages (plain numbers)
    settings.loss()      the trainer's half: a micro-batch of tensors -> its share of the step's loss

A trainer's process calls `loss` alone, so `loss` must not load judges, tasks or anything else of the controller's side.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llamarl.core.records import Assignment, Group, Prompt

Comparison = Literal["group", "batch"]
"""Samples that a reward is compared with: those of the same prompt, or those of the whole step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """An algorithm's demands on a run, under its present settings, and what may be done with its samples."""

    reference: bool = False
    """True if the first policy, frozen, must score every sample (`Sample.reference_logprobs`)."""
    baseline: bool = False
    """True if each prompt's given response must be judged too (`Group.baseline`)."""
    calibrated_reward: bool = False
    """True if the judged reward must be a margin over the prompt's baseline response, not a raw score."""
    values: bool = False
    """True if the trainer must train a value head beside the policy (`LossBatch.values`)."""
    entropy_gradient: bool = False
    """True if gradients must flow through `LossBatch.entropy`; otherwise the entropy is only reported."""
    groups_together: bool = False
    """True if all samples of a group must reach the loss in one micro-batch, as pairs must."""
    zero_advantages: bool = False
    """True if samples of advantage 0 have a gradient too; otherwise the trainer skips them."""
    varied_rewards: bool = False
    """True if groups whose rewards are all equal are dropped, and other prompts take their place."""
    comparison: Comparison | None = None
    """Samples that a reward is compared with: alone among them, one teaches nothing. None: one sample teaches alone."""
    corrects_staleness: bool = False
    """True if the loss weighs or clips by policy / behaviour; otherwise every sample must be of the newest policy."""
    ignores_behavior_logprobs: bool = False
    """True for pure imitation: the loss never reads sampling log-probs, so samples of another prompt or policy are
    allowed."""
    assigns_in_thread: bool = False
    """True if `Credit.assign` takes so long that it runs on a thread, for one batch at a time, beside the loop."""

    @property
    def allows_several_updates(self) -> bool:
        """True if a batch may train a policy that has moved on from the one before the batch's first update."""
        return self.corrects_staleness or self.ignores_behavior_logprobs


class Credit(ABC):
    """The controller's half of an algorithm: which samples train, and with which advantage."""

    @abstractmethod
    def assign(self, groups: Sequence[Group]) -> Assignment:
        """Turns one batch of judged groups into training samples. Unscored samples never appear."""

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Looks at all training prompts before the run starts. Raises `DataError` where one lacks something."""
        return

    def held_out_metrics(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Measures judged held-out groups; the names are logged under `eval/algorithm/`."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """Returns what `assign` remembers from step to step, as plain JSON values for a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        return


class Algorithm(ABC):
    """An algorithm's settings. They pickle, and both halves are built from them, each where it runs."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """The needs of the algorithm as it is set."""

    @abstractmethod
    def credit(self) -> Credit:
        """Builds the controller's half, with no memory of earlier steps."""

    @abstractmethod
    def loss(self) -> Callable[[Any], Any]:
        """Builds the trainer's half: one micro-batch's `functional.losses.LossBatch` -> its `LossOutput`."""
