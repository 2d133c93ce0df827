"""Replacing lost executors: one budget for the whole run, and a handle that replaces its executor by itself."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from llamarl.controller.observer import Observer
from llamarl.core.errors import ExecutorLostError, StallError
from llamarl.core.protocols import ExecutorHandle


@dataclass(slots=True)
class RestartBudget:
    """Executors that may still be replaced in this run (`schedule.max_restarts`)."""

    left: int
    used: int = 0

    def spend(self, name: str, cause: Exception) -> None:
        """Takes one restart. Raises `ExecutorLostError` naming the executor and the cause if none is left."""
        if self.left <= 0:
            raise ExecutorLostError(
                f"{name} is lost and no restart is left (schedule.max_restarts): {cause}"
            ) from cause
        self.left -= 1
        self.used += 1


class RevivingHandle:
    """A handle whose executor is replaced when it is lost or silent, and the call repeated: for what keeps nothing.

    Args:
        name: of the executor.
        spawn: starts it.
        budget: of the run.
        observer: is told of losses.
    """

    def __init__(
        self, name: str, spawn: Callable[[], Awaitable[ExecutorHandle]], budget: RestartBudget, observer: Observer
    ) -> None:
        self.name = name
        self._spawn, self._budget, self._observer = spawn, budget, observer
        self._handle: ExecutorHandle | None = None
        self._lock = asyncio.Lock()

    @property
    def pids(self) -> list[int]:
        """Processes of the executor that lives now."""
        return [] if self._handle is None else self._handle.pids

    async def start(self) -> "RevivingHandle":
        """Spawns the executor."""
        self._handle = await self._spawn()
        return self

    async def call(self, method: str, *args: Any, rank: int | None = 0, timeout_seconds: float | None = None) -> Any:
        """Calls the method, on a fresh executor if the present one is lost before it answers."""
        while True:
            handle = self._handle
            assert handle is not None, "start comes before any call"
            try:
                return await handle.call(method, *args, rank=rank, timeout_seconds=timeout_seconds)
            except (ExecutorLostError, StallError) as error:  # silent is as good as dead
                await self._replace(handle, error)

    async def stop(self) -> None:
        """Ends the executor."""
        if self._handle is not None:
            await self._handle.stop()

    async def _replace(self, lost: ExecutorHandle, cause: Exception) -> None:
        async with self._lock:
            if self._handle is not lost:
                return  # another call met the same loss first
            self._budget.spend(self.name, cause)
            self._observer.on_message(f"{self.name} lost ({cause}); starting it again")
            await lost.stop()
            self._handle = await self._spawn()
