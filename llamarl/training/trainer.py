"""Judged samples in, new weights out: the synchronous policy trainer.

    train(assignments) = loss(assignments), once or more; step()

    loss    of each task: skip samples without gradient > micro-batches > scores > its algorithm's loss > backward;
            the tasks' gradients add up, each by its weight
    step    guard > clip > AdamW > version + 1

Several ranks do this together (`training.ranks`). Each is given all samples and takes its share of them; denominators
are counted over all, gradients are summed, and what is decided, every rank decides by the same numbers.

With several updates a batch (`training.passes`), `train` first notes what the policy says of the whole batch, then
takes loss, guard, clip and AdamW once an update; the version still goes up by one.

Every step counts as a version, also one whose update a guard refused or whose samples carried no signal; then the
weights and the optimizer's state stay bit-identical. No random number is drawn here (dropout is off), so weights,
moments and counters are the whole state.
"""

import logging
import math
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llamarl.core.algorithm import Algorithm
from llamarl.core.errors import CollapseError, ConfigError
from llamarl.core.protocols import AllCores, Cores, WeightChannel
from llamarl.core.records import Assignment, StepResult, TrainSample, Trajectory, WeightManifest, WeightProbe
from llamarl.core.sampling import Sampling
from llamarl.functional.losses import Denominators, LossBatch
from llamarl.functional.mismatch import mismatch
from llamarl.models.probe import probe_rows
from llamarl.scoring.logprobs import EntropyMode, autocast, build_scorer
from llamarl.scoring.packing import split_groups
from llamarl.training import checkpoints
from llamarl.training.balance import deal_out
from llamarl.training.batches import check_samples, is_current, loss_batch
from llamarl.training.config import Checkpointing, GradientSync, TrainerConfig
from llamarl.training.dither import dither_weights
from llamarl.training.gathered import Gathered, TaskGathered, in_runs, pool, pool_ranks
from llamarl.training.guards import GradientGuard, Health
from llamarl.training.memory import LargestActivations, micro_batch_tokens
from llamarl.training.optimizer import Optimizer
from llamarl.training.passes import remember, split_assignment
from llamarl.training.publishing import publish
from llamarl.training.ranks import ALONE, Ranks
from llamarl.training.reference import response_logprobs
from llamarl.training.sft_rows import SFTRow
from llamarl.training.sharding import Sharded
from llamarl.training.trained import TrainedWeights
from llamarl.training.values import ValueHeads

MAX_NONFINITE = 5
"""Number of non-finite updates in a row that end the run."""

MAX_HALVINGS = 3
"""Number of times that micro-batches are halved where memory runs out."""

_log = logging.getLogger(__name__)


def ignore_micro_batch(number: int, total: int) -> None:
    """Does nothing with the number of a micro-batch: for trainers that nobody watches."""


class PolicyTrainer:
    """Trains one policy, on one task or on several at once.

    Args:
        model: float32 weights, trained in place. Its dropout is switched off: log-probs must be those of the generator.
        algorithms: settings of each task's algorithm; their needs and their loss are all the trainer knows of them.
        config: the settings.
        sampling: how the completions are drawn: the temperature divides the logits, `max_tokens` is the token limit
            that length-normalised losses divide by.
        channel: where `publish` offers the weights.
        total_steps: steps of the whole run, for falling learning-rate schedules.
        cores: shares cores with other executors; by default torch's settings are left alone.
        probe_prompts: token ids of prompts on which generators prove that they compute what the trainer computes.
        on_micro_batch: told the number of each micro-batch, from 1, and how many a task's batch has.
        seed: of the adapters' first weights, where adapters are trained.
        ranks: the trainer's ranks; each builds a `PolicyTrainer`, and every method is called on all of them.
        checkpointing: activations that are computed again in the backward pass.
        gradient_sync: micro-batches after which ranks sum their gradients.

    Raises:
        ConfigError: half-precision weights, greedy sampling, no algorithm, a schedule without an end, adapters for
            layers that the model hasn't, or a model that cannot be cut up over the ranks.
        MissingDependencyError: adapters without the extra `lora`.
    """

    def __init__(
        self,
        model: nn.Module,
        algorithms: Algorithm | Sequence[Algorithm],
        config: TrainerConfig | None = None,
        *,
        sampling: Sampling | None = None,
        channel: WeightChannel | None = None,
        total_steps: int | None = None,
        cores: Cores | None = None,
        probe_prompts: Sequence[Sequence[int]] = (),
        on_micro_batch: Callable[[int, int], None] = ignore_micro_batch,
        seed: int = 0,
        ranks: Ranks = ALONE,
        checkpointing: Checkpointing = "none",
        gradient_sync: GradientSync = "each",
    ) -> None:
        self._on_micro_batch = on_micro_batch
        chosen = tuple(algorithms) if isinstance(algorithms, Sequence) else (algorithms,)
        self.config, self.sampling = config or TrainerConfig(), sampling or Sampling()
        _check(model, self.sampling, chosen)
        self._needs = [algorithm.needs for algorithm in chosen]
        if self.config.num_updates > 1 and not all(needs.allows_several_updates for needs in self._needs):
            raise ConfigError(
                f"passes={self.config.passes}, minibatches={self.config.minibatches}: an algorithm has no ratio that "
                "makes up for the updates before; set both to 1, or choose another algorithm or off_policy"
            )
        self._losses = [algorithm.loss() for algorithm in chosen]
        self.version = 0
        """Optimizer steps behind the current weights."""
        self._probe_rows = () if channel is None else probe_rows(model, probe_prompts)
        if self.config.dither and self.config.precision == "bf16" and self.config.lora is None:
            dither_weights(model, seed)
        self.trained = TrainedWeights(model, self.config.lora, seed)
        """The weights that steps change and `publish` and `save` carry."""
        self._ranks = ranks
        self._sharded = Sharded(model, ranks, checkpointing, gradient_sync)
        self.model = model if ranks.count == 1 else self._sharded.module
        """The policy, or what this rank holds of it."""
        self._score = build_scorer(self._sharded.module, self.sampling.temperature)
        self._score_probe = build_scorer(self._sharded.module)
        self.critics = ValueHeads(model, [i for i, needs in enumerate(self._needs) if needs.values])
        """Trained beside the policy, never published; whole on every rank."""
        critics = {f"critics.{name}": parameter for name, parameter in self.critics.named_parameters()}
        copies = self._sharded.layout.copies | (frozenset() if ranks.is_first else critics.keys())
        self._optimizer = Optimizer({**self._sharded.parameters, **critics}, self.config, total_steps, ranks, copies)
        self._guard = GradientGuard(self.config.spike_factor)
        self._channel, self._cores = channel, cores or AllCores()
        self._first_micro_batch_tokens = micro_batch_tokens(model, self.config)
        self._micro_batch_tokens = self._first_micro_batch_tokens
        self._most_activations = LargestActivations()
        self._pending = self._nothing()
        self._probe_at_start = self._score_rows()

    # Verbs

    def train(
        self,
        assignments: Assignment | Sequence[Assignment],
        watched_groups: Sequence[int] = (),
        weights: Sequence[float] = (),
    ) -> StepResult:
        """Takes `loss` over all samples, then `step`; or several updates, as the settings say.

        The result holds the log-probs that the watched groups' samples had before.
        """
        self._pending.watched = frozenset(watched_groups)
        if self.config.num_updates == 1:
            self.loss(assignments, weights)
            return self.step()
        parts = [assignments] if isinstance(assignments, Assignment) else list(assignments)
        self._check_tasks(len(parts), weights)
        shares = weights or _shares(parts)
        minibatches = self._remember(parts, shares)
        updates = []
        for _ in range(self.config.passes):
            for minibatch in minibatches:
                self.loss(minibatch, shares)
                updates.append(self._update())
        return self._finish(updates)

    def loss(self, assignments: Assignment | Sequence[Assignment], weights: Sequence[float] = ()) -> dict[str, float]:
        """Forward and backward passes; the gradient is added to what earlier calls left.

        Give all samples of a step in one call, however many they are: each call divides by the counts of its own
        samples, so k calls before one `step` add up to about k times its gradient. Micro-batches are made inside.

        Each task's loss is divided by its own denominators. They are counted over all its samples, before those without
        advantage are skipped, so skipping changes no gradient; it happens only where the algorithm has no other term.

        Where memory runs out, the micro-batches are halved and the task's loss is taken again, up to three times.

        Args:
            assignments: one of each task, in the order of the algorithms.
            weights: factor of each task's gradient; by default its share of the step's prompts. A task of weight 0 is
                left out.

        Returns:
            The metrics gathered since the last step.

        Raises:
            ConfigError: not one assignment and weight of each task, or out of memory with the smallest micro-batches
                tried; names the settings to change.
            DataError: an algorithm needs reference log-probs, and a sample has none; or the samples of a task disagree
                on whether each token has its own advantage.
        """
        started = time.perf_counter()
        parts = [assignments] if isinstance(assignments, Assignment) else list(assignments)
        self._check_tasks(len(parts), weights)
        shares = weights or _shares(parts)
        for part, needs in zip(parts, self._needs, strict=True):
            check_samples(part.samples, needs, self.sampling)
        for task, (part, weight) in enumerate(zip(parts, shares, strict=True)):
            if weight != 0.0:
                self._add(task, part, weight)
        self._pending.seconds += time.perf_counter() - started
        return pool_ranks(self._pending, self._ranks).metrics()

    def step(self) -> StepResult:
        """Applies the gathered gradient, unless a guard refuses, and clears it. The version goes up by one.

        Raises:
            CollapseError: the fifth non-finite gradient in a row.
        """
        return self._finish([self._update()])

    def _update(self) -> "_Update":
        started = time.perf_counter()
        pending, self._pending = pool_ranks(self._pending, self._ranks), self._nothing()
        health = self._guard.judge(pending.grad_norm) if pending.has_gradient else Health.GOOD
        if health is not Health.GOOD:
            self._report(health, pending)
        is_applied = pending.has_gradient and self._accepts(health)
        if is_applied:
            with self._cores.using("trainer"):
                self._optimizer.step(self.version, pending.grad_norm)
        else:
            self._optimizer.clear()
        pending.seconds += time.perf_counter() - started
        return _Update(pending, health, is_applied)

    def _finish(self, updates: Sequence["_Update"]) -> StepResult:
        pooled = pool([update.gathered for update in updates], self.config.passes if len(updates) > 1 else 1)
        metrics = pooled.metrics() | {
            "train/grad_norm": pooled.grad_norm,
            "train/lr": self._optimizer.rate(self.version),
            "train/updates": float(sum(update.is_applied for update in updates)),
            "train/grad_spike": float(sum(update.health is Health.SPIKE for update in updates)),
            "train/skipped_nonfinite": float(sum(update.health is Health.NONFINITE for update in updates)),
            "time/train": pooled.seconds,
        }
        self.version += 1
        is_skipped = not any(update.is_applied for update in updates)
        return StepResult(self.version, metrics, is_skipped, pooled.logprobs, pooled.task_metrics())

    def publish(self) -> WeightManifest:
        """Offers the current weights on the channel, with checksums and probe log-probs to prove them by.

        Raises:
            ConfigError: the trainer was built without a channel.
        """
        if self._channel is None:
            raise ConfigError("channel: this trainer has none to publish on; pass channel=...")
        started = time.perf_counter()
        tensors, layout = self._held(), self._sharded.layout
        checksums = publish(self._channel, self.version, tensors, layout)
        return WeightManifest(
            version=self.version,
            checksums=checksums,
            probe=WeightProbe(self._probe_rows, self._probe_at_start, self._score_rows()),
            base=self.trained.base,
            num_bytes=layout.num_bytes(tensors, self._channel.dtype),
            seconds=time.perf_counter() - started,
        )

    def reference_logprobs(self, rows: Sequence[Trajectory]) -> "list[array[float]]":
        """Scores trajectories under the policy that the run started from: the model without its adapters.

        Each rank scores its share of the rows; all return what all found.

        Raises:
            ConfigError: the whole model is trained, so that the weights of that policy are gone.
        """
        shares = deal_out(rows, [0] * len(rows), self._ranks.fsdp)
        parts = [[rows[index] for index in share] for share in shares]
        tokens = micro_batch_tokens(self.model, self.config)
        passes = [len(self._score.split(part, tokens)) if part else 0 for part in parts]
        own = self._ranks.share
        found: list[array[float]] = []
        with self.trained.switched_off():
            if parts[own]:
                found = response_logprobs(
                    self._score, self.model, self.config, parts[own], lambda: self._cores.using("trainer")
                )
            for _ in range(max(passes) - passes[own]):
                self._score_nothing()
        told = self._ranks.tell([row.tolist() for row in found])[:: self._ranks.tp]
        scored = {i: row for share, part in zip(shares, told, strict=True) for i, row in zip(share, part, strict=True)}
        return [array("f", scored[index]) for index in range(len(rows))]

    @property
    def micro_batch_tokens(self) -> int:
        """Most tokens in one forward and backward pass, as it is now."""
        return self._micro_batch_tokens

    def memory(self) -> dict[str, int]:
        """Bytes of what this rank holds for training, by part; activations are of its largest micro-batch so far."""
        return {
            "weights": sum(tensor.nbytes for tensor in self._sharded.tensors().values()),
            "gradients": self._sharded.gradient_bytes,
            "moments": sum(tensor.nbytes for tensor in self._optimizer.state().values()),
            "copied weights": self._optimizer.num_copied_bytes,
            "activations": self._most_activations.num_bytes,
        }

    def save(self, directory: str | Path) -> None:
        """Writes trained weights and moments as safetensors and counters as JSON into an empty or new directory."""
        counters = {"version": self.version, "guard": self._guard.state(), "base": self.trained.base_digest}
        weights, layout = self._held(), self._sharded.layout
        checkpoints.write(directory, weights, self._optimizer.state(), counters, self.critics.tensors(), layout)

    def load(self, directory: str | Path) -> int:
        """Restores what `save` wrote, bit for bit, and forgets gathered gradients; returns the policy version.

        Other ranks, or another number of them, may have written it.

        Raises:
            CheckpointError: files missing or broken, or of another model, other critics, or adapters of another base.
        """
        weights, layout = self._held(), self._sharded.layout
        stored = checkpoints.read(directory, weights, self.critics.tensors(), self.trained.base_digest, layout)
        self._optimizer.load_state(stored.optimizer)
        checkpoints.copy_weights(stored.weights, weights)
        checkpoints.copy_weights(stored.critics, self.critics.tensors())
        self._optimizer.read_weights()
        self._guard.load_state(stored.counters["guard"])
        self.version = int(stored.counters["version"])
        self._optimizer.clear()
        self._pending = self._nothing()
        return self.version

    def _held(self) -> dict[str, Tensor]:
        """What this rank holds of the weights that are trained."""
        return self.trained.tensors() if self._ranks.count == 1 else self._sharded.trained_tensors()

    # Micro-batches

    def _add(self, task: int, assignment: Assignment, weight: float) -> None:
        """One task's share of the step. Its gradient is taken on its own, so that no other task can touch its bits."""
        pending, samples = self._pending.tasks[task], assignment.samples
        chosen = self._choose(task, samples)
        pending.num_samples += len(samples)
        pending.num_samples_without_signal += len(samples) - len(chosen)
        if not chosen:
            return
        pending.grad_norm = 0.0
        counts = _count(assignment, self.sampling.max_tokens)
        pending.num_tokens += counts.tokens
        others, loss_before = self._optimizer.take_gradient(), pending.loss
        self._accumulate_all(task, chosen, counts)
        total, pending = self._pending, self._pending.tasks[task]
        total.loss += weight * (pending.loss - loss_before)
        self._optimizer.add_gradient(others, weight)
        norm = self._optimizer.grad_norm() if others else weight * pending.grad_norm
        total.grad_norm = norm if math.isfinite(total.grad_norm + pending.grad_norm) else math.nan

    def _accumulate_all(self, task: int, samples: Sequence[TrainSample], counts: Denominators) -> None:
        before = self._pending.tasks[task].copy()
        try:
            for number, part in enumerate(micro_batches := self._share(task, samples), 1):
                self._on_micro_batch(number, len(micro_batches))
                with self._cores.using("trainer"):
                    self._accumulate(task, part, counts, is_last=number == len(micro_batches))
                if not math.isfinite(self._pending.tasks[task].grad_norm):
                    break
        except torch.OutOfMemoryError as error:
            if self._ranks.count > 1:
                raise  # the others are in the midst of an exchange: the group starts over as a whole
            self._optimizer.clear()
            self._pending.tasks[task] = before
            self._halve_micro_batches(error)
            self._accumulate_all(task, samples, counts)

    def _share(self, task: int, samples: Sequence[TrainSample]) -> list["_MicroBatch"]:
        """This rank's micro-batches of a task's samples: as many as other ranks have, some perhaps without samples."""
        rows, groups = [sample.trajectory for sample in samples], [sample.group for sample in samples]
        shares = deal_out(rows, groups, self._ranks.fsdp, are_together=self._needs[task].groups_together)
        parts = []
        for share in shares:
            members = [samples[index] for index in share]
            parts.append([[members[index] for index in part] for part in self._split(task, members)])
        rounds = max(map(len, parts))
        own = parts[self._ranks.share]
        return [
            _MicroBatch(
                own[number] if number < len(own) else [],
                [sample.group for part in parts if number < len(part) for sample in part[number]],
            )
            for number in range(rounds)
        ]

    def _split(self, task: int, samples: Sequence[TrainSample]) -> list[list[int]]:
        if not samples:
            return []
        if self._needs[task].groups_together:
            groups = [sample.group for sample in samples]
            return split_groups([sample.trajectory for sample in samples], groups, self._micro_batch_tokens)
        return self._score.split([sample.trajectory for sample in samples], self._micro_batch_tokens)

    def _halve_micro_batches(self, error: torch.OutOfMemoryError) -> None:
        tokens = self._micro_batch_tokens
        if tokens * 2**MAX_HALVINGS <= self._first_micro_batch_tokens:
            raise ConfigError(
                f"trainer.micro_batch_tokens={tokens} is still too much for this device's memory ({error}); lower it, "
                "sampling.max_tokens, or set trainer.precision='bf16'"
            ) from error
        self._micro_batch_tokens = tokens // 2
        _log.warning(
            f"step {self.version}: out of memory; trainer.micro_batch_tokens is now {self._micro_batch_tokens}"
        )

    @torch.no_grad()  # these log-probs are what later ratios are taken to: constants
    def _remember(self, parts: Sequence[Assignment], weights: Sequence[float]) -> list[list[Assignment]]:
        """Splits a step into minibatches, and notes what the policy says of all of them before the first update."""
        started = time.perf_counter()
        for part, needs in zip(parts, self._needs, strict=True):
            check_samples(part.samples, needs, self.sampling)
        split = [split_assignment(part, self.config.minibatches) for part in parts]
        for task, (of_task, weight) in enumerate(zip(split, weights, strict=True)):
            if weight != 0.0:
                of_task[:] = [self._remember_samples(task, part) for part in of_task]
        self._pending.seconds += time.perf_counter() - started
        return [list(minibatch) for minibatch in zip(*split, strict=True)]

    def _remember_samples(self, task: int, assignment: Assignment) -> Assignment:
        chosen = self._choose(task, assignment.samples)
        if not chosen:
            return assignment
        counts = _count(assignment, self.sampling.max_tokens)
        remembered: dict[int, TrainSample] = {}
        for samples, _ in self._share(task, chosen):
            with self._cores.using("trainer"):
                batch = self._build_batch(task, samples, counts) if samples else self._take_part(task)
            if not isinstance(batch, LossBatch):
                continue
            self._compare(self._pending.tasks[task], samples, batch)
            self._pending.watch(samples, batch.logprobs)
            remembered.update(zip(map(id, samples), remember(samples, batch.logprobs, batch.values), strict=True))
        samples = [remembered.get(id(sample), sample) for sample in assignment.samples]
        return replace(assignment, samples=tuple(samples))

    @torch.no_grad()
    def _score_nothing(self) -> None:
        """Takes part in the exchanges of a pass for which this rank has no rows."""
        self._score([SFTRow((0,), (0,))])

    def _choose(self, task: int, samples: Sequence[TrainSample]) -> list[TrainSample]:
        """The samples with a gradient: none where the loss masks leave no token at all."""
        if not any(sample.num_trained for sample in samples):
            return []
        return [sample for sample in samples if _has_advantage(sample) or self._needs[task].zero_advantages]

    def _build_batch(self, task: int, samples: Sequence[TrainSample], counts: Denominators) -> LossBatch:
        needs = self._needs[task]
        with autocast(self.model, self.config.precision), self._most_activations.measure(self._sharded.module, samples):
            entropy: EntropyMode = "gradient" if needs.entropy_gradient else "value"
            scores = self._score([sample.trajectory for sample in samples], entropy, hidden=needs.values)
        values = None if scores.hidden is None else self.critics.values(task, scores.hidden)
        cap = None if needs.ignores_behavior_logprobs else self.config.behavior_cap
        return loss_batch(samples, scores, counts, needs_reference=needs.reference, values=values, behavior_cap=cap)

    def _take_part(self, task: int) -> Tensor:
        """Computes nothing of worth, and so takes part in the exchanges of ranks that have samples; a loss of 0."""
        scores = self._score([SFTRow((0,), (0,))], hidden=self._needs[task].values)
        values = 0.0 if scores.hidden is None else self.critics.values(task, scores.hidden).sum()
        nothing: Tensor = 0.0 * (scores.logprobs.sum() + values)
        return nothing

    def _accumulate(self, task: int, micro_batch: "_MicroBatch", counts: Denominators, is_last: bool) -> None:
        pending, samples = self._pending.tasks[task], micro_batch.samples
        loss = self._compute_loss(task, samples, counts) if samples else self._take_part(task)
        value = float(loss.detach())
        pending.loss += value
        before = pending.grad_norm
        if not self._ranks.agree(math.isfinite(value)):
            # No backward pass: `_accumulate_all` stops here, and the guard refuses the update.
            pending.grad_norm = math.nan
            pending.growth.append((math.nan, micro_batch.groups))
            if self._sharded.syncs_last:  # what earlier micro-batches left on the ranks would be part of the next step
                self._sharded.backward(self._take_part(task), is_last=True)
            return
        self._sharded.backward(loss, is_last)
        pending.unsynced += micro_batch.groups
        if self._sharded.syncs_last and not is_last:
            return
        if is_last:  # critics are not sharded, so nobody else sums their gradients
            self._ranks.add_up([critic.grad for critic in self.critics.parameters() if critic.grad is not None])
        pending.grad_norm = self._optimizer.grad_norm()
        pending.growth.append((pending.grad_norm - before, pending.unsynced))
        pending.unsynced = []

    def _compute_loss(self, task: int, samples: Sequence[TrainSample], counts: Denominators) -> Tensor:
        pending = self._pending.tasks[task]
        batch = self._build_batch(task, samples, counts)
        output = self._losses[task](batch)
        pending.parts.append(output.metrics)
        if samples[0].old_logprobs is None:  # or else it was done before the first update
            self._compare(pending, samples, batch)
            self._pending.watch(samples, batch.logprobs)
        loss: Tensor = output.loss
        return loss

    def _compare(self, pending: TaskGathered, samples: Sequence[TrainSample], batch: LossBatch) -> None:
        """Trainer against generator on tokens of the current version, where both hold the same weights."""
        compared = is_current(samples, self.version, batch.mask.device)
        if compared.any():
            found = mismatch(batch.logprobs, batch.behavior_logprobs, compared)
            pending.parts.append({"train/mismatch_kl": (found.kl_sum, found.tokens)})
            pending.prob_gap = max(pending.prob_gap or 0.0, float(found.prob_max))

    # Parts

    def _nothing(self) -> Gathered:
        return Gathered([TaskGathered() for _ in self._losses])

    def _check_tasks(self, num_assignments: int, weights: Sequence[float]) -> None:
        if not num_assignments == len(self._losses) == len(weights or self._losses):
            raise ConfigError(
                f"this trainer has {len(self._losses)} tasks, but was given {num_assignments} assignments and "
                f"{len(weights)} weights; pass one of each per task, in the order of the algorithms, or no weights"
            )
        if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights):
            raise ConfigError(f"weights={list(weights)}: every task's weight must be finite and at least 0")

    def _accepts(self, health: Health) -> bool:
        return health is Health.GOOD or (health is Health.SPIKE and not self.config.should_skip_spikes)

    def _report(self, health: Health, pending: Gathered) -> None:
        """Says what is wrong, and with whose samples; ends the run where it does not stop."""
        text = f"step {self.version}: {health} gradient, norm {pending.grad_norm:.4g}; the micro-batch of groups "
        text += f"{in_runs(pending.suspects)} brought it"
        _log.warning(text)
        if self._guard.nonfinite_in_a_row >= MAX_NONFINITE:
            self._optimizer.clear()
            raise CollapseError(
                f"{text}; {MAX_NONFINITE} updates in a row were refused. Go on from the last checkpoint with a lower "
                "trainer.learning_rate"
            )

    @torch.no_grad()
    def _score_rows(self) -> tuple[float, ...]:
        """Log-probs of the probe's tokens under the current weights."""
        if not self._probe_rows:
            return ()
        return tuple(self._score_probe([SFTRow(row[:1], row[1:]) for row in self._probe_rows]).logprobs.tolist())


class _MicroBatch(NamedTuple):
    """What one rank computes at a time."""

    samples: Sequence[TrainSample]
    """This rank's; none where others have more to do."""
    groups: list[int]
    """The groups of all ranks' samples."""


class _Update(NamedTuple):
    """One optimizer update, applied or refused."""

    gathered: Gathered
    health: Health
    is_applied: bool


def _shares(assignments: Sequence[Assignment]) -> list[float]:
    """Each task's share of the prompts; a lone task weighs 1."""
    total = sum(assignment.num_prompts for assignment in assignments)
    return [a.num_prompts / total if total else 1.0 for a in assignments]


def _has_advantage(sample: TrainSample) -> bool:
    advantages = sample.advantages
    return any(advantages) if isinstance(advantages, array) else advantages != 0.0


def _count(assignment: Assignment, max_tokens: int) -> Denominators:
    lengths = [sample.num_trained for sample in assignment.samples]
    groups = [sample.group for sample in assignment.samples]
    return Denominators.count(lengths, groups, prompts=assignment.num_prompts, max_tokens=max_tokens)


def _check(model: nn.Module, sampling: Sampling, algorithms: Sequence[Algorithm]) -> None:
    wrong = sorted({str(p.dtype) for p in model.parameters() if p.dtype != torch.float32})
    if wrong:
        raise ConfigError(
            f"model: weights in {wrong[0]}; load it in float32 and set precision='bf16' to compute faster"
        )
    if sampling.temperature == 0.0:
        raise ConfigError("sampling.temperature=0: greedy completions have no gradient; sample with 1.0")
    if not algorithms:
        raise ConfigError("algorithms: at least one task is needed")
