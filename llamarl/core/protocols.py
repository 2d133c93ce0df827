"""The seams. Each protocol has a scripted fake in `llamarl.testing`, which users' tests may use too."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from llamarl.core.records import (
    Assignment,
    Completion,
    GenerationRequest,
    StepResult,
    WeightManifest,
    WeightProof,
)
from llamarl.core.shards import Sharding


class Executor:
    """One pipeline stage. A plain class: an engine builds it where it is to run and calls its methods.

    Sync methods run one at a time on the executor's own thread; async methods run on its event loop and may interleave
    at their awaits. `rank` and `world_size` are set by the engine before `setup`.
    """

    rank: int = 0
    world_size: int = 1

    def setup(self) -> None:
        """Heavy construction (models, buffers), once, where the executor lives."""

    def teardown(self) -> None:
        """Releases what `setup` took. Called once on an orderly stop."""


class Generator(Protocol):
    """Completes prompts with the newest weights it was given."""

    async def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Queues requests; returns at once."""

    async def collect(self, timeout_seconds: float) -> list[tuple[int, tuple[Completion, ...]]]:
        """Finished requests as (key, completions); waits up to the time-out for the first, may return []."""

    async def update_weights(self, manifest: WeightManifest) -> WeightProof:
        """Takes the published weights between two decode steps and proves them.

        Raises:
            WeightSyncError: version, checksum or probe disagree; the generator serves nothing until a good update.
        """

    async def status(self) -> Mapping[str, float]:
        """Counters since setup: `tokens`, `requests_active`, `version`, `busy_seconds`, ..."""


class Trainer(Protocol):
    """Turns judged samples into new weights."""

    def train(
        self,
        assignments: Assignment | Sequence[Assignment],
        watched_groups: Sequence[int] = (),
        weights: Sequence[float] = (),
    ) -> StepResult:
        """One optimizer step on the weighted sum of the tasks' losses, assignment i being task i's.

        Args:
            assignments: one of each task; a lone one in a run of one task.
            watched_groups: whose log-probs the result holds.
            weights: factor of each task's gradient; by default its share of the step's prompts.
        """

    def open_weights(self, host: str) -> "WeightChannel":
        """Opens the weight channel (`WeightChannel.open`) and returns the end that receivers are given."""

    def publish(self) -> WeightManifest:
        """Offers the current weights on the weight channel."""

    def save(self, directory: str) -> None:
        """Writes weights, optimizer and counters into an empty directory."""

    def load(self, directory: str) -> int:
        """Restores what `save` wrote; returns the policy version."""


class WeightChannel(Protocol):
    """The data plane of weights from one trainer to its generators. Picklable where its engine crosses processes."""

    @property
    def dtype(self) -> Any:
        """`torch.dtype` in which floating-point weights travel, and of which checksums are taken; None: theirs."""

    def open(self, host: str) -> "WeightChannel":
        """Makes the channel ready, on rank 0 of the trainer and before it publishes; returns the receivers' end.

        Args:
            host: address by which other machines reach the trainer's, for channels that they read over the network.
        """

    def publish(self, version: int, tensors: Mapping[str, Any], sharding: Sharding | None = None) -> None:
        """Copies `tensors` (name -> torch.Tensor) onto the channel as `version`.

        Args:
            version: what they are called.
            tensors: the whole model, or what this rank holds of it.
            sharding: what every rank holds, where there are several; then all of them call it, each on its own copy of
                the channel, and the version can be read once they have returned.
        """

    async def prepare(self, version: int) -> None:
        """Brings `version` near while its receiver goes on with older weights: `reading` need not wait for it then.

        Raises:
            WeightSyncError: the channel does not hold `version`, or cannot be reached.
        """

    def fetch(self, version: int, into: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Copies `version` into the tensors of `into` (all names or some) and returns it; without it, into new tensors.

        Raises:
            WeightSyncError: the channel does not hold `version`, it was overwritten meanwhile, or `into` does not fit.
        """

    def reading(self, version: int) -> AbstractContextManager[Mapping[str, Any]]:
        """Lends the tensors of `version` inside the block, to be read and not written: no copy is made.

        Raises:
            WeightSyncError: the channel does not hold `version`; or, at the end of the block, it was overwritten
                meanwhile, and what was read is of no use.
        """

    def close(self) -> None:
        """Releases memory. Idempotent."""


class ExecutorHandle(Protocol):
    """The controller's end of a spawned executor (all its ranks)."""

    name: str

    @property
    def host(self) -> str | None:
        """Address of the machine it lives on, as other machines reach it; None: this one."""

    @property
    def pids(self) -> list[int]:
        """The operating system's process of each rank."""

    async def call(self, method: str, *args: Any, rank: int | None = 0, timeout_seconds: float | None = None) -> Any:
        """Calls a method on one rank, or on all (`rank=None`, a list of results).

        Raises:
            ExecutorLostError: the executor died before it answered.
            StallError: the deadline passed; names executor and method.
        """

    async def stop(self) -> None:
        """Ends the executor and its processes. Idempotent."""


class Engine(Protocol):
    """Engine that starts and watches executors: spawn, call (on the handle), stop, close."""

    async def spawn(self, factory: Callable[[], Executor], *, name: str, num_ranks: int = 1) -> ExecutorHandle:
        """Starts `num_ranks` copies built by the picklable `factory`, runs their `setup`, returns the handle."""

    async def close(self) -> None:
        """Stops everything this engine started. Idempotent; leaves no process, port or shared memory."""


class Cores(Protocol):
    """Shares this machine's cores between executors of one process."""

    def using(self, who: str, /) -> AbstractContextManager[Callable[[], object]]:
        """Marks `who` as computing, on the calling thread; yields what to call before each unit of work."""


class AllCores:
    """Leaves every executor the threads it has."""

    def using(self, who: str, /) -> AbstractContextManager[Callable[[], object]]:
        """Marks nothing; the yielded function does nothing."""
        return nullcontext(lambda: None)


class MetricSink(Protocol):
    """Takes one record of metrics per step."""

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Non-finite values arrive as None."""

    def close(self) -> None:
        """Flushes."""
