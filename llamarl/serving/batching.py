"""Work of many requests done in common batches, on one thread, with a bounded queue.

    batcher = Batcher(detector.score, max_batch=64, max_waiting=4096)
    scores = await batcher.run(claims)          # of one request; others' items may share its batches

Nothing waits for a batch to fill: as soon as the thread is free it takes what is there, so an idle service answers at
once and a busy one fills its batches by itself.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
FIRST_SECONDS_PER_ITEM = 0.01
"""Guess before anything was measured."""
SMOOTHING = 0.2
"""Weight of the newest batch in the mean of seconds per item."""


class QueueFullError(Exception):
    """More items wait than the queue takes; `seconds` is a guess of when there is room."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full; there may be room in {seconds:.1f} s")
        self.seconds = seconds


@dataclass(slots=True, eq=False)
class _Request(Generic[T, R]):
    """Items of one caller."""

    items: Sequence[T]
    done: "asyncio.Future[list[R]]"
    results: list[R | None] = field(default_factory=list)
    num_started: int = 0
    num_finished: int = 0


class Batcher(Generic[T, R]):
    """Runs a function of many items for callers that have a few each. Belongs to one event loop.

    Items keep the order of arrival, and those of one request may be spread over batches. A caller that gives up takes
    its waiting items along.

    Args:
        work: results of up to `max_batch` items, in order; called on one thread, one call at a time.
        max_batch: most items of one call.
        max_waiting: most items that wait.
        on_batch: told of the items and seconds of each call.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Sequence[R]],
        *,
        max_batch: int,
        max_waiting: int,
        on_batch: Callable[[int, float], object] = lambda items, seconds: None,
    ) -> None:
        self._work, self._max_batch, self._max_waiting, self._on_batch = work, max_batch, max_waiting, on_batch
        self._requests: deque[_Request[T, R]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")  # one: a model computes one batch at a time
        self._worker: asyncio.Task[None] | None = None
        self._seconds_per_item = FIRST_SECONDS_PER_ITEM
        self.num_waiting = 0
        """Items that no batch has taken yet."""

    async def run(self, items: Sequence[T]) -> list[R]:
        """The results of some items, in order.

        Raises:
            QueueFullError: the queue has no room for them all.
            Exception: what the work raised for a batch that held one of them.
        """
        if not items:
            return []
        if self.num_waiting + len(items) > self._max_waiting:
            raise QueueFullError(self.num_waiting * self._seconds_per_item)
        request = _Request[T, R](items, asyncio.get_running_loop().create_future(), [None] * len(items))
        self._requests.append(request)
        self.num_waiting += len(items)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off())
        try:
            return await request.done
        finally:
            self._forget(request)

    async def close(self) -> None:
        """Waits for the batch in work, then ends the thread. Callers have their results, or have given up."""
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _work_off(self) -> None:
        """One batch after another, until nothing waits."""
        while self._requests:
            batch = self._take()
            error = await self._compute(batch)
            if error is None:
                continue
            requests = list(dict.fromkeys(request for request, _ in batch))
            for request in requests:
                # One caller's items may have broken the batch: the others must not pay for them.
                if len(requests) > 1:
                    error = await self._compute([(each, place) for each, place in batch if each is request])
                if error is not None:
                    self._fail(request, error)

    async def _compute(self, batch: Sequence[tuple[_Request[T, R], int]]) -> Exception | None:
        """Fills in the results of a batch; returns what the work raised instead."""
        items, started = [request.items[place] for request, place in batch], time.perf_counter()
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
            if len(results) != len(items):
                raise ValueError(f"{len(results)} results for {len(items)} items")
        except Exception as error:
            return error
        self._measure(len(batch), time.perf_counter() - started)
        for (request, place), result in zip(batch, results, strict=True):
            self._finish(request, place, result)
        return None

    def _take(self) -> list[tuple[_Request[T, R], int]]:
        """The next items, by request and place."""
        batch: list[tuple[_Request[T, R], int]] = []
        while self._requests and len(batch) < self._max_batch:
            request = self._requests[0]
            end = min(len(request.items), request.num_started + self._max_batch - len(batch))
            batch += [(request, place) for place in range(request.num_started, end)]
            self.num_waiting -= end - request.num_started
            request.num_started = end
            if end == len(request.items):
                self._requests.popleft()
        return batch

    def _finish(self, request: _Request[T, R], place: int, result: R) -> None:
        request.results[place] = result
        request.num_finished += 1
        if request.num_finished == len(request.items) and not request.done.done():
            request.done.set_result(request.results)  # type: ignore[arg-type]  # all places are filled

    def _fail(self, request: _Request[T, R], error: Exception) -> None:
        self._forget(request)
        if not request.done.done():
            request.done.set_exception(error)

    def _forget(self, request: _Request[T, R]) -> None:
        """Takes a request's waiting items out of the queue."""
        if request.num_started < len(request.items):
            self.num_waiting -= len(request.items) - request.num_started
            request.num_started = len(request.items)
            self._requests.remove(request)

    def _measure(self, items: int, seconds: float) -> None:
        self._seconds_per_item += SMOOTHING * (seconds / items - self._seconds_per_item)
        self._on_batch(items, seconds)
