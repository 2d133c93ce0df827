"""A fixed number of places where blocking work runs, each with its own number."""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Slots(Generic[T]):
    """`num_slots` daemon threads; each calls the work it takes with its own number, 0 to `num_slots - 1`."""

    def __init__(self, num_slots: int, name: str) -> None:
        jobs: queue.SimpleQueue[tuple[Callable[[int], T], Future[T]] | None] = queue.SimpleQueue()
        for number in range(num_slots):  # daemons, so that work that hangs does not keep the process alive
            threading.Thread(target=_serve, args=(jobs, number), name=f"{name}-{number}", daemon=True).start()
        self._jobs = jobs
        # Threads hold the queue and not this object: where it is forgotten without `close`, they end, too.
        self._finalizer = weakref.finalize(self, _stop, jobs, num_slots)

    def submit(self, work: Callable[[int], T]) -> "Future[T]":
        """Queues work. A future that is cancelled before its turn is not run."""
        future: Future[T] = Future()
        self._jobs.put((work, future))
        return future

    def close(self) -> None:
        """Ends the threads, each after the work it is in. Idempotent."""
        self._finalizer()


def _serve(jobs: "queue.SimpleQueue[tuple[Callable[[int], T], Future[T]] | None]", number: int) -> None:
    while (job := jobs.get()) is not None:
        work, future = job
        if not future.set_running_or_notify_cancel():  # its caller has given up
            continue
        try:
            future.set_result(work(number))
        except Exception as error:  # raised again where the result is awaited
            future.set_exception(error)


def _stop(jobs: "queue.SimpleQueue[Any]", num_slots: int) -> None:
    for _ in range(num_slots):
        jobs.put(None)
