"""The steps of a supervised training, whatever its objective: micro-batches, gradient, optimizer, measurement.

No randomness is involved, and batches are a function of the step: a resumed training gives the numbers of an
uninterrupted one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from llamarl.core import metric_names as names
from llamarl.core.errors import CollapseError, ConfigError, DataError
from llamarl.functional.losses import Metrics, mean_metrics, sum_metrics
from llamarl.functional.shards import local_part
from llamarl.models.lora import Adapters
from llamarl.training import checkpoints
from llamarl.training.balance import deal
from llamarl.training.dither import dither_weights
from llamarl.training.memory import micro_batch_tokens
from llamarl.training.objective import Objective, R, Report
from llamarl.training.optimizer import Optimizer
from llamarl.training.ranks import ALONE, Ranks
from llamarl.training.sharding import Sharded


class Fitter(Generic[R]):
    """Trains a model in place; one rank of several trains its part, and every method is called on all of them.

    Args:
        model: what the objective loads; dropout is switched off. Several ranks take its weights out of it.
        objective: what the rows say.
        total_steps: where a falling schedule reaches 0; None: `num_steps` of the settings.
        ranks: who trains together.

    Raises:
        ConfigError: a schedule that never ends, adapters for layers that the model hasn't, or a model that cannot be
            cut up over the ranks.
        MissingDependencyError: adapters without the extra `lora`.
    """

    def __init__(
        self, model: nn.Module, objective: Objective[R], total_steps: int | None = None, ranks: Ranks = ALONE
    ) -> None:
        self.model, self.objective, self.config = model, objective, objective.config
        self.num_steps_done, self._ranks = 0, ranks
        self._adapters = None if self.config.lora is None else Adapters(model, self.config.lora, self.config.seed)
        objective.freeze(model)
        if self.config.dither and self.config.precision == "bf16" and self.config.lora is None:
            dither_weights(model, self.config.seed)
        self._micro_batch_tokens = micro_batch_tokens(model, self.config)
        checkpointing, gradient_sync = self.config.checkpointing, self.config.gradient_sync
        self._sharded = Sharded(model, ranks, checkpointing, gradient_sync, objective.head_name)
        self.layout = self._sharded.layout
        """Where in the whole weights this rank's lie."""
        self._score = objective.build_scorer(self._sharded.module)
        total = total_steps or self.config.num_steps
        self._optimizer = Optimizer(self._sharded.parameters, self.config, total, ranks, self.layout.copies)
        whole = (self.layout.shape(name, tensor) for name, tensor in self.weights().items())
        self.num_trained = sum(map(math.prod, whole))
        """Numbers that are trained, over all ranks: the model's parameters, or those of the adapters."""

    def weights(self) -> dict[str, Tensor]:
        """What this rank holds of the tensors that are trained, by name."""
        # Views of the same memory that can be written and saved without autograd.
        return {name: local_part(p) for name, p in self._sharded.parameters.items() if p.requires_grad}

    def step(self, rows: Sequence[R]) -> dict[str, float]:
        """Takes one optimizer step on `rows`, of which each rank takes its share.

        Returns:
            `train/loss`, what the objective logs, `train/grad_norm`, `train/lr`, and `train/tokens` (of the answers).

        Raises:
            CollapseError: loss or gradient is not finite; the weights stay as they were.
            ConfigError: the adapters have been merged.
        """
        if self.config.lora is not None and self._adapters is None:
            raise ConfigError("lora: the adapters are merged, and so no step may follow; make another Fitter")
        divisor, sums = self.objective.divisor(rows), list[Metrics]()
        parts = self._share(rows)
        for number, part in enumerate(parts, 1):
            members = [rows[index] for index in part]
            scores = self._score(members or [self._cheapest(rows)])
            losses, metrics = self.objective.losses(scores, members) if members else (0.0 * scores, {})
            total = losses.sum()
            value = float(total.detach())
            self._refuse_nonfinite("loss", self._ranks.total(value))
            self._sharded.backward(total / divisor, is_last=number == len(parts))
            if members:
                sums.append({**metrics, names.LOSS: (value, losses.numel())})
        norm = self._optimizer.grad_norm()
        self._refuse_nonfinite("gradient norm", norm)
        rate = self._optimizer.step(self.num_steps_done, norm)
        self.num_steps_done += 1
        of_all = self._ranks.tell(sum_metrics(sums))[:: self._ranks.tp]
        num_tokens = float(sum(row.num_tokens for row in rows))
        return {
            **mean_metrics(of_all),
            names.GRAD_NORM: norm,
            names.LEARNING_RATE: rate,
            names.TRAIN_TOKENS: num_tokens,
        }

    @torch.no_grad()
    def scores(self, rows: Sequence[R]) -> Tensor:
        """Gives what the objective's scorer gives of the rows, in order, on the CPU; each rank scores its share."""
        found: dict[int, Tensor] = {}
        own: list[Tensor] = []
        for part in (parts := self._share(rows)):
            scores = self._score([rows[index] for index in part] or [self._cheapest(rows)]).cpu()
            own.append(scores if part else scores[:0])
        order = [index for part in parts for index in part]
        told = self._ranks.exchange(torch.cat(own))[:: self._ranks.tp]
        orders = self._ranks.tell(order)[:: self._ranks.tp]
        for indices, scores in zip(orders, told, strict=True):
            sizes = [self.objective.num_scores(rows[index]) for index in indices]
            found |= zip(indices, torch.split(scores, sizes), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([found[index] for index in range(len(rows))])

    def evaluate(self, rows: Sequence[R]) -> Report:
        """Measures on rows, at least one, without training on them.

        Raises:
            CollapseError: a score is not finite.
        """
        scores = self.scores(rows)
        self._refuse_nonfinite("largest held-out score", float(scores.abs().max()))
        return self.objective.report(scores, rows)

    def merge(self) -> None:
        """Adds the adapters, where there are any, to the weights: the model is then an ordinary one, to be saved.

        Of a lone rank only: several hold no whole weights to add to.
        """
        if self._adapters is not None:
            self._adapters.merge()
            self._adapters, self._score = None, self.objective.build_scorer(self.model)

    def save_adapter(self, directory: Path, base: str) -> None:
        """Writes the adapters alone, in PEFT layout, for a model of the name `base`. Of a lone rank only."""
        if self._adapters is None:
            raise ConfigError(
                "lora: there are no adapters to save; set lora.rank, and save them before they are merged"
            )
        self._adapters.save(directory, base)

    def save(self, directory: str | Path, extra: Mapping[str, Any]) -> None:
        """Writes trained weights, optimizer and counters into an empty directory."""
        counters = {**extra, "num_steps_done": self.num_steps_done}
        checkpoints.write(directory, self.weights(), self._optimizer.state(), counters, layout=self.layout)

    def load(self, directory: str | Path) -> dict[str, Any]:
        """Restores what `save` wrote, on however many ranks; returns its counters.

        Raises:
            CheckpointError: another model's.
        """
        weights = self.weights()
        stored = checkpoints.read(directory, weights, layout=self.layout)
        checkpoints.copy_weights(stored.weights, weights)
        self._optimizer.read_weights()
        self._optimizer.load_state(stored.optimizer)
        self.num_steps_done = int(stored.counters["num_steps_done"])
        return stored.counters

    def save_weights(self, path: Path) -> None:
        """Writes the trained weights alone, whole, into a file."""
        checkpoints.save_tensors(self.weights(), path, self.layout)

    def load_weights(self, path: Path) -> None:
        """Takes the weights that `save_weights` wrote; to be called where no step follows."""
        checkpoints.copy_weights(checkpoints.load_tensors(path, self.layout), self.weights())

    def collect(self) -> dict[str, Tensor]:
        """The whole trained weights on the first rank, on the CPU; nothing on the others."""
        whole = {name: self.layout.put_together(name, tensor) for name, tensor in self.weights().items()}
        return {name: tensor.cpu() for name, tensor in whole.items() if tensor is not None}

    def _share(self, rows: Sequence[R]) -> list[list[int]]:
        """This rank's micro-batches, indices of rows: as many as other ranks have, some perhaps empty."""
        share = deal([self.objective.cost(row) for row in rows], self._ranks.fsdp)[self._ranks.share]
        parts = self._split([rows[index] for index in share]) if share else []
        own = [[share[place] for place in part] for part in parts]
        return own + [[]] * (max(self._ranks.tell(len(own))) - len(own))

    def _split(self, rows: Sequence[R]) -> list[list[int]]:
        """Micro-batches that fit the memory: row indices, every one once."""
        return self._score.split(rows, self._micro_batch_tokens)

    def _cheapest(self, rows: Sequence[R]) -> R:
        """The row that a rank scores for nothing, to take part in the exchanges of ranks that have more to do."""
        return min(rows, key=self.objective.cost)

    def _refuse_nonfinite(self, what: str, value: float) -> None:
        """Raises `CollapseError`, without a trace of the step, where a value is not finite."""
        if not math.isfinite(value):
            self._optimizer.clear()
            raise CollapseError(
                f"{self.objective.name} step {self.num_steps_done}: {what} is {value}; lower learning_rate, or look "
                "for outliers in the data"
            )


class Batches(Generic[R]):
    """Batches by step number: every row once an epoch, in the objective's order of that epoch.

    Args:
        rows: to train on.
        objective: its settings say how large batches are, and whether they go across epochs.

    Raises:
        DataError: no rows.
    """

    def __init__(self, rows: Sequence[R], objective: Objective[R]) -> None:
        if not rows:
            raise DataError(f"{objective.name}: no rows to train on")
        self._rows, self._objective, self._size = rows, objective, objective.config.batch_size
        whole_batches = -(-len(rows) // self._size) * self._size
        self._stride = len(rows) if objective.config.batches_cross_epochs else whole_batches
        self._order: tuple[int, Sequence[int]] = (-1, [])
        self.num_steps = objective.config.total_steps(len(rows))
        """Steps of the whole training."""

    def __getitem__(self, step: int) -> list[R]:
        """The rows of a step, counted from 0."""
        start, stop = step * self._size, (step + 1) * self._size
        if (num_epochs := self._objective.config.num_epochs) is not None:
            stop = min(stop, num_epochs * self._stride)
        found: list[R] = []
        # Epoch by epoch, since most places of a batch much larger than the data hold no row.
        for epoch in range(start // self._stride, -(-stop // self._stride)):
            begin = epoch * self._stride
            order, end = self._order_of(epoch), min(stop - begin, len(self._rows))
            found += [self._rows[order[place]] for place in range(max(start - begin, 0), end)]
        return found

    def _order_of(self, epoch: int) -> Sequence[int]:
        """The order of one epoch, kept while it lasts."""
        if self._order[0] != epoch:
            self._order = epoch, self._objective.epoch_order(self._rows, epoch)
        return self._order[1]


def fit_model(
    model: nn.Module,
    objective: Objective[R],
    rows: Sequence[R],
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> float:
    """Trains `model` in place on `rows`, all in memory. `training.fit.fit` is the same with files.

    Save the result with `models.checkpoint.save_model`.

    Args:
        model: what the objective loads.
        objective: with its settings.
        rows: the training set, any size from 1.
        on_step: called after each step with its number, from 1, and its metrics.

    Returns:
        The last step's loss.
    """
    batches = Batches(rows, objective)
    fitter = Fitter(model, objective, batches.num_steps)
    objective.prepare(fitter.scores, rows, {})
    metrics = {names.LOSS: math.nan}
    for step in range(batches.num_steps):
        metrics = fitter.step(batches[step])
        if on_step is not None:
            on_step(step + 1, metrics)
    fitter.merge()
    return metrics[names.LOSS]
