"""Coroutines called from plain code, also where an event loop runs already: a notebook's cell, an async test.

verdicts = run_async(panel.judge_group(prompt, completions))
"""

import asyncio
import contextvars
import functools
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar, TypeVarTuple

from llamarl.core.threads import forget, note_unfinished

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, which runs to its end before this returns.

    Where a loop runs in this thread, the coroutine gets a thread and a loop of its own and this thread waits, so the
    caller's loop stands still meanwhile, as in any call that blocks. Ctrl-C then does what it does to `asyncio.run`: it
    calls the handler that the coroutine added to its loop for SIGINT, or cancels the coroutine and is raised here.

    Raises:
        KeyboardInterrupt: the coroutine was cancelled by Ctrl-C.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        found: list[T] = []

        async def hold() -> None:  # Python spells out a task's result as it takes SIGINT back: of a big one, for hours
            found.append(await work)

        asyncio.run(hold())
        return found[0]
    return _run_beside(work)


class _SideLoop(asyncio.SelectorEventLoop):
    """A loop beside the main thread, where Python delivers signals; that thread hands SIGINT on to it.

    Handlers of other signals are accepted and never called: those keep what they do to the process.
    """

    task: "asyncio.Task[Any] | None" = None
    """The coroutine, once it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[int, Callable[[], object]] = {}

    def add_signal_handler(self, sig: int, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Sets what SIGINT does."""
        self._handlers[sig] = functools.partial(callback, *args)

    def remove_signal_handler(self, sig: int) -> bool:
        """Makes SIGINT cancel the coroutine again."""
        return self._handlers.pop(sig, None) is not None

    def interrupt(self) -> None:
        """Does on this loop's thread what SIGINT does to a loop of the main thread."""
        if self.task is None:
            self.call_soon(self.interrupt)
        else:
            self._handlers.get(signal.SIGINT, self.task.cancel)()


def _run_beside(work: Coroutine[Any, Any, T]) -> T:
    loop, result = _SideLoop(), Future[T]()

    async def main() -> T:
        loop.task = asyncio.current_task()
        return await work

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                outcome = runner.run(main())
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(outcome)  # after the runner has closed: nothing of the coroutine is left then
        finally:
            forget(threading.current_thread())

    # The caller's context goes along: in a notebook it says into which cell the thread prints.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="event loop", daemon=True)
    note_unfinished(thread)
    if threading.current_thread() is not threading.main_thread():
        thread.start()
        return result.result()
    with _interrupts_to(loop) as interrupts:
        thread.start()
        try:
            return result.result()
        except asyncio.CancelledError:
            if interrupts:
                raise KeyboardInterrupt from None
            raise


@contextmanager
def _interrupts_to(loop: _SideLoop) -> Iterator[list[int]]:
    """Hands SIGINT on to the loop; yields the list of those that came."""
    interrupts: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        if len(interrupts) > 2:  # neither stopping nor cancelling helped: leave the thread behind
            raise KeyboardInterrupt
        with suppress(RuntimeError):  # the loop has closed: the result is there
            loop.call_soon_threadsafe(loop.interrupt)

    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield interrupts
        return
    signal.signal(signal.SIGINT, on_signal)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
