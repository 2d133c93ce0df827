"""Scripted stand-ins for every seam, and time that tests hold in their hands. Public: test your own parts with them.

Example:
    >>> async def nap() -> float:
    ...     await asyncio.sleep(3600)
    ...     return asyncio.get_running_loop().time()
    >>> run_virtual(nap())
    3600.0
"""

import asyncio
import contextlib
import inspect
import os
import selectors
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llamarl.core.errors import ExecutorLostError, StallError
from llamarl.core.group_judge import GroupJudge, JudgesStatus
from llamarl.core.judge import Judge
from llamarl.core.protocols import Executor
from llamarl.core.records import (
    Assignment,
    Completion,
    GenerationRequest,
    Group,
    Prompt,
    Sample,
    StepResult,
    TrainSample,
    Trajectory,
    Verdict,
    WeightManifest,
    WeightProof,
)

T = TypeVar("T")


class _VirtualSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """A selector that moves the loop's clock to the next timer instead of waiting."""

    loop: "VirtualTimeLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout:  # seconds to the next timer, when no task can go on before it
            self.loop.elapsed += timeout
        if timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer is set")
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose sleeps cost nothing: when all tasks wait, time jumps to the next timer.

    A program in which every task waits for another without a deadline raises instead of hanging.
    """

    def __init__(self) -> None:
        self.elapsed = 0.0
        selector = _VirtualSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.elapsed


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a `VirtualTimeLoop`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


class DirectHandle:
    """An executor called directly on the caller's loop."""

    def __init__(self, name: str, executor: Executor) -> None:
        self.name, self.executor, self.is_alive = name, executor, True
        self._died: asyncio.Event = asyncio.Event()

    @property
    def host(self) -> str | None:
        """None: this machine."""
        return None

    @property
    def pids(self) -> list[int]:
        """The id of this process, which the ranks share."""
        return [os.getpid()]

    async def call(self, method: str, *args: Any, rank: int | None = 0, timeout_seconds: float | None = None) -> Any:
        """Calls the method; fails as a real engine would if the executor is killed or the deadline passes."""
        if not self.is_alive:
            raise ExecutorLostError(f"{self.name} is dead")

        async def invoke() -> Any:
            result = getattr(self.executor, method)(*args)
            return await result if inspect.isawaitable(result) else result

        answer, death = asyncio.create_task(invoke()), asyncio.create_task(self._died.wait())
        try:
            done, _ = await asyncio.wait([answer, death], timeout=timeout_seconds, return_when="FIRST_COMPLETED")
            if answer in done:
                return answer.result()
            if death in done:
                raise ExecutorLostError(f"{self.name} died during {method}")
            raise StallError(f"{self.name}.{method}: no answer within {timeout_seconds:g} s")
        finally:
            for task in (answer, death):  # the one still waiting would outlive the call, and warn at the loop's end
                task.cancel()

    def kill(self) -> None:
        """Dies at once, as by SIGKILL."""
        self.is_alive = False
        self._died.set()

    async def stop(self) -> None:
        """Orderly end."""
        self.kill()


class DirectEngine:
    """An engine without threads or processes. `handles` keeps every executor ever spawned, oldest first."""

    def __init__(self) -> None:
        self.handles: list[DirectHandle] = []

    async def spawn(self, factory: Callable[[], Executor], *, name: str, num_ranks: int = 1) -> DirectHandle:
        """Builds the executor here."""
        executor = factory()
        executor.setup()
        self.handles.append(DirectHandle(name, executor))
        return self.handles[-1]

    async def close(self) -> None:
        """Kills all."""
        for handle in self.handles:
            handle.kill()


@dataclass
class ScriptedGenerator(Executor):
    """Emits one token every `seconds_per_token`, labelled with the version served at that moment.

    Args:
        length: completion tokens of (request, sample index).
        seconds_per_token: per token and request.
        text: of a completion of so many tokens that begins under a policy version.
    """

    length: Callable[[GenerationRequest, int], int] = lambda request, index: 2
    seconds_per_token: float = 1.0
    text: Callable[[int, int], str] = lambda version, tokens: "x" * tokens
    version: int | None = None
    submitted: list[GenerationRequest] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    """Versions in the order they arrived."""

    def setup(self) -> None:
        """Empty queues."""
        self._finished: list[tuple[int, tuple[Completion, ...]]] = []
        self._any = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Starts all requests at once."""
        for request in requests:
            self.submitted.append(request)
            task = asyncio.create_task(self._complete(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def collect(self, timeout_seconds: float) -> list[tuple[int, tuple[Completion, ...]]]:
        """Takes the completions that are finished; waits for the first, at most `timeout_seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._any.wait(), timeout_seconds)
        self._any.clear()
        finished, self._finished = self._finished, []
        return finished

    async def update_weights(self, manifest: WeightManifest) -> WeightProof:
        """Serves the manifest's version from now on."""
        self.version = manifest.version
        self.served.append(manifest.version)
        return WeightProof(manifest.version, 0.0, 0, 0.0)

    async def status(self) -> Mapping[str, float]:
        """Requests under way."""
        return {"requests_active": float(len(self._tasks)), "version": float(self.version or 0)}

    async def _complete(self, request: GenerationRequest) -> None:
        lengths = [self.length(request, i) for i in range(len(request.seeds))]
        versions: list[int] = []
        for _ in range(max(lengths)):
            await asyncio.sleep(self.seconds_per_token)
            assert self.version is not None, "asked to generate before it had weights"
            versions.append(self.version)
        completions = tuple(
            Completion(
                Trajectory.sampled(request.prompt_ids, (seed % 7,) * n, (-0.5,) * n, versions[:n]),
                self.text(versions[0], n),
            )
            for n, seed in zip(lengths, request.seeds, strict=True)
        )
        self._finished.append((request.key, completions))
        self._any.set()


@dataclass
class ScriptedTrainer(Executor):
    """Counts versions; keeps the samples of every batch it was given."""

    seconds_per_step: float = 1.0
    version: int = 0
    batches: list[list[TrainSample]] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    """Weights of the tasks, as given with each batch."""

    async def train(
        self,
        assignments: Assignment | Sequence[Assignment],
        watched_groups: Sequence[int] = (),
        weights: Sequence[float] = (),
    ) -> StepResult:
        """Takes `seconds_per_step`; the version goes up by one."""
        await asyncio.sleep(self.seconds_per_step)
        parts = [assignments] if isinstance(assignments, Assignment) else assignments
        self.batches.append([sample for part in parts for sample in part.samples])
        self.weights.append(list(weights))
        self.version += 1
        return StepResult(self.version, {"train/loss": 0.0}, task_metrics=({},) * len(parts))

    async def publish(self) -> WeightManifest:
        """The current version, without weights."""
        return WeightManifest(self.version, {})


class ScriptedVerdicts(Judge):
    """A judge that takes `seconds` and answers with what its script says next, or raises it; the last entry repeats.

    A lone verdict is said of every completion; anything else is returned as it is, nonsense too.
    """

    def __init__(self, name: str, *script: Any, seconds: float = 0.0) -> None:
        self.name, self.script, self.seconds, self.calls = name, list(script), seconds, 0

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Plays the next entry of the script."""
        self.calls += 1
        await asyncio.sleep(self.seconds)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, BaseException):
            raise answer
        return [answer] * len(completions) if isinstance(answer, Verdict) else answer


@dataclass
class ScriptedJudge(GroupJudge):
    """Verdict by `decide(prompt, completion)`, after `seconds(prompt)`."""

    decide: Callable[[Prompt, Completion], Verdict] = lambda prompt, completion: Verdict.scored(1.0)
    seconds: Callable[[Prompt], float] = lambda prompt: 0.0
    report: JudgesStatus = field(default_factory=JudgesStatus)

    async def judge_group(
        self, prompt: Prompt, completions: Sequence[Completion], task: str = ""
    ) -> tuple[Sample, ...]:
        """One sample per completion; its reward is the verdict's score."""
        await asyncio.sleep(self.seconds(prompt))
        verdicts = [self.decide(prompt, completion) for completion in completions]
        return tuple(
            Sample(c, {"scripted": verdict}, verdict.score) for c, verdict in zip(completions, verdicts, strict=True)
        )

    async def status(self) -> JudgesStatus:
        """`report`."""
        return self.report


class RecordingObserver:
    """Keeps everything it is told."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.groups: list[tuple[Group, str | None]] = []
        self.evaluations: list[tuple[int, list[Group]]] = []
        self.held_out_metrics: list[Mapping[str, Mapping[str, float]]] = []
        self.messages: list[str] = []

    @contextlib.contextmanager
    def span(self, executor: str, activity: str) -> Iterator[None]:
        """Ignores the span."""
        yield

    def choose_watched(self, version: int, groups: Sequence[Group]) -> Sequence[int]:
        """Chooses none."""
        return ()

    def on_group(self, group: Group, dropped: str | None) -> None:
        """Keeps the group in `groups`."""
        self.groups.append((group, dropped))

    def on_step(self, record: Any) -> None:
        """Keeps the record in `steps`."""
        self.steps.append(record)

    def on_evaluation(self, record: Any) -> None:
        """Keeps version and groups of all tasks in `evaluations`, and the metrics by task in `held_out_metrics`."""
        self.evaluations.append((record.version, record.all_groups))
        self.held_out_metrics.append(record.algorithm_metrics)

    def on_progress(self) -> None:
        """Ignores the progress."""

    def on_message(self, text: str) -> None:
        """Keeps the text in `messages`."""
        self.messages.append(text)
