"""The default engine: each executor rank is one thread with one event loop, in this process.

    caller's loop                                     rank's thread
    handle.call --(run_coroutine_threadsafe)--------> task: method(*args), awaited if it is a coroutine
            <------------(concurrent future)--------- result or exception

Nothing is copied or pickled: arguments and results are shared objects.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from llamarl.core.protocols import Executor
from llamarl.core.threads import forget, note_unfinished
from llamarl.engine.handle import RankedEngine, RankedHandle

_log = logging.getLogger(__name__)


class InProcessEngine(RankedEngine["InProcessHandle"]):
    """Executors as threads.

    Args:
        stop_timeout_seconds: how long a stop waits for a rank that is busy; then its (daemon) thread is abandoned, and
            the end of the program waits for it once more (`core.threads`).
    """

    def __init__(self, stop_timeout_seconds: float = 10.0) -> None:
        super().__init__()
        self._stop_timeout_seconds = stop_timeout_seconds

    async def _build_handle(self, name: str, num_ranks: int) -> "InProcessHandle":
        return InProcessHandle(name, num_ranks, self._stop_timeout_seconds)

    def _release(self) -> None:
        """Nothing: threads are all there is."""


class InProcessHandle(RankedHandle):
    """The controller's end of executor threads."""

    def __init__(self, name: str, num_ranks: int, stop_timeout_seconds: float) -> None:
        super().__init__(name, num_ranks)
        self._stop_timeout_seconds = stop_timeout_seconds
        self._ranks = [_Rank(f"{name}/{rank}") for rank in range(num_ranks)]

    async def start(self, factory: Callable[[], Executor]) -> None:
        """Builds and sets up all ranks at once."""
        starts = (rank.run(rank.build, factory, index, self.num_ranks) for index, rank in enumerate(self._ranks))
        await asyncio.gather(*starts)

    @property
    def pids(self) -> list[int]:
        """The id of this process, once per rank."""
        return [os.getpid()] * self.num_ranks

    @property
    def is_alive(self) -> bool:
        """True if no rank was killed, stopped or lost."""
        return all(rank.is_alive for rank in self._ranks)

    async def stop(self) -> None:
        """Tears down and joins each rank; a thread that stays busy past the deadline is logged and abandoned."""
        await asyncio.gather(*(rank.stop(self._stop_timeout_seconds) for rank in self._ranks))

    def kill(self) -> None:
        """Simulates death: a method that is running goes on unseen, as a thread cannot be killed."""
        for rank in self._ranks:
            rank.end("killed")

    async def _invoke(self, rank: int, method: str, args: tuple[Any, ...]) -> Any:
        chosen = self._ranks[rank]
        if not chosen.is_alive:
            raise self._lost_error(rank, chosen.death or "stopped")
        try:
            return await chosen.run(chosen.invoke, method, args)
        except _RankEnded as ended:
            raise self._lost_error(rank, str(ended)) from None


class _RankEnded(Exception):
    """The rank's thread ended while a call was under way."""


class _Rank:
    """One thread with one event loop that holds one executor."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.death: str | None = None
        """Reason why the executor ended; None while it runs."""
        self._executor: Executor | None = None
        self._pending: set[Future[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        # The loop is made here and not on the thread: calls may be posted before the thread has begun.
        self._loop = asyncio.new_event_loop()
        # A daemon, as a method that never returns must not keep the program alive.
        self._thread = threading.Thread(target=self._main, name=title, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self.death is None

    def build(self, factory: Callable[[], Executor], rank: int, world_size: int) -> None:
        executor = factory()
        executor.rank, executor.world_size = rank, world_size
        executor.setup()
        self._executor = executor

    def invoke(self, method: str, args: tuple[Any, ...]) -> Any:
        return getattr(self._executor, method)(*args)

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs `function` on the rank's thread and awaits its result, or raises `_RankEnded`."""
        outcome: Future[Any] = Future()
        # Pending before the look at `death`: whenever the rank ends, one of the two fails this call.
        self._pending.add(outcome)
        self._post(self._start, outcome, function, args)
        if self.death is not None:
            _fail(outcome, self.death)
        try:
            return await asyncio.wrap_future(outcome)
        finally:
            self._pending.discard(outcome)

    async def stop(self, timeout_seconds: float) -> None:
        """Cancels what runs, tears the executor down, joins the thread."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        note_unfinished(self._thread)  # first of all: whoever awaits this may be interrupted
        if self.is_alive:
            torn_down: Future[None] = Future()
            self._post(self._start, torn_down, self._shut_down, ())
            self.death = "stopped"
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.wrap_future(torn_down)
            except TimeoutError:
                if loop.time() < deadline:  # teardown's own
                    raise
            finally:
                self.end("stopped")
        # On another thread, since a join would stop the caller's loop.
        await asyncio.to_thread(self._thread.join, max(0.0, deadline - loop.time()))
        if self._thread.is_alive():
            _log.warning("%s: still busy %g s after stop; its thread is abandoned", self.title, timeout_seconds)
        else:
            forget(self._thread)

    def end(self, reason: str) -> None:
        """Ends the loop without teardown and fails what is under way. Callable from any thread."""
        self.death = self.death or reason
        for outcome in list(self._pending):
            _fail(outcome, self.death)
        self._post(self._ended.set)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # its exit cancels tasks and closes the loop
            try:
                runner.run(self._ended.wait())
            except SystemExit:  # a method left: the executor is lost, the process goes on
                _log.info("%s: a method called sys.exit", self.title)
            finally:
                self.end("its thread ended")

    def _post(self, callback: Callable[..., Any], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: then `death` is set
            self._loop.call_soon_threadsafe(callback, *args)

    def _start(self, outcome: "Future[Any]", function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        task = self._loop.create_task(self._settle(outcome, function, args))
        # The loop refers to its tasks weakly only: one that waits might be collected.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A caller that gives up, at its deadline say, takes the method along.
        outcome.add_done_callback(lambda done: self._post(task.cancel) if done.cancelled() else None)

    async def _settle(self, outcome: "Future[Any]", function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Runs the function and puts its result or exception into `outcome`, unless the caller has gone."""
        with contextlib.suppress(InvalidStateError):
            try:
                result = function(*args)
                outcome.set_result(await result if asyncio.iscoroutine(result) else result)
            except asyncio.CancelledError:
                outcome.cancel()
            except Exception as error:
                outcome.set_exception(error)

    async def _shut_down(self) -> None:
        for outcome in list(self._pending):
            _fail(outcome, "stopped")
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._executor is not None:
            self._executor.teardown()


def _fail(outcome: "Future[Any]", reason: str) -> None:
    with contextlib.suppress(InvalidStateError):  # it has its result already, or its caller has gone
        outcome.set_exception(_RankEnded(reason))
