"""The generators of a run: who serves which version, what each is working on, and what happens when one dies.

A generator that dies, falls silent or cannot prove its weights is stopped, replaced by a fresh one and given the newest
weights, and its unfinished groups start over: same prompts, same seeds.
"""

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from llamarl.controller.clients import QueueClient
from llamarl.controller.observer import Observer
from llamarl.controller.pulse import Pulse
from llamarl.controller.restarts import LOST, RestartBudget
from llamarl.core.errors import WeightSyncError
from llamarl.core.protocols import ExecutorHandle
from llamarl.core.records import Completion, GenerationRequest, LogprobGap, WeightManifest, WeightProof

_LARGE_PRECISION_COST = 0.1
"""Mean nats by which a precision may move log-probs without a warning."""


class _Replaced(Exception):
    """The generator was lost while it worked on a group; a fresh one serves by now."""


class GeneratorClient(QueueClient[tuple[Completion, ...]]):
    """One generator (`core.protocols.Generator`).

    Args:
        capacity: unfinished groups it is given at most.
        pulse: is notified when `room` or `version` changes.
        args, options: of `RevivingClient`.
    """

    def __init__(self, *args: Any, capacity: int, pulse: Pulse, **options: Any) -> None:
        super().__init__(*args, **options)
        self._capacity, self._pulse = capacity, pulse
        self.version: int | None = None
        """The policy version it has proved to serve; None while it may not serve."""
        self.proof: WeightProof | None = None
        """The newest proof of its weights."""
        self._num_groups = 0
        self._manifest: WeightManifest | None = None
        """The newest weights there are."""
        self._span: AbstractContextManager[None] | None = None
        """The open span of the timeline, while it generates."""

    @property
    def room(self) -> int:
        """Number of groups that it may be given beside those it has."""
        return self._capacity - self._num_groups

    def reserve(self) -> None:
        """Takes one group's room: the coroutine that will `complete` it runs only later."""
        self._num_groups += 1

    async def complete(
        self, requests: Sequence[GenerationRequest], on_restart: Callable[[int], None]
    ) -> tuple[Completion, ...]:
        """The completions of one group, in the order of its requests; frees the group's room.

        Args:
            requests: their keys are unique among the run's unfinished ones.
            on_restart: told the served version each time the whole group starts over.
        """
        try:
            while True:
                answers = [self._ask(request.key, request) for request in requests]
                self._mark_work()
                try:
                    parts = await asyncio.gather(*answers)
                except _Replaced:
                    assert self.version is not None, "a fresh generator has proved its weights"
                    # The answers that came before the loss go too: the version told here bounds all tokens' age.
                    on_restart(self.version)
                else:
                    return tuple(completion for part in parts for completion in part)
        finally:
            for request in requests:
                self._forget(request.key)
            self._num_groups -= 1
            self._mark_work()
            self._pulse.notify()

    async def sync(self, manifest: WeightManifest) -> None:
        """Brings it to the manifest's version between two of its decode steps; a lost one is replaced meanwhile."""
        self._manifest = manifest
        while True:
            handle = await self._current()
            if self.version == self._manifest.version:
                return  # also where a replacement was under way: it took the newest weights
            try:
                await self._prepare(handle)
            except LOST as error:
                await self._revive(handle, error)
            self._pulse.notify()

    async def read_status(self) -> dict[str, float]:
        """Reads the generator's counters (`core.protocols.Generator.status`)."""
        status: dict[str, float] = await self._call("status")
        return status

    def _note_answers(self, count: int) -> None:
        if count:
            self._mark_work()
            self._pulse.notify()

    def _describe_work(self) -> str:
        return f"; {self._num_groups} prompts start over"

    def _begin_revival(self) -> None:
        self.version = None

    async def _prepare(self, handle: ExecutorHandle) -> None:
        """Gives the executor the newest weights. Raises `WeightSyncError` if it proves another version."""
        manifest = self._manifest
        assert manifest is not None, "sync comes before any loss"
        self._mark_work(is_serving=False)
        with self._observer.span(self.name, "wait for weights"):
            proof: WeightProof = await handle.call("update_weights", manifest, timeout_seconds=self._call_seconds)
        self._mark_work()
        if proof.version != manifest.version:
            raise WeightSyncError(f"{self.name} serves version {proof.version}, not {manifest.version}")
        if self.proof is None and proof.precision_cost is not None:
            self._report_cost(proof.precision_cost)
        self.version, self.proof = proof.version, proof

    def _end_revival(self) -> None:
        self._unsent.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(_Replaced())
        self._pulse.notify()  # only now: groups that start over come before new ones

    def _mark_work(self, is_serving: bool = True) -> None:
        """Keeps a span of the timeline open for as long as the generator has work and weights."""
        is_working = is_serving and not all(answer.done() for answer in self._answers.values())
        if is_working and self._span is None:
            self._span = self._observer.span(self.name, "generate")
            self._span.__enter__()
        elif not is_working and self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None

    def _report_cost(self, cost: LogprobGap) -> None:
        """Says, once a generator, what its precision costs; silent where it is no more than fp32's order of sums."""
        if cost.largest < 1e-3:
            return
        is_large = cost.mean > _LARGE_PRECISION_COST
        warning = "; that is much: think of another generator.precision" if is_large else ""
        self._observer.on_message(
            f"{self.name}: its precision alone moves log-probs by {cost.mean:.2g} nats on average and "
            f"{cost.largest:.2g} at most, so importance ratios are off by {math.expm1(cost.mean):.1%} before the "
            f"policy changes{warning}"
        )


class GeneratorPool:
    """The generators of a run.

    Args:
        spawn: starts the generator called `name` and returns its handle.
        names: one per generator.
        capacity: unfinished groups that each is given at most.
        pulse: is notified of every change.
        call_seconds: deadline of every call.
        budget: limits the replacements of the whole run.
        observer: is told of losses and of what takes time.
    """

    def __init__(
        self,
        spawn: Callable[[str], Awaitable[ExecutorHandle]],
        names: Sequence[str],
        *,
        capacity: int,
        pulse: Pulse,
        call_seconds: float,
        budget: RestartBudget,
        observer: Observer,
    ) -> None:
        self.members = [
            GeneratorClient(
                name, functools.partial(spawn, name), budget, observer, call_seconds, capacity=capacity, pulse=pulse
            )
            for name in names
        ]

    async def start(self, manifest: WeightManifest) -> None:
        """Spawns all generators and gives them the published weights."""
        await asyncio.gather(*(member.start() for member in self.members))
        await self.sync(manifest)

    async def sync(self, manifest: WeightManifest) -> None:
        """Brings every generator to the manifest's version."""
        await asyncio.gather(*(member.sync(manifest) for member in self.members))

    def find_room(self) -> GeneratorClient | None:
        """The least busy generator that serves and may be given more."""
        able = [member for member in self.members if member.version is not None and member.room > 0]
        return max(able, key=lambda member: member.room, default=None)
