"""The judge executor's side of judging many groups with few calls."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llamarl.core.protocols import Executor
from llamarl.core.records import Completion, Prompt, Sample


@dataclass(frozen=True, slots=True)
class JudgesStatus:
    """Counts of the judges since they were last asked."""

    task_metrics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """The metrics of each task's judges, by the task's name; None where nothing was counted."""
    unscored_fraction: float = 0.0
    """Share of the last samples without a reward; the largest of any task."""
    is_degraded: bool = False
    """True if so many samples of some task go unscored that the run should stop."""


class GroupJudge(Executor):
    """An executor that judges groups, each as soon as it comes. Subclasses say how one is judged.

    A call costs the controller as much as judging something simple: so groups come and go by `submit` and `collect`,
    as many to a call as there are, and a slow one holds up no other.
    """

    def setup(self) -> None:
        """Nothing is under way."""
        self._under_way: dict[int, asyncio.Task[tuple[Sample, ...]]] = {}
        self._any_done = asyncio.Event()

    def teardown(self) -> None:
        """Gives up what is under way."""
        for work in self._under_way.values():
            with contextlib.suppress(RuntimeError):  # its loop has closed
                work.get_loop().call_soon_threadsafe(work.cancel)

    async def judge_group(
        self, prompt: Prompt, completions: Sequence[Completion], task: str = ""
    ) -> tuple[Sample, ...]:
        """The judged samples of one prompt, in order."""
        raise NotImplementedError

    async def status(self) -> JudgesStatus:
        """Returns and resets the counts of the judges."""
        return JudgesStatus()

    async def submit(self, groups: Sequence[tuple[int, Prompt, Sequence[Completion], str]]) -> None:
        """Begins to judge groups (key, prompt, completions, task); returns at once. No key comes twice."""
        for key, prompt, completions, task in groups:
            work = asyncio.create_task(self.judge_group(prompt, completions, task))
            work.add_done_callback(self._note)
            self._under_way[key] = work

    async def collect(self, timeout_seconds: float) -> list[tuple[int, tuple[Sample, ...]]]:
        """Finished groups as (key, samples), each once; waits up to the time-out for the first, may return [].

        Raises:
            Exception: whatever judging a group raised.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._any_done.wait(), timeout_seconds)
        self._any_done.clear()
        done = [key for key, work in self._under_way.items() if work.done()]
        return [(key, self._under_way.pop(key).result()) for key in done]

    def _note(self, work: "asyncio.Task[tuple[Sample, ...]]") -> None:
        self._any_done.set()
        if not work.cancelled():
            work.exception()  # taken, in case nobody collects it any more
