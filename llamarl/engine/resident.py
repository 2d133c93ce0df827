"""What an engine puts into a process to hold one executor there, whatever carries the messages.

Async methods run on the process's event loop, sync methods on one thread of their own. Results and exceptions travel as
values: engines log and wrap what is raised.
"""

import asyncio
import os
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from inspect import iscoroutinefunction
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from llamarl.core.protocols import Executor

Reply = tuple[bool, Any]
"""(True, result) or (False, exception)."""


class Resident:
    """Holds one executor in its process.

    Args:
        rank: its rank.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        # One thread, so that an executor's plain methods never run side by side.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="executor")
        self._executor: Executor | None = None
        self._calls: dict[int, asyncio.Future[Reply]] = {}

    async def build(self, blob: bytes, world_size: int) -> Reply:
        """Unpickles a factory, builds the executor and sets it up."""
        return await _reply(self._on_thread(self._build, blob, world_size))

    async def invoke(self, number: int, method: str, args: tuple[Any, ...]) -> Reply:
        """Calls a method; `number` names the call for `cancel`."""
        self._calls[number] = asyncio.ensure_future(_reply(self._invoke(method, args)))
        try:
            return await self._calls[number]
        except asyncio.CancelledError:
            if number in self._calls:  # not by `cancel`: the engine is stopping this process
                raise
            return False, None
        finally:
            self._calls.pop(number, None)

    async def cancel(self, number: int) -> None:
        """Cancels a call, if it is still under way."""
        if call := self._calls.pop(number, None):
            call.cancel()

    async def tear_down(self) -> Reply:
        """Calls the executor's `teardown`."""
        return await _reply(self._invoke("teardown", ()))

    async def _invoke(self, method: str, args: tuple[Any, ...]) -> Any:
        function = getattr(self._executor, method)
        return await (function(*args) if iscoroutinefunction(function) else self._on_thread(function, *args))

    async def _on_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _build(self, blob: bytes, world_size: int) -> None:
        executor = cloudpickle.loads(blob)()
        executor.rank, executor.world_size = self._rank, world_size
        executor.setup()
        self._executor = executor


async def _reply(call: Awaitable[Any]) -> Reply:
    try:
        return True, await call
    except SystemExit:  # the executor is lost; raised on, it would only break the engine's event loop
        os._exit(1)
    except Exception as error:
        error.add_note(f"in process {os.getpid()}:\n{traceback.format_exc()}")
        return False, _portable(error)


def _portable(error: Exception) -> Exception:
    """The error itself, or its text where it cannot be pickled and unpickled."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
        return error
    except Exception as reason:  # pickling runs the error's own code
        return RuntimeError(f"{type(error).__name__}: {error} (not picklable: {reason})")
