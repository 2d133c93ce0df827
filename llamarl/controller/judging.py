"""The judges as the loop sees them: groups go in, judged samples come out, as many to a call as there are.

      judged ──▶ unsent ──(one `submit` for all that came together)──▶ judge executor
        ▲                                                                   │
        └───── each group by itself ◀──(`collect`: what is finished)────────┘

A slow group holds up no other. A judge that was lost and started again doesn't know what it was given: `collect` says
so, and those groups are submitted again.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from llamarl.core.errors import JudgeError, StallError
from llamarl.core.protocols import ExecutorHandle
from llamarl.core.records import Completion, Prompt, Sample

Samples = tuple[Sample, ...]


@dataclass(slots=True)
class _Asked:
    """One group that waits for its samples."""

    prompt: Prompt
    completions: Sequence[Completion]
    task: str
    answer: "asyncio.Future[Samples]"
    is_submitted: bool = False


class JudgeQueue:
    """Groups on their way through the judge executor.

    Args:
        judge: a running `judges.executor.JudgeExecutor`.
        timeout_seconds: deadline of one group.
        call_seconds: deadline of a call; a judge that answers none is silent.
    """

    def __init__(self, judge: ExecutorHandle, timeout_seconds: float, call_seconds: float) -> None:
        self._judge, self._timeout, self._call_seconds = judge, timeout_seconds, call_seconds
        self._keys = itertools.count()
        self._asked: dict[int, _Asked] = {}
        self._unsent = asyncio.Event()
        self._broken: JudgeError | None = None

    async def judged(self, prompt: Prompt, completions: Sequence[Completion], task: str) -> Samples:
        """The judged samples of one group. Raises `StallError` at its deadline, `JudgeError` once judges are broken."""
        if self._broken is not None:
            raise self._broken
        key = next(self._keys)
        answer: asyncio.Future[Samples] = asyncio.get_running_loop().create_future()
        self._asked[key] = _Asked(prompt, completions, task, answer)
        self._unsent.set()
        try:
            async with asyncio.timeout(self._timeout):
                return await answer
        except TimeoutError:
            raise StallError(
                f"{self._judge.name}: prompt {prompt.id!r} not judged within {self._timeout:g} s"
            ) from None
        finally:
            self._asked.pop(key, None)

    async def submit(self) -> None:
        """Runs for ever: hands the judge what waits, all of it at once."""
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            new = {key: asked for key, asked in self._asked.items() if not asked.is_submitted}
            groups = [(key, asked.prompt, asked.completions, asked.task) for key, asked in new.items()]
            await self._judge.call("submit", groups, timeout_seconds=self._call_seconds)
            for asked in new.values():
                asked.is_submitted = True

    async def collect(self, poll_seconds: float) -> None:
        """Runs for ever: gives each group its samples."""
        while True:
            expected = [key for key, asked in self._asked.items() if asked.is_submitted]
            try:
                finished, unknown = await self._judge.call(
                    "collect", expected, poll_seconds, timeout_seconds=poll_seconds + self._call_seconds
                )
            except JudgeError as error:
                self._give_up(error)
                raise
            for key, samples in finished:
                asked = self._asked.pop(key, None)
                if asked is not None and not asked.answer.done():
                    asked.answer.set_result(samples)
            for asked in map(self._asked.get, unknown):
                if asked is not None:
                    asked.is_submitted = False
                    self._unsent.set()

    def _give_up(self, error: JudgeError) -> None:
        """The judges are broken: whoever waits for them need not wait for the deadline."""
        self._broken = error
        for asked in self._asked.values():
            if not asked.answer.done():
                asked.answer.set_exception(error)
