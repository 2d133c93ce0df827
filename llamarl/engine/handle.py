"""The part that all engines and their handles share: executors by name, ranks, deadlines and their messages."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Generic, TypeVar

from llamarl.core.errors import ConfigError, ExecutorLostError, StallError
from llamarl.core.protocols import Executor


class RankedHandle(ABC):
    """A spawned executor of `num_ranks` ranks. Engines say how to reach one rank; the rest is here.

    A call that is cancelled or runs out of time is abandoned: an async method is cancelled where the engine can, a sync
    method runs to its end and its result is dropped.
    """

    def __init__(self, name: str, num_ranks: int) -> None:
        if num_ranks < 1:
            raise ConfigError(f"num_ranks of executor {name!r}: must be at least 1, got {num_ranks}")
        self.name = name
        self.num_ranks = num_ranks

    async def call(self, method: str, *args: Any, rank: int | None = 0, timeout_seconds: float | None = None) -> Any:
        """The result of `method` on one rank, or with `rank=None` a list of every rank's result.

        Exceptions of the method arrive as their own class.

        Raises:
            ExecutorLostError: the executor is dead, or died before it answered.
            StallError: no answer within `timeout_seconds`.
        """
        if rank is not None and not 0 <= rank < self.num_ranks:
            raise ConfigError(f"rank of executor {self.name!r}: must be below {self.num_ranks}, got {rank}")
        ranks = range(self.num_ranks) if rank is None else [rank]
        calls = [self._invoke(each, method, args) for each in ranks]
        results = await gather_within(timeout_seconds, f"{self.name}.{method}", calls)
        return results if rank is None else results[0]

    @property
    def host(self) -> str | None:
        """Address of the machine it lives on, as other machines reach it; None: this one."""
        return None

    @abstractmethod
    async def start(self, factory: Callable[[], Executor]) -> None:
        """Builds an executor on each rank and runs its `setup`; errors of either propagate."""

    @property
    @abstractmethod
    def pids(self) -> list[int]:
        """The operating system's process of each rank."""

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """True if all ranks are up, as far as is known without asking them."""

    @abstractmethod
    async def stop(self) -> None:
        """Runs `teardown` on each rank and ends it. Idempotent; also cleans up after a dead executor."""

    @abstractmethod
    def kill(self) -> None:
        """Ends all ranks at once, without `teardown`: calls under way and later ones raise `ExecutorLostError`."""

    @abstractmethod
    def _invoke(self, rank: int, method: str, args: tuple[Any, ...]) -> Coroutine[Any, Any, Any]:
        """The result of `method` on `rank`, or its exception, or `ExecutorLostError`."""

    def _lost_error(self, rank: int, reason: str, event: str | None = None) -> ExecutorLostError:
        return ExecutorLostError(f"executor {self.name!r} rank {rank} is lost: {reason}", event)


Handle = TypeVar("Handle", bound=RankedHandle)


class RankedEngine(ABC, Generic[Handle]):
    """An engine whose executors have ranks. Engines say what a handle is; the rest is here."""

    def __init__(self) -> None:
        self._handles: dict[str, Handle] = {}

    async def spawn(self, factory: Callable[[], Executor], *, name: str, num_ranks: int = 1) -> Handle:
        """Starts `num_ranks` ranks, builds an executor on each and runs its `setup`; errors of either propagate."""
        claim_name(self._handles, name)
        handle = self._handles[name] = await self._build_handle(name, num_ranks)
        try:
            await handle.start(factory)
        except BaseException:
            await handle.stop()
            raise
        return handle

    async def close(self) -> None:
        """Stops every executor that is left, and gives back what the engine itself holds."""
        handles, self._handles = self._handles, {}
        try:
            await asyncio.gather(*(handle.stop() for handle in handles.values()))
        finally:
            self._release()

    @abstractmethod
    async def _build_handle(self, name: str, num_ranks: int) -> Handle:
        """The handle of ranks that are yet to start."""

    @abstractmethod
    def _release(self) -> None:
        """Gives back what the engine holds beside its executors. Idempotent."""


async def gather_within(
    timeout_seconds: float | None, what: str, calls: Iterable[Coroutine[Any, Any, Any]]
) -> list[Any]:
    """Runs `calls` together: all results, or the first exception, or `StallError` naming `what`. Abandons the rest."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        async with asyncio.timeout(timeout_seconds) as deadline:
            return await asyncio.gather(*tasks)
    except TimeoutError:
        if not deadline.expired():  # a call's own
            raise
        raise StallError(f"{what}: no answer within {timeout_seconds:g} s") from None
    finally:
        # `gather` leaves the others running when one fails.
        for task in tasks:
            task.cancel()


def claim_name(handles: Mapping[str, RankedHandle], name: str) -> None:
    """Raises `ConfigError` if `name` belongs to a living executor."""
    if name in handles and handles[name].is_alive:
        raise ConfigError(f"executor {name!r} already runs; stop it first or choose another name")
