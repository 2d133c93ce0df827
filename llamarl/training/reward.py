"""Reward models and classifiers: teach a scoring head, and the body below it, from preferences or labels.

    pairs     mean over pairs of -log sigmoid(r(chosen) - r(rejected) - margin)
              + centering * (r(chosen) + r(rejected))^2
    labels    mean cross-entropy over rows

Rewards are read at the last token of the whole conversation. No randomness is involved: the head starts at zero, and
the rows come in an order hashed from the seed, so that a resumed training gives the numbers of an uninterrupted one.

Shape legend: N conversations, L labels, B examples.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamarl.core.errors import CollapseError, ConfigError
from llamarl.core.seeds import derive_seed
from llamarl.functional.losses import Metrics, mean_metrics
from llamarl.functional.preference import bradley_terry_loss, centering_penalty
from llamarl.models.decoder import named_tensors
from llamarl.training import checkpoints
from llamarl.training.memory import micro_batch_tokens
from llamarl.training.optimizer import Optimizer
from llamarl.training.reward_config import RewardConfig
from llamarl.training.reward_data import Example, Kind
from llamarl.training.reward_report import Report, report_labels, report_pairs
from llamarl.training.reward_scoring import build_conversation_scorer, split_groups


class Objective(Protocol):
    """What is learned from one kind of rows."""

    label_names: tuple[str, ...]
    """One name per output of the head."""

    def losses(self, logits: Tensor, examples: Sequence[Example]) -> tuple[Tensor, Metrics]:
        """`[B]` losses of examples whose conversations have these logits `[N, L]`, and sums and counts to log."""

    def report(self, logits: Tensor, examples: Sequence[Example]) -> Report:
        """How good these logits `[N, L]` are."""

    def answers(self, logits: Tensor, examples: Sequence[Example]) -> dict[str, list[tuple[float, float]]]:
        """(answer tokens, score) of each conversation, by what the rows say of it."""


class PairObjective:
    """Bradley-Terry on chosen and rejected."""

    label_names: tuple[str, ...] = ("reward",)

    def __init__(self, centering: float = 0.0) -> None:
        self._centering = centering

    def losses(self, logits: Tensor, examples: Sequence[Example]) -> tuple[Tensor, Metrics]:
        """`[B]` losses, `train/margin` and `train/accuracy`; logits are those of chosen, rejected, chosen, ..."""
        chosen, rejected = logits.view(-1, 2).unbind(-1)
        margins = torch.tensor([example.target for example in examples], device=logits.device)
        losses = bradley_terry_loss(chosen, rejected, margins)
        if self._centering:
            losses = losses + self._centering * centering_penalty(chosen, rejected)
        gaps = (chosen - rejected).detach()
        metrics: Metrics = {
            "train/margin": (gaps.sum(), len(gaps)),
            "train/accuracy": ((gaps > 0).sum(), len(gaps)),
        }
        return losses, metrics

    def report(self, logits: Tensor, examples: Sequence[Example]) -> Report:
        """See `PairReport`."""
        chosen, rejected = logits.view(-1, 2).unbind(-1)
        lengths = [(example.lengths[0], example.lengths[1]) for example in examples]
        return report_pairs(chosen.tolist(), rejected.tolist(), lengths)

    def answers(self, logits: Tensor, examples: Sequence[Example]) -> dict[str, list[tuple[float, float]]]:
        """Chosen and rejected ones."""
        columns = zip(("chosen", "rejected"), logits.view(-1, 2).unbind(-1), strict=True)
        return {
            name: [
                (float(example.lengths[place]), score) for example, score in zip(examples, scores.tolist(), strict=True)
            ]
            for place, (name, scores) in enumerate(columns)
        }


class LabelObjective:
    """Cross-entropy of two labels."""

    label_names: tuple[str, ...] = ("negative", "positive")

    def losses(self, logits: Tensor, examples: Sequence[Example]) -> tuple[Tensor, Metrics]:
        """`[B]` losses and `train/accuracy`."""
        labels = torch.tensor([int(example.target) for example in examples], device=logits.device)
        is_right = logits.detach().argmax(-1) == labels
        return F.cross_entropy(logits, labels, reduction="none"), {"train/accuracy": (is_right.sum(), len(labels))}

    def report(self, logits: Tensor, examples: Sequence[Example]) -> Report:
        """See `LabelReport`."""
        return report_labels((logits[:, 1] - logits[:, 0]).tolist(), [example.target for example in examples])

    def answers(self, logits: Tensor, examples: Sequence[Example]) -> dict[str, list[tuple[float, float]]]:
        """Rows labelled true and false, by the log-odds of `positive`."""
        scored = list(zip(examples, (logits[:, 1] - logits[:, 0]).tolist(), strict=True))
        return {
            name: [(float(example.lengths[0]), score) for example, score in scored if example.target == label]
            for name, label in (("labelled true", 1.0), ("labelled false", 0.0))
        }


def objective_of(kind: Kind, config: RewardConfig) -> Objective:
    """The objective of a kind of rows. Raises `ConfigError` for settings that do not belong to it."""
    if kind == "pairs":
        if config.is_response_only:
            raise ConfigError(
                "is_response_only=true: for labelled rows (--labels); a pair is compared under its prompt"
            )
        return PairObjective(config.centering)
    if config.centering:
        raise ConfigError(f"centering={config.centering}: for pairs; labelled rows have no free constant")
    return LabelObjective()


class RewardTrainer:
    """Trains a `*ForSequenceClassification` in place.

    Args:
        model: `models.checkpoint.load_classifier(path, new_labels=...)`; dropout is switched off.
        objective: what the rows say.
        config: the settings.
        total_steps: where a falling schedule reaches 0.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, config: RewardConfig, total_steps: int | None = None
    ) -> None:
        self.model, self.config = model, config
        self.num_steps_done = 0
        if config.is_head_only:
            model.requires_grad_(False)
            head: Any = model.score
            head.requires_grad_(True)
        self._objective = objective
        self._score = build_conversation_scorer(model, config.precision)
        self._optimizer = Optimizer(model, config, total_steps)

    def step(self, examples: Sequence[Example]) -> dict[str, float]:
        """One optimizer step: `train/loss`, `train/accuracy`, `train/margin`, `train/grad_norm`, `train/lr`.

        Raises:
            CollapseError: loss or gradient is not finite; the weights stay as they were.
        """
        parts: list[Metrics] = []
        for part in self._parts(examples):
            members = [examples[index] for index in part]
            losses, metrics = self._objective.losses(self._score([m.sequences for m in members]), members)
            total = losses.sum()
            self._refuse_nonfinite("loss", float(total.detach()))
            (total / len(examples)).backward()  # type: ignore[no-untyped-call]
            parts.append({**metrics, "train/loss": (total.detach(), len(members))})
        norm = self._optimizer.grad_norm()
        self._refuse_nonfinite("gradient norm", norm)
        rate = self._optimizer.step(self.num_steps_done, norm)
        self.num_steps_done += 1
        return {**mean_metrics(parts), "train/grad_norm": norm, "train/lr": rate}

    @torch.no_grad()
    def logits(self, examples: Sequence[Example]) -> Tensor:
        """`[N, L]` of the examples' conversations, in order, on the CPU."""
        found: dict[int, Tensor] = {}
        for part in self._parts(examples):
            logits = self._score([examples[index].sequences for index in part]).cpu()
            sizes = [len(examples[index].sequences) for index in part]
            found |= dict(zip(part, torch.split(logits, sizes), strict=True))  # type: ignore[no-untyped-call]
        return torch.cat([found[index] for index in range(len(examples))])

    def evaluate(self, examples: Sequence[Example]) -> Report:
        """Measures on rows, at least one.

        Raises:
            CollapseError: a score is not finite.
        """
        logits = self.logits(examples)
        self._refuse_nonfinite("largest held-out score", float(logits.abs().max()))
        return self._objective.report(logits, examples)

    def save(self, directory: str | Path, extra: dict[str, Any]) -> None:
        """Writes weights, optimizer and counters into an empty directory."""
        weights = dict(named_tensors(self.model))
        counters = {**extra, "num_steps_done": self.num_steps_done}
        checkpoints.write(directory, weights, self._optimizer.state(), counters, critics={})

    def load(self, directory: str | Path) -> dict[str, Any]:
        """Restores what `save` wrote; returns its counters. Raises `CheckpointError` for another model's."""
        weights = dict(named_tensors(self.model))
        stored = checkpoints.read(directory, weights)
        checkpoints.copy_weights(stored.weights, weights)
        self._optimizer.load_state(stored.optimizer)
        self.num_steps_done = int(stored.counters["num_steps_done"])
        return stored.counters

    def _parts(self, examples: Sequence[Example]) -> list[list[int]]:
        most = micro_batch_tokens(self.model, self.config)
        return split_groups([example.sequences for example in examples], most)

    def _refuse_nonfinite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            self._optimizer.clear()
            raise CollapseError(
                f"step {self.num_steps_done}: {what} is {value}; lower learning_rate, or look at the data's margins"
            )


class Batches:
    """Batches by step number: every example once an epoch, in an order hashed from seed, epoch and example.

    Args:
        examples: at least one.
        batch_size: of all batches but an epoch's last.
        seed: another seed, another order.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int) -> None:
        self._examples, self._size, self._seed = examples, batch_size, seed
        self._keys = [example.key for example in examples]
        self._order: tuple[int, list[int]] = (-1, [])
        self.per_epoch = math.ceil(len(examples) / batch_size)
        """Steps of an epoch."""

    def __getitem__(self, step: int) -> list[Example]:
        """The examples of a step, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            keys = [derive_seed("reward", self._seed, epoch, key) for key in self._keys]
            self._order = epoch, sorted(range(len(keys)), key=lambda index: (keys[index], self._keys[index]))
        chosen = self._order[1][place * self._size : (place + 1) * self._size]
        return [self._examples[index] for index in chosen]
