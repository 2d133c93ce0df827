"""Replacing lost executors: one budget for the whole run, and the client that replaces its executor by itself."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from llamarl.controller.observer import Observer
from llamarl.core.errors import ExecutorLostError, StallError, WeightSyncError
from llamarl.core.protocols import ExecutorHandle

LOST = (ExecutorLostError, StallError, WeightSyncError)
"""Errors by which an executor counts as lost: death, silence (as good as death), and weights it cannot prove."""


@dataclass(slots=True)
class RestartBudget:
    """Executors that may still be replaced in this run (`schedule.max_restarts`)."""

    left: int
    used: int = 0
    _events: set[str] = field(default_factory=set)
    """What took several executors at once, and is paid for."""

    def spend(self, name: str, cause: Exception) -> None:
        """Takes one restart; for all executors that one event took, one together.

        Raises:
            ExecutorLostError: none is left; names the executor and the cause.
        """
        event = cause.event if isinstance(cause, ExecutorLostError) else None
        if event in self._events:
            return
        if self.left <= 0:
            raise ExecutorLostError(
                f"{name} is lost and no restart is left (schedule.max_restarts): {cause}"
            ) from cause
        self.left -= 1
        self.used += 1
        if event is not None:
            self._events.add(event)


class RevivingClient:
    """A client whose executor is replaced when it is lost.

    Args:
        name: names the executor in messages and in the timeline.
        spawn: starts the executor.
        budget: limits the replacements of the whole run.
        observer: is told of losses and of what takes time.
        call_seconds: deadline of a call; an executor that misses it counts as lost.
    """

    def __init__(
        self,
        name: str,
        spawn: Callable[[], Awaitable[ExecutorHandle]],
        budget: RestartBudget,
        observer: Observer,
        call_seconds: float,
    ) -> None:
        self.name = name
        self._spawn, self._budget, self._observer, self._call_seconds = spawn, budget, observer, call_seconds
        self._handle: ExecutorHandle | None = None
        self._lock = asyncio.Lock()
        """Held while the executor is being replaced."""

    async def start(self) -> Self:
        """Spawns the executor; one that is lost on the way is spawned again, at the expense of the budget."""
        while self._handle is None:
            try:
                self._handle = await self._spawn()
            except LOST as error:
                self._budget.spend(self.name, error)
                self._observer.on_message(f"{self.name} lost ({error}); starting it again")
        return self

    async def _call(self, method: str, *args: Any, timeout_seconds: float | None = None) -> Any:
        """Calls a method, on a fresh executor if the present one is lost before it answers."""
        while True:
            handle = await self._current()
            try:
                return await handle.call(method, *args, timeout_seconds=timeout_seconds or self._call_seconds)
            except LOST as error:
                await self._revive(handle, error)

    async def _current(self) -> ExecutorHandle:
        """The executor's handle; while a replacement is under way, that of the one to come."""
        async with self._lock:  # a fresh executor is not ready for calls before `_revive` has returned
            assert self._handle is not None, f"{self.name}: start comes before any call"
            return self._handle

    async def _revive(self, lost: ExecutorHandle, cause: Exception) -> None:
        """Replaces the executor behind `lost`. Raises `ExecutorLostError` once the budget is spent."""
        async with self._lock:
            if self._handle is not lost:
                return  # another call met the same loss first
            self._begin_revival()
            while True:
                self._budget.spend(self.name, cause)
                self._observer.on_message(f"{self.name} lost ({cause}); starting it again{self._describe_work()}")
                await self._handle.stop()
                try:
                    self._handle = await self._spawn()
                    await self._prepare(self._handle)
                except LOST as error:
                    cause = error
                else:
                    break
            self._end_revival()

    def _describe_work(self) -> str:
        """Says for the message of a loss which work starts over with a fresh executor."""
        return ""

    def _begin_revival(self) -> None:
        """Called once an executor is known to be lost."""

    async def _prepare(self, handle: ExecutorHandle) -> None:
        """Makes a fresh executor ready for calls. One that is lost meanwhile is replaced in turn."""

    def _end_revival(self) -> None:
        """Called once a fresh executor is ready: says what it has to do again."""
