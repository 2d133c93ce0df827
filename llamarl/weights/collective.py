"""Weights over a process group: the ranks of a trainer and of one receiver, and the plan between their layouts.

    link = Link.join(address, "source", rank, num_sources, num_destinations, tensors)      # each rank of both sides
    link.send(version, tensors)                                                            # sources
    link.receive(version, into)                                                            # destinations

Each rank sends only what it holds and receives only what it needs, each region once, from the least loaded source that
holds it. The plan is made when the ranks join; a synchronisation exchanges nothing but the version and the weights.

A link has a process group of its own, beside any that its processes have. It serves one receiver, so that one that dies
takes no other with it: its link fails, and whoever replaces it joins a new one.
"""

import json
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined] # as torch documents them

from llamarl.core.errors import ConfigError, WeightSyncError
from llamarl.core.shards import Layout
from llamarl.functional.shards import local_part, view_region
from llamarl.weights.layout import from_json, layout_of, to_json
from llamarl.weights.plan import Move, Plan, build_plan

Side = Literal["source", "destination"]

WINDOW_BYTES = 1 << 26
"""Copies under way of parts that do not lie in one piece, or not in the dtype that is sent, at most."""


@dataclass(slots=True)
class _Message:
    """A part under way."""

    work: dist.Work
    num_staged_bytes: int
    finish: Callable[[], object]


class Link:
    """One receiver's connection to a trainer.

    Args:
        group: the process group: sources first, then destinations.
        rank: in it.
        plan: of the moves between them.
        layout: of this rank.
        wire: the device whose memory the group sends.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int, plan: Plan, layout: Layout, wire: torch.device) -> None:
        self.group, self._rank, self._layout, self._wire = group, rank, layout, wire
        self._is_broken = False
        self.plan = plan
        self._sent, self._received = plan.sent_by(rank), plan.received_by(rank)
        self._tags = {move: tag for tag, move in enumerate(plan.moves, 1)}

    @classmethod
    def join(
        cls,
        address: str,
        side: Side,
        rank: int,
        num_sources: int,
        num_destinations: int,
        tensors: Mapping[str, Tensor],
        *,
        backend: Literal["gloo", "nccl"] = "gloo",
        timeout_seconds: float = 60.0,
    ) -> "Link":
        """Meets the other ranks, exchanges layouts and plans. All ranks of both sides call it.

        Args:
            address: HOST:PORT that the first source listens on.
            side: of this rank.
            rank: among its side, from 0.
            num_sources: ranks of the trainer.
            num_destinations: ranks of the receiver.
            tensors: what is sent, or received into: this rank's whole tensors or DTensors.
            backend: "nccl" for weights on GPUs, which go from one to the other without passing through memory.
            timeout_seconds: for joining, and for each message of a synchronisation.

        Raises:
            WeightSyncError: the others did not come in time, or their layouts do not fit together.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"address: {address!r} is not HOST:PORT")
        place, world = rank + (num_sources if side == "destination" else 0), num_sources + num_destinations
        timeout, layout = timedelta(seconds=timeout_seconds), layout_of(tensors)
        try:
            store = TCPStore(host, int(port), world, is_master=place == 0, timeout=timeout)
            store.set(f"layout/{place}", json.dumps(to_json(layout)))
            layouts = {other: from_json(json.loads(store.get(f"layout/{other}"))) for other in range(world)}
            plan = build_plan(
                {other: layouts[other] for other in range(num_sources)},
                {other: layouts[other] for other in range(num_sources, world)},
            )
            group = _open_group(backend, PrefixStore("weights", store), place, world, timeout, host)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, WeightSyncError):
                raise
            raise WeightSyncError(
                f"weights: {side} {rank} could not join {world} ranks at {address}: {error}"
            ) from error
        return cls(group, place, plan, layout, torch.device("cuda" if backend == "nccl" else "cpu"))

    @torch.no_grad()
    def send(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Sends this source's moves; returns when they are taken. `tensors` must not change before.

        Raises:
            WeightSyncError: names, shapes or dtypes are not those of `join`, or a receiver is lost.
        """
        self._check(tensors)
        held = {name: local_part(tensors[name]) for name in self._layout}
        header = torch.tensor([version], device=self._wire)
        self._exchange(version, self._post_sends(header, held))

    @torch.no_grad()
    def receive(self, version: int, into: Mapping[str, Tensor]) -> None:
        """Receives `version` into this destination's tensors, cast to their dtype and device.

        Raises:
            WeightSyncError: the sources sent another version, names or shapes are not those of `join`, or a source is
                lost; `into` then holds a mixture and is of no use.
        """
        self._check(into, any_dtype=True)
        held = {name: local_part(into[name]) for name in self._layout}
        headers = {source: torch.empty(1, dtype=torch.int64, device=self._wire) for source in self._sources()}
        self._exchange(version, self._post_headers(headers))
        sent = {source: int(header) for source, header in headers.items()}
        if set(sent.values()) - {version}:
            self._is_broken = True  # the weights of the other version are on their way
            raise WeightSyncError(f"weights of version {version}: the sources sent {sorted(set(sent.values()))}")
        self._exchange(version, self._post_receives(held))

    # Inside

    def _sources(self) -> list[int]:
        return sorted({move.source for move in self._received})

    def _check(self, tensors: Mapping[str, Tensor], any_dtype: bool = False) -> None:
        if self._is_broken:
            raise WeightSyncError("weights: this link has failed; join a new one")
        for name, was in self._layout.items():
            now = layout_of({name: tensors[name]})[name] if name in tensors else None
            if now is None or (now.global_shape, now.region) != (was.global_shape, was.region):
                raise WeightSyncError(f"weights: {name!r} was {was} when the link was joined and is {now} now")
            if now.dtype != was.dtype and not any_dtype:
                raise WeightSyncError(f"weights: {name!r} was {was.dtype} when the link was joined, now {now.dtype}")

    def _exchange(self, version: int, messages: Iterator[_Message]) -> None:
        """Lets messages run, no more copies of parts at a time than the window holds.

        Both sides take their moves in the plan's order and wait for the oldest first, so the oldest move of all is
        always under way on both, and they cannot block each other.
        """
        running: deque[_Message] = deque()
        staged = 0
        try:
            for message in messages:
                running.append(message)
                staged += message.num_staged_bytes
                while staged > WINDOW_BYTES:
                    staged -= _finish(running.popleft())
            while running:
                _finish(running.popleft())
        except RuntimeError as error:
            self._is_broken = True
            raise WeightSyncError(f"weights of version {version}: a rank was lost on the way: {error}") from error

    def _post_sends(self, header: Tensor, held: Mapping[str, Tensor]) -> Iterator[_Message]:
        for destination in sorted({move.destination for move in self._sent}):
            yield _Message(self.group.send([header], destination, 0), 0, _nothing)
        for move in self._sent:
            part = view_region(held[move.name], self._layout[move.name], move.region)
            wire = part.to(self._wire).contiguous()
            staged = 0 if wire.data_ptr() == part.data_ptr() else move.num_bytes
            yield _Message(self.group.send([_bytes_of(wire)], move.destination, self._tags[move]), staged, _nothing)

    def _post_headers(self, headers: Mapping[int, Tensor]) -> Iterator[_Message]:
        for source, header in headers.items():
            yield _Message(self.group.recv([header], source, 0), 0, _nothing)

    def _post_receives(self, held: Mapping[str, Tensor]) -> Iterator[_Message]:
        for move in self._received:
            part = view_region(held[move.name], self._layout[move.name], move.region)
            yield self._post_receive(move, part)

    def _post_receive(self, move: Move, part: Tensor) -> _Message:
        dtype = getattr(torch, move.dtype)
        if part.is_contiguous() and part.dtype == dtype and part.device.type == self._wire.type:
            return _Message(self.group.recv([_bytes_of(part)], move.source, self._tags[move]), 0, _nothing)
        staged = torch.empty(part.shape, dtype=dtype, device=self._wire)
        work = self.group.recv([_bytes_of(staged)], move.source, self._tags[move])
        return _Message(work, move.num_bytes, lambda: part.copy_(staged))


def _open_group(backend: str, store: Store, rank: int, world: int, timeout: timedelta, host: str) -> dist.ProcessGroup:
    if backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return cast(dist.ProcessGroup, dist.ProcessGroupNCCL(store, rank, world, options))
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined] # the stubs lack it
    # By itself gloo takes the interface of the machine's name, which others may not reach, or may reach and should not.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=_facing(host))]
    options._timeout = timeout
    return cast(dist.ProcessGroup, dist.ProcessGroupGloo(store, rank, world, options))


def _facing(host: str) -> str:
    """The address of this machine's interface that leads to `host`; nothing is sent to find out."""
    family, kind, _, _, place = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        own: str = probe.getsockname()[0]
    return own


def _bytes_of(tensor: Tensor) -> Tensor:
    """The same memory as bytes, whatever the dtype: a group need not know it."""
    return tensor.reshape(-1).view(torch.uint8)


def _finish(message: _Message) -> int:
    """Waits, and puts a part that was staged where it belongs; returns the bytes of staging that are free again."""
    message.work.wait()
    message.finish()
    return message.num_staged_bytes


def _nothing() -> None:
    """What is left to do with a part that arrived in place."""
