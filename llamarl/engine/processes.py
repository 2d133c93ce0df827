"""The part that the handles of engines with processes share: start, calls that can be cancelled, an orderly stop."""

import asyncio
import itertools
import logging
import os
import signal
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from llamarl.core.errors import ExecutorLostError, StallError
from llamarl.core.protocols import Executor
from llamarl.engine.handle import RankedHandle, gather_within
from llamarl.engine.resident import Reply

_log = logging.getLogger(__name__)


class GoneError(Exception):
    """A rank is dead, as the engine says; the text is the reason."""


class ProcessHandle(RankedHandle):
    """An executor whose ranks are processes, each with a `resident.Resident`.

    Args:
        name: of the executor.
        num_ranks: its processes.
        start_timeout_seconds: for processes to come up and executors to set up.
        stop_timeout_seconds: for `teardown`, and again for processes to end; then they are killed.
    """

    def __init__(self, name: str, num_ranks: int, start_timeout_seconds: float, stop_timeout_seconds: float) -> None:
        super().__init__(name, num_ranks)
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._pids: list[int] = []
        self._is_built = False
        self._is_torn_down = False
        """True once every rank has run its `teardown`: nothing is lost then, however its process ends."""
        self._death: str | None = None
        self._numbers = itertools.count()

    async def start(self, factory: Callable[[], Executor]) -> None:
        """Ships the factory and sets all ranks up at once."""
        self._pids = await self._locate(self._start_timeout_seconds)
        await self._ask_all(self._start_timeout_seconds, "setup", "build", cloudpickle.dumps(factory), self.num_ranks)
        self._is_built = True

    @property
    def pids(self) -> list[int]:
        """The process of each rank."""
        return list(self._pids)

    @property
    def is_alive(self) -> bool:
        """True if no rank is known to be dead; a death shows when the rank is called."""
        return self._death is None

    async def stop(self) -> None:
        """Tears down and ends the processes; those that don't answer in time are killed."""
        death, self._death = self._death, self._death or "stopped"
        if death == "stopped":
            return
        try:
            if death is None and self._is_built:
                await self._ask_all(self._stop_timeout_seconds, "teardown", "tear_down")
                self._is_torn_down = True
            elif death is not None:
                self._kill_processes()  # what is left of a lost executor has nothing to save and may wait for the dead
        except (StallError, ExecutorLostError) as error:
            _log.warning("stop of %s: %s", self.name, error)
        finally:
            await self._end_processes()

    def kill(self) -> None:
        """SIGKILL."""
        self._death = self._death or "killed"
        self._kill_processes()

    async def _invoke(self, rank: int, method: str, args: tuple[Any, ...]) -> Any:
        if self._death is not None:
            raise self._lost_error(rank, self._death, self._event)
        number = next(self._numbers)
        try:
            return await self._ask(rank, "invoke", number, method, args)
        except asyncio.CancelledError:
            if self._death is None:
                # Sent without waiting for an answer: this coroutine is being cancelled itself.
                self._cancel(rank, number)
            raise

    async def _ask_all(self, timeout_seconds: float, what: str, endpoint: str, *args: Any) -> list[Any]:
        calls = (self._ask(rank, endpoint, *args) for rank in range(self.num_ranks))
        return await gather_within(timeout_seconds, f"{self.name}.{what}", calls)

    async def _ask(self, rank: int, endpoint: str, *args: Any) -> Any:
        """Sends one message to one rank and unwraps the reply."""
        try:
            is_good, value = await self._send(rank, endpoint, args)
        except GoneError as error:
            self._death = self._death or str(error)
            raise self._lost_error(rank, self._death, self._event) from None
        if not is_good:
            raise value
        return value

    @property
    def _event(self) -> str | None:
        """Names what took other executors too, if that is how this one died."""
        return None

    @abstractmethod
    async def _locate(self, timeout_seconds: float) -> list[int]:
        """The process id of each rank, once it is up."""

    @abstractmethod
    async def _send(self, rank: int, endpoint: str, args: tuple[Any, ...]) -> Reply:
        """Sends one message to the resident of one rank. Raises `GoneError`: the rank is dead."""

    @abstractmethod
    def _cancel(self, rank: int, number: int) -> None:
        """Tells a resident to cancel a call, without waiting."""

    @abstractmethod
    def _kill_processes(self) -> None:
        """Ends the processes at once."""

    @abstractmethod
    async def _end_processes(self) -> None:
        """Ends the processes; kills those that don't end in time."""


def kill_here(pids: Iterable[int]) -> None:
    """SIGKILL to processes of this machine."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
