"""One condition variable for the whole controller: every wait states what it waits for, and has a deadline."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from llamarl.core.errors import StallError

T = TypeVar("T")


class Pulse:
    """Waits until a predicate over the controller's state holds; `notify` after each change of that state."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wakes all waiters to check their condition again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_for(
        self, predicate: Callable[[], T | None], what: Callable[[], str], timeout_seconds: float | None = None
    ) -> T:
        """The first value of `predicate` that is neither None nor False (an empty list counts).

        Args:
            predicate: cheap; called at once and after each `notify`.
            what: names the awaited thing for the error message.
            timeout_seconds: None waits for ever (only where somebody else's deadline ends the run).

        Raises:
            StallError: the deadline passed.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout_seconds is None else loop.time() + timeout_seconds
        while True:
            value = predicate()
            if value is not None and value is not False:
                return value
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait_for(waiter, None if deadline is None else deadline - loop.time())
            except TimeoutError:
                raise StallError(f"no progress for {timeout_seconds:g} s while waiting for {what()}") from None
            finally:
                self._waiters.discard(waiter)
