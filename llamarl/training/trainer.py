"""Judged samples in, new weights out: the synchronous policy trainer.

    train(samples) = loss(samples), once or more; step()

    loss    skip samples without gradient > micro-batches > scores > algorithm.loss > backward, gradients add up
    step    guard > clip > AdamW > version + 1

Every step counts as a version, also one whose update a guard refused or whose samples carried no signal; then the
weights and the optimizer's state stay bit-identical. No random number is drawn here (dropout is off), so weights,
moments and counters are the whole state.
"""

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamarl.core.errors import CollapseError, ConfigError
from llamarl.core.protocols import Algorithm, AllCores, Cores, WeightChannel
from llamarl.core.records import StepResult, TrainSample, WeightManifest
from llamarl.core.sampling import Sampling
from llamarl.functional.checksum import checksum
from llamarl.functional.logprobs import pad_rows
from llamarl.functional.losses import Denominators, LossBatch
from llamarl.functional.mismatch import mismatch
from llamarl.models.decoder import named_tensors, probe_ids
from llamarl.training import checkpoints
from llamarl.training.config import TrainerConfig
from llamarl.training.gathered import Gathered
from llamarl.training.guards import GradientGuard, Health
from llamarl.training.optimizer import Optimizer
from llamarl.training.scoring import Scorer, build_scorer
from llamarl.training.sft import SFTRow

MAX_NONFINITE = 5
"""So many non-finite updates in a row end the run."""

MAX_HALVINGS = 3
"""How often micro-batches are halved where memory runs out."""

_log = logging.getLogger(__name__)


class PolicyTrainer:
    """Trains one policy with one algorithm.

    Args:
        model: float32 weights, trained in place. Its dropout is switched off: log-probs must be those of the generator.
        algorithm: its `loss` is all the trainer knows of it.
        config: the settings.
        sampling: how the completions are drawn: the temperature divides the logits, `max_tokens` is the token limit
            that length-normalised losses divide by.
        channel: where `publish` offers the weights.
        total_steps: steps of the whole run, for falling learning-rate schedules.
        reference: the reference policy; by default a frozen copy of `model` as it is now, if the algorithm needs one.
        cores: shares cores with other executors; by default torch's settings are left alone.

    Raises:
        ConfigError: half-precision weights, greedy sampling, or a schedule without an end.
    """

    def __init__(
        self,
        model: nn.Module,
        algorithm: Algorithm,
        config: TrainerConfig | None = None,
        *,
        sampling: Sampling | None = None,
        channel: WeightChannel | None = None,
        total_steps: int | None = None,
        reference: nn.Module | None = None,
        cores: Cores | None = None,
    ) -> None:
        self.model, self.algorithm = model, algorithm
        self.config, self.sampling = config or TrainerConfig(), sampling or Sampling()
        _check(model, self.sampling)
        self.version = 0
        """Optimizer steps behind the current weights."""
        self.reference = _frozen(reference or copy.deepcopy(model)) if algorithm.needs_reference else None
        self._score = build_scorer(model, self.sampling.temperature)
        self._score_reference = self._reference_scorer()
        self._score_probe = build_scorer(model)
        self._optimizer = Optimizer(model, self.config, total_steps)
        self._guard = GradientGuard(self.config.spike_factor)
        self._channel, self._cores = channel, cores or AllCores()
        self._micro_batch_tokens = self.config.micro_batch_tokens
        self._pending = Gathered()

    # Verbs

    def train(self, samples: Sequence[TrainSample], watched_groups: Sequence[int] = ()) -> StepResult:
        """`loss` over all samples, then `step`; the result holds the log-probs of the watched groups' samples."""
        self._pending.watched = frozenset(watched_groups)
        self.loss(samples)
        return self.step()

    def loss(self, samples: Sequence[TrainSample]) -> dict[str, float]:
        """Forward and backward passes; the gradient is added to what earlier calls left.

        The denominators are counted over all `samples`, before those without advantage are skipped, so skipping
        changes no gradient; it happens only where the algorithm has no other term.

        Where memory runs out, the micro-batches are halved and the whole loss is taken again, up to three times.

        Returns:
            The metrics gathered since the last step.

        Raises:
            ConfigError: out of memory with the smallest micro-batches tried; names the settings to change.
        """
        started = time.perf_counter()
        pending = self._pending
        pending.num_samples += len(samples)
        chosen = [sample for sample in samples if sample.advantage != 0.0 or self._trains_zero_advantage]
        pending.num_samples_without_signal += len(samples) - len(chosen)
        if chosen:
            counts = _count(samples, self.sampling.max_tokens)
            pending.num_tokens += counts.tokens
            self._accumulate_all(chosen, counts)
        self._pending.seconds += time.perf_counter() - started
        return self._pending.metrics()

    def step(self) -> StepResult:
        """Applies the gathered gradient, unless a guard refuses, and clears it. The version goes up by one.

        Raises:
            CollapseError: the fifth non-finite gradient in a row.
        """
        started = time.perf_counter()
        pending, self._pending = self._pending, Gathered()
        health = self._guard.judge(pending.grad_norm) if pending.has_gradient else Health.GOOD
        if health is not Health.GOOD:
            self._report(health, pending)
        is_applied = pending.has_gradient and self._accepts(health)
        if is_applied:
            with self._cores.using("trainer"):
                self._optimizer.step(self.version, pending.grad_norm)
        else:
            self._optimizer.clear()
        metrics = pending.metrics() | {
            "train/grad_norm": pending.grad_norm,
            "train/lr": self._optimizer.rate(self.version),
            "train/grad_spike": float(health is Health.SPIKE),
            "train/skipped_nonfinite": float(health is Health.NONFINITE),
            "time/train": pending.seconds + time.perf_counter() - started,
        }
        self.version += 1
        return StepResult(self.version, metrics, is_skipped=not is_applied, logprobs=pending.logprobs)

    def publish(self) -> WeightManifest:
        """Offers the current weights on the channel, with checksums and probe log-probs to prove them by.

        Raises:
            ConfigError: the trainer was built without a channel.
        """
        if self._channel is None:
            raise ConfigError("channel: this trainer has none to publish on; pass channel=...")
        started = time.perf_counter()
        tensors = dict(named_tensors(self.model))
        self._channel.publish(self.version, tensors)
        return WeightManifest(
            version=self.version,
            checksums=checksum(tensors),
            probe_logprobs=self._probe(),
            num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            seconds=time.perf_counter() - started,
        )

    def save(self, directory: str | Path) -> None:
        """Writes weights and moments as safetensors and counters as JSON into an empty or new directory."""
        counters = {"version": self.version, "guard": self._guard.state(), "reference": self._reference_checksum()}
        checkpoints.write(directory, dict(named_tensors(self.model)), self._optimizer.state(), counters)

    def load(self, directory: str | Path) -> int:
        """Restores what `save` wrote, bit for bit, and forgets gathered gradients; returns the policy version.

        Raises:
            CheckpointError: files missing or broken, or of another model or reference policy.
        """
        stored = checkpoints.read(directory, dict(named_tensors(self.model)))
        checkpoints.check_same_reference(directory, stored.counters["reference"], self._reference_checksum())
        self._optimizer.load_state(stored.optimizer)
        checkpoints.copy_weights(stored.weights, dict(named_tensors(self.model)))
        self._guard.load_state(stored.counters["guard"])
        self.version = int(stored.counters["version"])
        self._optimizer.clear()
        self._pending = Gathered()
        return self.version

    # Micro-batches

    def _accumulate_all(self, samples: Sequence[TrainSample], counts: Denominators) -> None:
        before = replace(self._pending, parts=[*self._pending.parts], growth=[*self._pending.growth])
        try:
            for part in self._score.split(samples, self._micro_batch_tokens):
                with self._cores.using("trainer"):
                    self._accumulate([samples[index] for index in part], counts)
                if not math.isfinite(self._pending.grad_norm):
                    break
        except torch.OutOfMemoryError as error:
            self._optimizer.clear()
            self._pending = before
            self._halve_micro_batches(error)
            self._accumulate_all(samples, counts)

    def _halve_micro_batches(self, error: torch.OutOfMemoryError) -> None:
        tokens = self._micro_batch_tokens
        if self._pending.has_gradient or tokens * 2**MAX_HALVINGS <= self.config.micro_batch_tokens:
            raise ConfigError(
                f"trainer.micro_batch_tokens={tokens} is still too much for this device's memory ({error}); lower it, "
                "sampling.max_tokens, or set trainer.precision='bf16'"
            ) from error
        self._micro_batch_tokens = tokens // 2
        _log.warning(
            f"step {self.version}: out of memory; trainer.micro_batch_tokens is now {self._micro_batch_tokens}"
        )

    def _accumulate(self, samples: Sequence[TrainSample], counts: Denominators) -> None:
        pending = self._pending
        batch = self._batch(samples, counts)
        output = self.algorithm.loss(batch)
        pending.parts.append(output.metrics)
        self._compare(samples, batch)
        pending.watch(samples, batch.logprobs)
        loss = float(output.loss.detach())
        pending.loss += loss
        before = pending.grad_norm
        if math.isfinite(loss):
            output.loss.backward()
            pending.grad_norm = self._optimizer.grad_norm()
        else:
            pending.grad_norm = math.nan
        pending.growth.append((pending.grad_norm - before, [sample.group for sample in samples]))

    def _batch(self, samples: Sequence[TrainSample], counts: Denominators) -> LossBatch:
        with self._autocast():
            scores = self._score(samples, "gradient" if self._needs_entropy_grad else "value")
        device = scores.logprobs.device
        lengths = torch.tensor([len(sample.token_ids) for sample in samples], device=device)
        logprobs, mask = pad_rows(scores.logprobs, lengths)
        behavior = torch.tensor([value for sample in samples for value in sample.logprobs], device=device)
        reference = self._reference_logprobs(samples)
        assert scores.entropy is not None
        return LossBatch(
            logprobs=logprobs,
            behavior_logprobs=pad_rows(behavior, lengths)[0],
            mask=mask,
            advantages=torch.tensor([sample.advantage for sample in samples], device=device),
            weights=torch.tensor([sample.weight for sample in samples], device=device),
            denominators=counts,
            reference_logprobs=None if reference is None else pad_rows(reference, lengths)[0],
            entropy=pad_rows(scores.entropy, lengths)[0],
        )

    def _compare(self, samples: Sequence[TrainSample], batch: LossBatch) -> None:
        """Trainer against generator on tokens of the current version, where both hold the same weights."""
        versions = torch.tensor([value for sample in samples for value in sample.versions], device=batch.mask.device)
        is_current = torch.zeros_like(batch.mask).masked_scatter(batch.mask, versions == self.version)
        if is_current.any():
            found = mismatch(batch.logprobs, batch.behavior_logprobs, is_current)
            self._pending.parts.append({"train/mismatch_kl": (found.kl_sum, found.tokens)})
            self._pending.prob_gap = max(self._pending.prob_gap or 0.0, float(found.prob_max))

    # Parts

    @property
    def _trains_zero_advantage(self) -> bool:
        return self.algorithm.trains_zero_advantage

    @property
    def _needs_entropy_grad(self) -> bool:
        return self.algorithm.needs_entropy_grad

    def _accepts(self, health: Health) -> bool:
        return health is Health.GOOD or (health is Health.SPIKE and not self.config.should_skip_spikes)

    def _report(self, health: Health, pending: Gathered) -> None:
        """Says what is wrong, and with whose samples; ends the run where it does not stop."""
        text = f"step {self.version}: {health} gradient, norm {pending.grad_norm:.4g}; the micro-batch of groups "
        text += f"{', '.join(map(str, pending.suspects))} brought it"
        _log.warning(text)
        if self._guard.nonfinite_in_a_row >= MAX_NONFINITE:
            self._optimizer.clear()
            raise CollapseError(
                f"{text}; {MAX_NONFINITE} updates in a row were refused. Go on from the last checkpoint with a lower "
                "trainer.learning_rate"
            )

    def _reference_scorer(self) -> Scorer | None:
        return None if self.reference is None else build_scorer(self.reference, self.sampling.temperature)

    @torch.no_grad()
    def _reference_logprobs(self, samples: Sequence[TrainSample]) -> Tensor | None:
        if self._score_reference is None:
            return None
        with self._autocast():
            return self._score_reference(samples).logprobs

    def _reference_checksum(self) -> Mapping[str, int] | None:
        return None if self.reference is None else checksum(dict(named_tensors(self.reference)))

    @torch.no_grad()
    def _probe(self) -> tuple[float, ...]:
        config: Any = self.model.config
        ids = probe_ids(config.vocab_size)
        return tuple(self._score_probe([SFTRow(ids[:1], ids[1:])]).logprobs.tolist())

    def _autocast(self) -> AbstractContextManager[object]:
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bf16")


def _count(samples: Sequence[TrainSample], max_tokens: int) -> Denominators:
    return Denominators.count([len(s.token_ids) for s in samples], [s.group for s in samples], max_tokens)


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _check(model: nn.Module, sampling: Sampling) -> None:
    wrong = sorted({str(p.dtype) for p in model.parameters() if p.dtype != torch.float32})
    if wrong:
        raise ConfigError(
            f"model: weights in {wrong[0]}; load it in float32 and set precision='bf16' to compute faster"
        )
    if sampling.temperature == 0.0:
        raise ConfigError("sampling.temperature=0: greedy completions have no gradient; sample with 1.0")
