"""The trainer as a pipeline stage: built where it runs, called by the controller."""

from array import array
from collections.abc import Callable, Sequence

from torch import nn

from llamarl.core.algorithm import Algorithm
from llamarl.core.errors import ConfigError
from llamarl.core.protocols import Cores, Executor, WeightChannel
from llamarl.core.records import Assignment, StepResult, Trajectory, WeightManifest
from llamarl.core.sampling import Sampling
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer, ignore_micro_batch


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
        on_micro_batch: told the number of each micro-batch, from 1, and how many a task's batch has.
        seed: of the adapters' first weights, where adapters are trained.
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
    ) -> None:
        self._config, self._sampling, self._total_steps = config, sampling, total_steps
        self._algorithms, self._load_model = algorithms, load_model
        self._channel, self._cores, self._seed = channel, cores, seed
        self._probe_prompts, self._on_micro_batch = tuple(probe_prompts), on_micro_batch

    def setup(self) -> None:
        """Loads the model.

        Raises:
            ConfigError: spawned with more than one rank; this trainer does not shard.
        """
        if self.world_size != 1:
            raise ConfigError(f"num_ranks={self.world_size}: the trainer runs on one rank; spawn it with num_ranks=1")
        self._trainer = PolicyTrainer(
            self._load_model(),
            self._algorithms,
            self._config,
            sampling=self._sampling,
            channel=self._channel,
            total_steps=self._total_steps,
            cores=self._cores,
            probe_prompts=self._probe_prompts,
            on_micro_batch=self._on_micro_batch,
            seed=self._seed,
        )

    def train(
        self,
        assignments: Assignment | Sequence[Assignment],
        watched_groups: Sequence[int] = (),
        weights: Sequence[float] = (),
    ) -> StepResult:
        """Takes one step on all samples, of one optimizer update or several; see `PolicyTrainer.train`."""
        return self._trainer.train(assignments, watched_groups, weights)

    def logprobs(self, rows: Sequence[Trajectory]) -> "list[array[float]]":
        """Scores trajectories under the policy that the run started from, which adapters switched off are.

        Raises:
            ConfigError: the trainer has no adapters, and so no weights of that policy.
        """
        return self._trainer.reference_logprobs(rows)

    def open_weights(self, host: str) -> WeightChannel:
        """Opens the weight channel and returns the end that receivers are given. On rank 0, before any `publish`."""
        return self._channel.open(host)

    def publish(self) -> WeightManifest:
        """Offers the current weights on the weight channel."""
        return self._trainer.publish()

    def memory(self) -> dict[str, int]:
        """Bytes of what training holds, by part."""
        return self._trainer.memory()

    def save(self, directory: str) -> None:
        """Writes weights, optimizer and counters into an empty directory."""
        self._trainer.save(directory)

    def load(self, directory: str) -> int:
        """Restores what `save` wrote; returns the policy version."""
        return self._trainer.load(directory)
