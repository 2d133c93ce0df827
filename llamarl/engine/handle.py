"""The part that the handles of all engines share: ranks, deadlines and their messages."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from llamarl.core.errors import ConfigError, ExecutorLostError, StallError


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
