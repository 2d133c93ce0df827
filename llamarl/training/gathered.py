"""Sums that losses leave behind until the optimizer's update, and the pool of a step's updates."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from llamarl.core.records import TrainSample
from llamarl.functional.losses import Metrics, mean_metrics, sum_metrics
from llamarl.training.ranks import Ranks


@dataclass
class TaskGathered:
    """Sums over one task's micro-batches since the last step; the gradient itself lies in the parameters."""

    parts: list[Metrics] = field(default_factory=list)
    """Metrics of each micro-batch, as sums and counts."""
    loss: float = 0.0
    """Loss before the task's weight."""
    grad_norm: float = 0.0
    """Norm of the task's own gradient in the last call of `loss`, before its weight; NaN if a loss was not finite."""
    prob_gap: float | None = None
    """Largest probability gap to the generator; None where no token was of the current version."""
    num_tokens: int = 0
    num_samples: int = 0
    num_samples_without_signal: int = 0
    growth: list[tuple[float, list[int]]] = field(default_factory=list)
    """Growth of the gradient's norm by each micro-batch, and its groups."""
    unsynced: list[int] = field(default_factory=list)
    """Groups of micro-batches whose gradients have no norm yet, since the ranks have not summed them."""

    def copy(self) -> "TaskGathered":
        """Copies the sums as they are now, untouched by what is gathered later."""
        return replace(self, parts=[*self.parts], growth=[*self.growth], unsynced=[*self.unsynced])

    def metrics(self) -> dict[str, float]:
        """Plain numbers, every mean over its own count."""
        values = mean_metrics(self.parts) | {
            "train/loss": self.loss,
            "train/tokens": float(self.num_tokens),
            "train/samples": float(self.num_samples),
            "train/samples_without_signal": float(self.num_samples_without_signal),
        }
        return values if self.prob_gap is None else values | {"train/mismatch_prob_max": self.prob_gap}


@dataclass
class Gathered:
    """All tasks' sums since the last step."""

    tasks: list[TaskGathered]
    """Sums of each task, by its index."""
    loss: float = 0.0
    """Weighted sum over the tasks."""
    grad_norm: float = 0.0
    """Norm of the weighted sum of the tasks' gradients; NaN once a loss was not finite."""
    seconds: float = 0.0
    watched: frozenset[int] = frozenset()
    """Groups whose log-probs are kept."""
    logprobs: "dict[tuple[int, bytes], array[float]]" = field(default_factory=dict)
    """(group, `Trajectory.key`) -> log-prob of each response token, of the watched groups."""

    def watch(self, samples: Sequence[TrainSample], logprobs: Tensor) -> None:
        """Keeps the log-probs `[N, T]` of samples of watched groups."""
        for sample, row in zip(samples, logprobs, strict=True):
            if sample.group in self.watched:
                known = row[: sample.trajectory.response_length].tolist()
                self.logprobs[sample.group, sample.trajectory.key] = array("f", known)

    @property
    def has_gradient(self) -> bool:
        """Says whether any sample was trained on."""
        return any(task.growth for task in self.tasks)

    @property
    def suspects(self) -> list[int]:
        """Groups of the micro-batch that added most to the norm; of the non-finite one where there is one."""
        growth = [entry for task in self.tasks for entry in task.growth]
        worst = max(growth, key=lambda entry: entry[0] if math.isfinite(entry[0]) else math.inf)
        return sorted(set(worst[1]))

    def metrics(self) -> dict[str, float]:
        """Plain numbers over all tasks, every mean over its own count."""
        gaps = [task.prob_gap for task in self.tasks if task.prob_gap is not None]
        pooled = TaskGathered(
            parts=[part for task in self.tasks for part in task.parts],
            loss=self.loss,
            prob_gap=max(gaps, default=None),
            num_tokens=sum(task.num_tokens for task in self.tasks),
            num_samples=sum(task.num_samples for task in self.tasks),
            num_samples_without_signal=sum(task.num_samples_without_signal for task in self.tasks),
        )
        return pooled.metrics()

    def task_metrics(self) -> tuple[dict[str, float], ...]:
        """Each task's own numbers, by the task's index."""
        return tuple(task.metrics() | {"train/grad_norm": task.grad_norm} for task in self.tasks)


def pool(updates: Sequence[Gathered], passes: int) -> Gathered:
    """Pools the updates of one step: samples count once however many passes they had, losses and norms are means."""
    count = len(updates)
    tasks = []
    for of_task in zip(*(update.tasks for update in updates), strict=True):
        gaps = [each.prob_gap for each in of_task if each.prob_gap is not None]
        tasks.append(
            TaskGathered(
                parts=[part for each in of_task for part in each.parts],
                loss=sum(each.loss for each in of_task) / count,
                grad_norm=sum(each.grad_norm for each in of_task) / count,
                prob_gap=max(gaps, default=None),
                num_tokens=sum(each.num_tokens for each in of_task) // passes,
                num_samples=sum(each.num_samples for each in of_task) // passes,
                num_samples_without_signal=sum(each.num_samples_without_signal for each in of_task) // passes,
            )
        )
    return Gathered(
        tasks,
        loss=sum(update.loss for update in updates) / count,
        grad_norm=sum(update.grad_norm for update in updates) / count,
        seconds=sum(update.seconds for update in updates),
        logprobs={key: row for update in updates for key, row in update.logprobs.items()},
    )


def pool_ranks(gathered: Gathered, ranks: Ranks) -> Gathered:
    """Pools what the ranks gathered of their shares of one update, as one rank would have gathered it. All call it.

    Norms, counts of samples and groups are those of all samples on every rank; losses, metrics and log-probs are not.
    """
    if ranks.fsdp == 1:
        return gathered
    told = ranks.tell(_as_json(gathered))[:: ranks.tp]  # the parts of one share say the same
    tasks = []
    for index, task in enumerate(gathered.tasks):
        of_task = [each["tasks"][index] for each in told]
        parts: list[Metrics] = [
            {name: (total, count) for name, (total, count) in each["sums"].items()} for each in of_task
        ]
        gaps = [each["prob_gap"] for each in of_task if each["prob_gap"] is not None]
        loss = sum(each["loss"] for each in of_task)
        tasks.append(replace(task, parts=parts, loss=loss, prob_gap=max(gaps, default=None)))
    rows = [row for each in told for row in each["logprobs"]]
    logprobs = {(group, bytes.fromhex(key)): array("f", values) for group, key, values in rows}
    return replace(gathered, tasks=tasks, loss=sum(each["loss"] for each in told), logprobs=logprobs)


def _as_json(gathered: Gathered) -> Any:
    """What is this rank's alone, as plain values."""
    tasks = [{"sums": sum_metrics(task.parts), "loss": task.loss, "prob_gap": task.prob_gap} for task in gathered.tasks]
    logprobs = [(group, key.hex(), values.tolist()) for (group, key), values in gathered.logprobs.items()]
    return {"tasks": tasks, "loss": gathered.loss, "logprobs": logprobs}


def in_runs(numbers: Sequence[int]) -> str:
    """Ascending numbers for people: `3, 7 to 9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in runs)
