"""The executors of a run as the loop sees them: typed calls that know their deadline and their span in the timeline.

    TrainerClient      train, publish, save, load    lost: the run starts over from its last checkpoint (`lifetime`)
      .score             with adapters: the reference is the trainer without them
    ScorerClient       score                         lost: replaced, and asked again
    JudgesClient       judge, read_status, ...       lost: replaced, and its groups are handed in again
    GeneratorClient    complete, sync                lost: replaced, and its groups start over (`generators`)

Methods of executors are called by name here and in `generators`, and nowhere else.
"""

import asyncio
import itertools
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from llamarl.controller.observer import Observer
from llamarl.controller.restarts import LOST, RevivingClient
from llamarl.core.errors import ExecutorLostError, JudgeError, LostTouchError, RankMemoryError, StallError
from llamarl.core.group_judge import JudgesStatus
from llamarl.core.protocols import ExecutorHandle
from llamarl.core.records import Assignment, Completion, Prompt, Sample, StepResult, Trajectory, WeightManifest

Answer = TypeVar("Answer")

PROGRESS_SECONDS = 1.0
"""Seconds between two reports of a step's progress to the observer."""


class TrainerClient:
    """The trainer, of one rank or several, which are lost together.

    It holds what no other executor could go on from, so its loss is the run's to deal with.

    Args:
        handle: a running `core.protocols.Trainer`.
        observer: is told of what takes time.
        call_seconds: deadline of a call.
        num_ranks: processes of the trainer; all of them are called.
    """

    def __init__(self, handle: ExecutorHandle, observer: Observer, call_seconds: float, num_ranks: int = 1) -> None:
        self._handle, self._observer, self._call_seconds = handle, observer, call_seconds
        self._scoring = asyncio.Lock()
        """Held while the trainer scores for one group, so that the recorded time of the next begins only then."""
        self._num_ranks = num_ranks
        self._turn = asyncio.Lock()
        """Held while the ranks are called: two calls that reached them in unlike orders would wait for each other."""

    async def meet(self) -> None:
        """Lets the ranks meet, where there are several; then each loads the model.

        Raises:
            ConfigError: the model cannot be cut up over the ranks.
        """
        if self._num_ranks > 1:
            address = await self._handle.call("listen", self._call_seconds, timeout_seconds=self._call_seconds)
            await self._call("join", address, self._call_seconds)

    async def train(
        self, assignments: Sequence[Assignment], watched_groups: Sequence[int], weights: Sequence[float]
    ) -> StepResult:
        """One optimizer step on the tasks' weighted losses (`core.protocols.Trainer.train`)."""
        with self._observer.span("trainer", "train"):
            call = asyncio.ensure_future(
                self._call("train", assignments, watched_groups, weights, timeout_seconds=self._call_seconds)
            )
            try:
                while not call.done():  # a step of a real model takes half a minute: its progress is shown
                    await asyncio.wait([call], timeout=PROGRESS_SECONDS)
                    self._observer.on_progress()
            finally:
                call.cancel()  # where this wait is cancelled, so is the call
            result: StepResult = call.result()[0]
        return result

    async def publish(self) -> WeightManifest:
        """Offers the current weights on the weight channel."""
        with self._observer.span("trainer", "publish"):
            manifest: WeightManifest = (await self._call("publish", timeout_seconds=self._call_seconds))[0]
        return manifest

    async def score(self, trajectories: Sequence[Trajectory]) -> "list[array[float]]":
        """The log-prob of each response token under the policy that the run started from (`ReferenceScorer`)."""
        async with self._scoring:
            with self._observer.span("reference", "score"):
                logprobs: list[array[float]] = (
                    await self._call("logprobs", trajectories, timeout_seconds=self._call_seconds)
                )[0]
        return logprobs

    async def save(self, directory: Path) -> None:
        """Writes weights, optimizer and counters into an empty directory; a slow disk may take its time."""
        await self._call("save", str(directory))

    async def load(self, directory: Path) -> None:
        """Restores what `save` wrote; a slow disk may take its time."""
        await self._call("load", str(directory))

    async def measure_memory(self) -> dict[str, int]:
        """Bytes of what training holds on all ranks together, by part."""
        parts: list[dict[str, int]] = await self._call("memory", timeout_seconds=self._call_seconds)
        return {name: sum(rank[name] for rank in parts) for name in parts[0]}

    async def _call(self, method: str, *args: Any, timeout_seconds: float | None = None) -> list[Any]:
        """Calls a method on all ranks, once calls before it are done: their results.

        Raises:
            RankMemoryError: a rank ran out of memory.
            ExecutorLostError: a rank is dead or silent; names it.
            StallError: the deadline passed, though every rank still answers: the work takes longer.
        """
        async with self._turn:
            return await self._call_now(method, *args, timeout_seconds=timeout_seconds)

    async def _call_now(self, method: str, *args: Any, timeout_seconds: float | None) -> list[Any]:
        calls = [
            asyncio.ensure_future(self._handle.call(method, *args, rank=rank, timeout_seconds=timeout_seconds))
            for rank in self._ranks
        ]
        try:
            _, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            if pending:  # a rank failed: the others may say why, and else only wait for it
                await asyncio.wait(pending, timeout=_LAST_WORDS_SECONDS)
        finally:
            for call in calls:
                call.cancel()
        errors = {rank: call.exception() for rank, call in enumerate(calls) if call.done() and not call.cancelled()}
        failed = {rank: error for rank, error in errors.items() if error is not None}
        for error in failed.values():
            if self._num_ranks == 1 or not isinstance(error, LOST) or isinstance(error, RankMemoryError):
                raise error
        if failed:
            raise await self._name_the_lost(method, failed)
        return [call.result() for call in calls]

    async def _name_the_lost(self, method: str, failed: Mapping[int, BaseException]) -> BaseException:
        """An error that names the dead ranks, or else the silent ones; where all of them answer, that of a call."""
        told = next(iter(failed.values()))
        gone = [r for r, e in failed.items() if isinstance(e, ExecutorLostError) and not isinstance(e, LostTouchError)]
        if not gone:
            asks = (self._handle.call("progress", rank=r, timeout_seconds=_ANSWER_SECONDS) for r in self._ranks)
            answers = await asyncio.gather(*asks, return_exceptions=True)
            gone = [rank for rank, answer in zip(self._ranks, answers, strict=True) if isinstance(answer, Exception)]
        if not gone:
            return told
        numbers = ", ".join(map(str, gone))
        events = (error.event for error in failed.values() if isinstance(error, ExecutorLostError))
        return ExecutorLostError(
            f"trainer rank {numbers} of {self._num_ranks} no longer answers, in {method} ({told})",
            event=next(filter(None, events), None),
        )

    @property
    def _ranks(self) -> range:
        return range(self._num_ranks)


_LAST_WORDS_SECONDS = 10.0
"""Wait for the other ranks' results where one failed: the death of another, the cause perhaps, shows a little later."""
_ANSWER_SECONDS = 5.0
"""Deadline of a question that a living rank answers at once, whatever it computes."""


class ReferenceScorer(Protocol):
    """Scores completions under the policy that the run started from."""

    async def score(self, trajectories: Sequence[Trajectory], /) -> "list[array[float]]":
        """The log-prob of each response token of each trajectory."""


class ScorerClient(RevivingClient):
    """The frozen reference policy (`training.reference.ReferenceExecutor`)."""

    async def score(self, trajectories: Sequence[Trajectory]) -> "list[array[float]]":
        """The reference's log-prob of each response token of each trajectory."""
        with self._observer.span(self.name, "score"):
            logprobs: list[array[float]] = await self._call("logprobs", trajectories)
        return logprobs


class QueueClient(RevivingClient, Generic[Answer]):
    """A client of an executor that works on many questions at once and answers them in its own order.

        _ask ──▶ unsent ──(one `submit` for all that came together)──▶ executor
         ▲                                                                │
         └──── each asker by itself ◀──(`collect`: what is finished)──────┘

    A call costs more than many an answer, hence as many questions to a call as there are.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        """The awaited answers, by the question's key."""
        self._unsent: dict[int, Any] = {}
        """The questions that the executor was not given yet."""
        self._has_unsent = asyncio.Event()

    async def submit(self) -> None:
        """Hands the executor what is unsent. Runs for ever."""
        while True:
            await self._has_unsent.wait()
            handle = await self._current()
            # Before the questions are taken: one that comes during the call sets it again.
            self._has_unsent.clear()
            questions, self._unsent = list(self._unsent.values()), {}
            try:
                await handle.call("submit", questions, timeout_seconds=self._call_seconds)
            except LOST as error:
                await self._revive(handle, error)  # which sees to the questions too

    async def collect(self, poll_seconds: float) -> None:
        """Gives the askers their answers. Runs for ever.

        Args:
            poll_seconds: how long one call waits for an answer.
        """
        while True:
            handle = await self._current()
            try:
                finished = await handle.call("collect", poll_seconds, timeout_seconds=poll_seconds + self._call_seconds)
            except LOST as error:
                await self._revive(handle, error)
                continue
            if handle is not self._handle:
                continue  # replaced meanwhile: these questions were asked again
            for key, answer in finished:
                future = self._answers.get(key)
                if future is not None and not future.done():
                    future.set_result(answer)
            self._note_answers(len(finished))

    def _note_answers(self, count: int) -> None:
        """Called after each `collect`."""

    def _ask(self, key: int, question: Any) -> "asyncio.Future[Answer]":
        """Queues a question; the asker calls `_forget` in the end."""
        self._answers[key] = asyncio.get_running_loop().create_future()
        self._unsent[key] = question
        self._has_unsent.set()
        return self._answers[key]

    def _forget(self, key: int) -> None:
        """Drops a question that is answered, or whose answer nobody waits for any more."""
        self._answers.pop(key, None)
        self._unsent.pop(key, None)


class JudgesClient(QueueClient[tuple[Sample, ...]]):
    """The judges (`core.group_judge.GroupJudge`). A slow group holds up no other.

    Args:
        judge_seconds: deadline of one group, from here to its samples.
        args, options: of `RevivingClient`.
    """

    def __init__(self, *args: Any, judge_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._judge_seconds = judge_seconds
        self._keys = itertools.count()
        self._groups: dict[int, Any] = {}
        """The groups that are being judged: a fresh executor must be given them again."""
        self._broken: JudgeError | None = None

    async def judge(self, prompt: Prompt, completions: Sequence[Completion], task: str) -> tuple[Sample, ...]:
        """The completions with their verdicts and rewards.

        Raises:
            StallError: not judged before the deadline.
            JudgeError: the judges are broken.
        """
        if self._broken is not None:
            raise self._broken
        key = next(self._keys)
        self._groups[key] = (key, prompt, completions, task)
        try:
            with self._observer.span("judge", "judge"):
                async with asyncio.timeout(self._judge_seconds):
                    return await self._ask(key, self._groups[key])
        except TimeoutError:
            raise StallError(f"{self.name}: prompt {prompt.id!r} not judged within {self._judge_seconds:g} s") from None
        finally:
            self._forget(key)
            del self._groups[key]

    async def collect(self, poll_seconds: float) -> None:
        """Gives each group its samples. Runs until the judges break, and raises their `JudgeError`."""
        try:
            await super().collect(poll_seconds)
        except JudgeError as error:
            self._broken = error
            for answer in self._answers.values():  # whoever waits for them need not wait for the deadline
                if not answer.done():
                    answer.set_exception(error)
            raise

    async def read_status(self) -> JudgesStatus:
        """Returns and resets the counts of the judges; they cover the time since the last call."""
        status: JudgesStatus = await self._call("status")
        return status

    async def check_canaries(self, *, during_run: bool = False) -> list[str]:
        """Asks the judges their canaries and returns a sentence for each wrong answer; `during_run`: only those due."""
        problems: list[str] = await self._call("check_canaries", during_run, timeout_seconds=self._judge_seconds)
        return problems

    def _end_revival(self) -> None:
        self._unsent = dict(self._groups)
        self._has_unsent.set()
