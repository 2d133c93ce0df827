"""Blocking calls beside an event loop, on threads that never hold up the program's end."""

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from llamarl.core.threads import forget, note_unfinished

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]

_idle: "list[_Helper]" = []
"""Threads without work; `append` and `pop` are atomic."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # threads do not survive a fork


async def run_in_thread(function: Callable[[], T]) -> T:
    """Runs `function` on an idle daemon thread, or on a new one if none is idle, and awaits its result.

    An executor's threads are few, and joined when the interpreter exits: calls that hang would starve the pool and
    then hang the exit. Here a hung call costs one thread, and whoever waits for it may stop waiting. There are as many
    threads as calls were ever in progress at once; a call costs about 0.1 ms.
    """
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    helper.jobs.put((function, future))
    return await future


class _Helper:
    """One daemon thread and its inbox."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="judge", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            function, future = self.jobs.get()
            note_unfinished(self._thread)
            try:
                outcome: tuple[Any, BaseException | None] = (function(), None)
            except StopIteration as error:  # a future refuses it
                outcome = (None, RuntimeError(f"StopIteration: {error}"))
            except BaseException as error:  # raised again where the result is awaited
                outcome = (None, error)
            forget(self._thread)
            _idle.append(self)
            try:
                # Futures belong to their loop's thread: set from here, the waiting task might never wake up.
                future.get_loop().call_soon_threadsafe(_settle, future, *outcome)
            except RuntimeError:  # the loop has closed: nobody waits any more
                continue
            finally:
                del function, future, outcome  # an idle thread keeps nothing alive


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():  # given up
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
