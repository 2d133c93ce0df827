"""The generators of a run: who serves which version, what each is working on, and what happens when one dies.

Each member has one collecting task. A member that dies, falls silent or cannot prove its weights is stopped, replaced
by a fresh one, given the newest weights, and its unfinished work starts over: same prompts, same seeds.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from llamarl.controller.observer import Observer
from llamarl.controller.pulse import Pulse
from llamarl.controller.restarts import RestartBudget
from llamarl.core.errors import ExecutorLostError, StallError, WeightSyncError
from llamarl.core.protocols import ExecutorHandle
from llamarl.core.records import Completion, GenerationRequest, LogprobGap, WeightManifest, WeightProof

_DEAR = 0.1
"""Mean nats by which a precision may move log-probs without a warning."""

LOST = (ExecutorLostError, StallError, WeightSyncError)


@dataclass(slots=True, eq=False)
class Work:
    """Requests that are done together, with what to do then."""

    requests: Sequence[GenerationRequest]
    on_done: Callable[[tuple[Completion, ...]], None]
    """Called with all completions, in the order of the requests."""
    on_restart: Callable[[int], None] = lambda version: None
    """Called with the served version when the work starts over, as a whole."""
    answers: dict[int, tuple[Completion, ...]] = field(default_factory=dict)
    """By key, of those requests that are answered already."""

    @property
    def is_done(self) -> bool:
        """Whether every request is answered."""
        return len(self.answers) == len(self.requests)

    @property
    def completions(self) -> tuple[Completion, ...]:
        """Of work that is done."""
        return tuple(completion for request in self.requests for completion in self.answers[request.key])


@dataclass(slots=True)
class Member:
    """One generator."""

    name: str
    handle: ExecutorHandle
    version: int | None = None
    """The policy version it has proved to serve; None while it may not serve."""
    works: dict[int, Work] = field(default_factory=dict)
    """Unfinished work, by the key of each of its requests."""
    proof: WeightProof | None = None
    working: AbstractContextManager[None] | None = None
    """The open timeline span while it has work."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the generator is being replaced."""

    @property
    def unfinished(self) -> list[Work]:
        """Each work once, oldest first."""
        return list(dict.fromkeys(self.works.values()))

    def add(self, works: Sequence[Work]) -> None:
        """Takes work on."""
        self.works.update((request.key, work) for work in works for request in work.requests)

    def take(self, key: int, completions: tuple[Completion, ...]) -> Work | None:
        """One request is answered; returns the work that this completes."""
        work = self.works.get(key)
        if work is None:
            return None
        work.answers[key] = completions
        if not work.is_done:
            return None
        for request in work.requests:
            del self.works[request.key]
        return work


class GeneratorPool:
    """Generators behind one interface.

    Args:
        spawn: starts the generator called `name` and returns its handle.
        names: one per generator.
        capacity: unfinished works a generator is given at most.
        pulse: told of every change.
        timeout_seconds: deadline of every call to a generator.
        budget: of restarts, shared by the whole run.
        observer: is told what each generator does, and of losses and replacements.
    """

    def __init__(
        self,
        spawn: Callable[[str], Awaitable[ExecutorHandle]],
        names: Sequence[str],
        *,
        capacity: int,
        pulse: Pulse,
        timeout_seconds: float,
        budget: RestartBudget,
        observer: Observer,
    ) -> None:
        self._spawn, self._names, self._capacity, self._pulse = spawn, list(names), capacity, pulse
        self._timeout, self._budget, self._observer = timeout_seconds, budget, observer
        self._manifest: WeightManifest | None = None
        self.members: list[Member] = []

    async def start(self, manifest: WeightManifest) -> None:
        """Spawns all generators and gives them their first weights."""
        handles = await asyncio.gather(*(self._spawn(name) for name in self._names))
        self.members = [Member(name, handle) for name, handle in zip(self._names, handles, strict=True)]
        await self.sync(manifest)

    def with_room(self) -> Member | None:
        """The least busy generator that serves and may take more work."""
        able = [member for member in self.members if member.version is not None and self.room(member) > 0]
        return max(able, key=self.room, default=None)

    def room(self, member: Member) -> int:
        """Works `member` may still take."""
        return self._capacity - len(member.unfinished)

    async def submit(self, member: Member, works: Sequence[Work]) -> None:
        """Hands work to a generator. If it turns out lost, its collecting task starts the work over."""
        member.add(works)
        self._mark(member)
        requests = [request for work in works for request in work.requests]
        with contextlib.suppress(*LOST):  # the collecting task meets the same loss and recovers all work
            await member.handle.call("submit", requests, timeout_seconds=self._timeout)

    async def sync(self, manifest: WeightManifest) -> None:
        """Brings every generator to the manifest's version, each between two of its decode steps."""
        self._manifest = manifest
        await asyncio.gather(*(self._sync_member(member) for member in self.members))

    async def collect(self, member: Member, poll_seconds: float) -> None:
        """Runs for ever: passes finished work on, replaces the generator when it is lost."""
        while True:
            handle = member.handle
            try:
                finished = await handle.call("collect", poll_seconds, timeout_seconds=poll_seconds + self._timeout)
            except LOST as error:
                await self._replace(member, handle, error)
                continue
            if member.handle is not handle:
                continue  # replaced meanwhile: all its work starts over
            for key, completions in finished:
                if work := member.take(key, completions):
                    work.on_done(work.completions)
            if finished:
                self._mark(member)
                self._pulse.beat()

    def _mark(self, member: Member, is_working: bool = True) -> None:
        """Keeps a timeline span open for as long as the generator has work and weights."""
        is_working = is_working and bool(member.works)
        if is_working and member.working is None:
            member.working = self._observer.span(member.name, "generate")
            member.working.__enter__()
        elif not is_working and member.working is not None:
            member.working.__exit__(None, None, None)
            member.working = None

    async def _sync_member(self, member: Member) -> None:
        while self._manifest is not None and (member.version is None or member.version < self._manifest.version):
            handle = member.handle
            try:
                await self._update(member)
            except LOST as error:
                await self._replace(member, handle, error)

    async def _update(self, member: Member) -> None:
        manifest = self._manifest
        assert manifest is not None, "sync comes before any update"
        self._mark(member, is_working=False)
        with self._observer.span(member.name, "wait for weights"):
            proof: WeightProof = await member.handle.call("update_weights", manifest, timeout_seconds=self._timeout)
        self._mark(member)
        if proof.version != manifest.version:
            raise WeightSyncError(f"{member.name} serves version {proof.version}, not {manifest.version}")
        if member.proof is None and proof.precision_cost is not None:
            self._report_cost(member.name, proof.precision_cost)
        member.version, member.proof = proof.version, proof
        self._pulse.beat()

    def _report_cost(self, name: str, cost: LogprobGap) -> None:
        """Says, once a generator, what its precision costs; silent where it is no more than fp32's order of sums."""
        if cost.largest < 1e-3:
            return
        warning = "; that is much: think of another generator.precision" if cost.mean > _DEAR else ""
        self._observer.on_message(
            f"{name}: its precision alone moves log-probs by {cost.mean:.2g} nats on average and {cost.largest:.2g} at "
            f"most, so importance ratios are off by {math.expm1(cost.mean):.1%} before the policy changes{warning}"
        )

    async def _replace(self, member: Member, lost: ExecutorHandle, cause: Exception) -> None:
        """A fresh generator under the same name takes over all unfinished work of the lost one."""
        async with member.lock:
            if member.handle is not lost:
                return  # another task met the same loss first
            member.version = None
            handle = lost
            while member.version is None:
                self._budget.spend(member.name, cause)
                self._observer.on_message(
                    f"{member.name} lost ({cause}); starting it again; {len(member.unfinished)} prompts start over"
                )
                await handle.stop()
                try:
                    member.handle = handle = await self._spawn(member.name)
                    await self._update(member)
                except LOST as error:
                    cause = error
            works, version = member.unfinished, member.version
        for work in works:
            work.answers.clear()
            work.on_restart(version)
        await self.submit(member, works)
