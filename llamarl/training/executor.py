"""The trainer as a pipeline stage: built where it runs, called by the controller.

One rank is ready after `setup`. Several first meet: the first one's `listen` gives an address, at which all `join`.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from llamarl.core.algorithm import Algorithm
from llamarl.core.errors import ConfigError, LostTouchError, RankMemoryError
from llamarl.core.protocols import Cores, Executor, WeightChannel
from llamarl.core.records import Assignment, StepResult, Trajectory, WeightManifest
from llamarl.core.sampling import Sampling
from llamarl.models.device import resolve_device
from llamarl.training.config import TrainerConfig, TrainerPlacement
from llamarl.training.ranks import ALONE, LOOPBACK, Address, Meeting, Ranks, is_broken_exchange
from llamarl.training.trainer import PolicyTrainer, ignore_micro_batch


class Progress(NamedTuple):
    """How far a rank has come: the ranks of one trainer come equally far."""

    num_calls: int
    """Calls begun since it was set up."""
    micro_batch: int
    """Number of the micro-batch that it is at, within a call."""


class TrainerExecutor(Executor):
    """A `PolicyTrainer` behind the verbs of `core.protocols.Trainer`.

    Args:
        config: how to train.
        algorithms: settings of each task's algorithm, in order; only their loss is built here. All arguments must
            pickle for process engines.
        load_model: builds the `*ForCausalLM` in float32, where the executor lives.
        sampling: how the completions are drawn (temperature, token limit).
        channel: where `publish` offers the weights.
        total_steps: steps of the run, for falling learning-rate schedules.
        cores: shares cores with other executors; by default torch's settings are left alone.
        probe_prompts: token ids of prompts on which generators prove that they compute what the trainer computes.
        on_micro_batch: told the number of each micro-batch, from 1, and how many a task's batch has; by the first rank.
        seed: of the adapters' first weights, where adapters are trained.
        placement: the ranks of this trainer.
    """

    def __init__(
        self,
        config: TrainerConfig,
        algorithms: Algorithm | Sequence[Algorithm],
        load_model: Callable[[], nn.Module],
        sampling: Sampling,
        channel: WeightChannel,
        total_steps: int | None = None,
        cores: Cores | None = None,
        probe_prompts: Sequence[Sequence[int]] = (),
        on_micro_batch: Callable[[int, int], None] = ignore_micro_batch,
        seed: int = 0,
        placement: TrainerPlacement | None = None,
    ) -> None:
        self._config, self._sampling, self._total_steps = config, sampling, total_steps
        self._algorithms, self._load_model = algorithms, load_model
        self._channel, self._cores, self._seed = channel, cores, seed
        self._probe_prompts, self._on_micro_batch = tuple(probe_prompts), on_micro_batch

        self._placement = placement or TrainerPlacement()
        self._meeting: Meeting | None = None
        self._trainer: PolicyTrainer | None = None
        self._ranks = ALONE
        self._progress = Progress(0, 0)

    def setup(self) -> None:
        """Loads the model, where this is the only rank.

        Raises:
            ConfigError: spawned with another number of ranks than its placement has.
        """
        if self.world_size != self._placement.num_ranks:
            raise ConfigError(
                f"num_ranks={self.world_size}: placement.trainer has {self._placement.num_ranks} (fsdp="
                f"{self._placement.fsdp} x tp={self._placement.tp}); spawn it with as many"
            )
        if self.world_size == 1:
            self._build()

    def listen(self, seconds: float, host: str = LOOPBACK) -> Address:
        """Opens a free port of the first rank, where all ranks may `join`, and returns its address.

        Args:
            seconds: how long ranks wait for each other.
            host: name or address by which the other ranks' machines know this one.
        """
        self._meeting = Meeting(host, self.world_size, seconds)
        return self._meeting.address

    def join(self, address: Address, seconds: float) -> None:
        """Meets the other ranks and loads what this rank holds of the model.

        Args:
            address: what the first rank's `listen` gave.
            seconds: deadline of each exchange between ranks.
        """
        device = torch.device(resolve_device(self._config.device, "trainer.device")).type
        if device == "cuda":
            torch.cuda.set_device(self.rank % torch.cuda.device_count())
        where = self._placement
        with self._exchanging():
            self._ranks = Ranks.join(where.fsdp, where.tp, self.rank, address, device, seconds, self._meeting)
            self._build()

    def _build(self) -> None:
        self._trainer = PolicyTrainer(
            self._load_model(),
            self._algorithms,
            self._config,
            sampling=self._sampling,
            channel=self._channel,
            total_steps=self._total_steps,
            cores=self._cores,
            probe_prompts=self._probe_prompts,
            on_micro_batch=self._note_micro_batch,
            seed=self._seed,
            ranks=self._ranks,
            checkpointing=self._placement.checkpointing,
            gradient_sync=self._placement.gradient_sync,
        )

    def teardown(self) -> None:
        """Leaves the other ranks."""
        self._ranks.close()

    async def progress(self) -> Progress:
        """How far this rank has come; it answers in the midst of other calls too."""
        return self._progress

    def train(
        self,
        assignments: Assignment | Sequence[Assignment],
        watched_groups: Sequence[int] = (),
        weights: Sequence[float] = (),
    ) -> StepResult:
        """Takes one step on all samples, of one optimizer update or several; see `PolicyTrainer.train`."""
        with self._exchanging():
            return self._require().train(assignments, watched_groups, weights)

    def logprobs(self, rows: Sequence[Trajectory]) -> "list[array[float]]":
        """Scores trajectories under the policy that the run started from, which adapters switched off are.

        Raises:
            ConfigError: the trainer has no adapters, and so no weights of that policy.
        """
        with self._exchanging():
            return self._require().reference_logprobs(rows)

    def open_weights(self, host: str) -> WeightChannel:
        """Opens the weight channel and returns the end that receivers are given. On rank 0, before any `publish`."""
        return self._channel.open(host)

    def publish(self) -> WeightManifest:
        """Offers the current weights on the weight channel."""
        with self._exchanging():
            return self._require().publish()

    def memory(self) -> dict[str, int]:
        """Bytes of what training holds on this rank, by part."""
        return self._require().memory()

    def save(self, directory: str) -> None:
        """Writes weights, optimizer and counters into an empty directory."""
        with self._exchanging():
            self._require().save(directory)

    def load(self, directory: str) -> int:
        """Restores what `save` wrote; returns the policy version."""
        with self._exchanging():
            return self._require().load(directory)

    def _require(self) -> PolicyTrainer:
        assert self._trainer is not None, "several ranks must `join` first"
        return self._trainer

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        """Counts a call; where an exchange between ranks breaks in it, so is this rank lost."""
        self._progress = Progress(self._progress.num_calls + 1, 0)
        try:
            yield
        except torch.OutOfMemoryError as error:
            if self.world_size == 1 or self._trainer is None:
                raise
            # The others are in the midst of an exchange with this rank, so that it cannot try again by itself.
            tokens = self._trainer.micro_batch_tokens
            raise RankMemoryError(
                f"rank {self.rank} ran out of memory with trainer.micro_batch_tokens={tokens} ({error})", tokens
            ) from error
        except RuntimeError as error:
            if not is_broken_exchange(error):
                raise
            reason = str(error).strip().splitlines()[0].split(". ")[0]  # advice to programmers follows
            raise LostTouchError(f"rank {self.rank} lost touch with the others: {reason}") from error

    def _note_micro_batch(self, number: int, total: int) -> None:
        self._progress = self._progress._replace(micro_batch=number)
        if self.rank == 0:
            self._on_micro_batch(number, total)
