"""Common batches: order, size, bounds, and whose fault a failure is."""

import asyncio
import threading
from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.serving.batching import Batcher, QueueFullError


class Squares:
    """Squares numbers, as soon as the gate is open; -1 breaks a batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.gate.wait(10)
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        if -1 in items:
            raise ValueError("minus one")
        return [item * item for item in items]


async def start(batcher: Batcher[int, int], items: Sequence[int]) -> "asyncio.Task[list[int]]":
    """A caller whose items are in the queue or in work."""
    task = asyncio.create_task(batcher.run(items))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=7), max_size=8), st.integers(1, 5))
def test_every_caller_gets_its_own_results_in_order(callers: list[list[int]], max_batch: int) -> None:
    work = Squares()

    async def main() -> list[list[int]]:
        batcher = Batcher(work, max_batch=max_batch, max_waiting=100)
        results = await asyncio.gather(*map(batcher.run, callers))
        assert batcher.num_waiting == 0
        await batcher.close()
        return results

    assert asyncio.run(main()) == [[item * item for item in items] for items in callers]
    assert max(map(len, work.batches), default=0) <= max_batch
    assert list(chain(*work.batches)) == list(chain(*callers))  # each once, in the order of arrival
    assert len(work.threads) <= 1 and threading.get_ident() not in work.threads


def test_what_waits_shares_the_next_batch() -> None:
    async def main() -> None:
        work, seen = Squares(), list[int]()
        batcher = Batcher(work, max_batch=4, max_waiting=100, on_batch=lambda items, seconds: seen.append(items))
        work.gate.clear()
        tasks = [await start(batcher, items) for items in ([1], [2, 3], [4], [5, 6])]
        assert batcher.num_waiting == 5  # the first is in work already
        work.gate.set()
        assert await asyncio.gather(*tasks) == [[1], [4, 9], [16], [25, 36]]
        assert work.batches == [[1], [2, 3, 4, 5], [6]] and seen == [1, 4, 1]
        await batcher.close()

    asyncio.run(main())


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def main() -> None:
        work = Squares()
        batcher = Batcher(work, max_batch=1, max_waiting=3)
        work.gate.clear()
        first = await start(batcher, [1])
        second = await start(batcher, [2, 3])
        with pytest.raises(QueueFullError) as caught:
            await batcher.run([4, 5])
        assert caught.value.seconds == pytest.approx(0.02)  # two wait, 0.01 s each before anything is measured
        third = await start(batcher, [4])
        work.gate.set()
        assert [await task for task in (first, second, third)] == [[1], [4, 9], [16]]
        await batcher.close()

    asyncio.run(main())


def test_who_gives_up_takes_the_waiting_items_along() -> None:
    async def main() -> None:
        work = Squares()
        batcher = Batcher(work, max_batch=2, max_waiting=10)
        work.gate.clear()
        tasks = [await start(batcher, items) for items in ([1], [2, 3, 4], [5])]
        tasks[1].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batcher.num_waiting == 1
        work.gate.set()
        assert await tasks[0] == [1] and await tasks[2] == [25] and tasks[1].cancelled()
        assert work.batches == [[1], [5]]
        await batcher.close()

    asyncio.run(main())


def test_a_broken_batch_is_the_fault_of_one_caller_only() -> None:
    async def main() -> None:
        work = Squares()
        batcher = Batcher(work, max_batch=8, max_waiting=10)
        work.gate.clear()
        tasks = [await start(batcher, items) for items in ([0], [1], [2, -1], [3])]
        work.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [results[0], results[1], results[3]] == [[0], [1], [9]]
        assert isinstance(results[2], ValueError)
        assert await batcher.run([4]) == [16]  # it goes on
        await batcher.close()

    asyncio.run(main())


def test_work_that_returns_too_little_fails() -> None:
    async def main() -> None:
        batcher = Batcher[int, int](lambda items: items[1:], max_batch=8, max_waiting=10)
        with pytest.raises(ValueError, match="1 results for 2 items"):
            await batcher.run([1, 2])
        await batcher.close()

    asyncio.run(main())
