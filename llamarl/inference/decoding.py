"""The thread that decodes: requests of an event loop, all in one continuous batch.

    event loop                              thread
    stream, call ------- calls ----------> between two steps: add, cancel, new weights
                     <-- draws, results --- after each step

The batcher belongs to the thread; nobody else touches it. The loop never waits for a model, so that a health check is
answered while a long prompt is read.
"""

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.records import Completion, GenerationRequest
from llamarl.generation.batcher import Batcher
from llamarl.serving.batching import FIRST_SECONDS_PER_ITEM, SMOOTHING, QueueFullError

T = TypeVar("T")


class Draw(NamedTuple):
    """One drawn token."""

    token_id: int
    logprob: float
    """Its log-prob under the model itself, at temperature 1 and without filters; 0 where nobody asked."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probs, the likeliest first."""


Event = Draw | Completion | Exception


@dataclass(frozen=True, slots=True)
class _Listener:
    """Who waits for a completion. The queue belongs to the event loop."""

    index: int
    """The place of the request among those that were sent together."""
    events: "asyncio.Queue[tuple[int, Event]]"
    num_top: int | None
    hears_draws: bool


class DecodingThread:
    """Completes requests. Belongs to the event loop on which it is built, but for what its thread does.

    Args:
        batcher: decodes; from now on used by nobody else.
        max_waiting: most completions that wait for a slot.
    """

    def __init__(self, batcher: Batcher, *, max_waiting: int) -> None:
        self._batcher, self._max_waiting = batcher, max_waiting
        self._keys = itertools.count()
        self._listeners: dict[int, _Listener] = {}
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._draws: list[tuple[int, Event]] = []
        self._loop = asyncio.get_running_loop()
        self._seconds = FIRST_SECONDS_PER_ITEM
        self.num_steps = 0
        """Steps of the batcher."""
        self.refusal: str | None = None
        """Why nothing is completed: the weights are in doubt. None while they are not."""
        batcher.on_draw = self._on_draw
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        """Completions that are decoded or wait."""
        return len(self._listeners)

    async def stream(
        self, requests: Sequence[GenerationRequest], *, num_top: int | None = None, hears_draws: bool = True
    ) -> AsyncGenerator[tuple[int, Draw | Completion], None]:
        """Yields each drawn token and each completion as (index of the request, it), until all are complete.

        Who stops listening takes the requests back.

        Args:
            requests: with one seed each; their keys are replaced.
            num_top: how many of the likeliest tokens each draw tells; None: no log-probs either.
            hears_draws: False yields completions only.

        Raises:
            QueueFullError: too many wait.
            DataError: the model cannot take one of them; none is completed then.
            WeightSyncError: the weights are in doubt, from the start or since an update meanwhile.
        """
        if self.refusal is not None:
            raise WeightSyncError(self.refusal)
        num_waiting = self.num_open + len(requests) - self._batcher.slots
        if num_waiting > self._max_waiting:
            raise QueueFullError(self._seconds * num_waiting)
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        own = [replace(request, key=next(self._keys)) for request in requests]
        keys = [request.key for request in own]
        for index, key in enumerate(keys):
            self._listeners[key] = _Listener(index, events, num_top, hears_draws)
        started, num_left = self._loop.time(), len(keys)
        try:
            await self.call(lambda batcher: batcher.add(own))
            while num_left:
                index, event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Completion):
                    num_left -= 1
                    seconds = (self._loop.time() - started) / min(self.num_open, self._batcher.slots)
                    self._seconds += SMOOTHING * (seconds - self._seconds)
                yield index, event
        finally:
            for key in keys:
                del self._listeners[key]
            if num_left:
                self._calls.put(lambda: self._batcher.cancel(keys))

    async def call(self, function: Callable[[Batcher], T]) -> T:
        """What a function of the batcher gives, called between two steps."""
        done: asyncio.Future[Any] = self._loop.create_future()

        def run() -> None:
            try:
                result, error = function(self._batcher), None
            except Exception as caught:
                result, error = None, caught
            self._tell(lambda: _settle(done, result, error))

        self._calls.put(run)
        return await done  # type: ignore[no-any-return]

    async def update(self, take: Callable[[Batcher], object]) -> None:
        """Changes the weights between two steps. Where that fails, no token is drawn until another update succeeds.

        Raises:
            WeightSyncError: raised by `take`; whoever waited for a completion gets it too.
        """

        def run(batcher: Batcher) -> None:
            try:
                take(batcher)
                self.refusal = None
            except WeightSyncError as error:
                self.refusal = str(error)
                self._fail(error)
                raise

        await self.call(run)

    async def close(self) -> None:
        """Ends the thread after the step it is in."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    # ---- on the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            # Without work there is nothing to do before the next call, so this waits for it.
            for call in self._take_calls(waits=not self._batcher.has_work):
                if call is None:
                    return
                call()
            if self._batcher.has_work:
                self._step()

    def _take_calls(self, waits: bool) -> list[Callable[[], object] | None]:
        calls = [self._calls.get()] if waits else []
        while not self._calls.empty():
            calls.append(self._calls.get())
        return calls

    def _step(self) -> None:
        try:
            finished = [(key, completion) for key, (completion,) in self._batcher.step()]
        except Exception as error:  # of a model that cannot go on, say for memory: those who wait must hear of it
            self._fail(error)
            return
        self.num_steps += 1
        events = [*self._draws, *finished]  # a completion after its last token
        self._draws = []
        if events:
            self._tell(lambda: self._deliver(events))

    def _fail(self, error: Exception) -> None:
        """Ends all that is under way."""
        failed = [(key, error) for key in list(self._listeners)]
        self._batcher.cancel([key for key, _ in failed])
        self._draws = []
        self._tell(lambda: self._deliver(failed))

    def _on_draw(self, rows: list[tuple[int, int]], logits: Tensor, token_ids: Tensor) -> None:
        """Notes the tokens of those who listen to them."""
        found = ((row, key, self._listeners.get(key)) for row, (key, _) in enumerate(rows))
        heard = [(row, key, listener) for row, key, listener in found if listener is not None and listener.hears_draws]
        asking = [(row, listener.num_top) for row, _, listener in heard if listener.num_top is not None]
        logprobs = _logprobs(logits, token_ids, dict(asking)) if asking else {}
        for row, key, _ in heard:
            self._draws.append((key, Draw(int(token_ids[row]), *logprobs.get(row, (0.0,)))))

    def _tell(self, function: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    # ---- on the event loop -------------------------------------------------------------------------------------------

    def _deliver(self, events: Sequence[tuple[int, Event]]) -> None:
        for key, event in events:
            if (listener := self._listeners.get(key)) is not None:  # else it has gone
                listener.events.put_nowait((listener.index, event))


def _settle(done: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if done.done():  # who asked has gone
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def _logprobs(
    logits: Tensor, token_ids: Tensor, num_top: Mapping[int, int]
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """By row of `num_top`: the log-prob of its token, and so many of the likeliest tokens with theirs."""
    rows = list(num_top)
    table = torch.log_softmax(logits[rows].float(), dim=-1)
    chosen = table.gather(1, token_ids[rows, None])[:, 0].tolist()
    top = table.topk(min(max(num_top.values()), table.shape[1]), dim=-1)
    pairs = [tuple(zip(*pair, strict=True)) for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
    return {row: (chosen[i], pairs[i][: num_top[row]]) for i, row in enumerate(rows)}
