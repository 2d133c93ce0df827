"""Weights between hosts: the trainer's ranks share an arena (`weights.shm`), from which rank 0 serves them over TCP.

    receiver                                       trainer
    {"version": 7, "held": what it has} ─────────▶ a thread for each receiver
            ◀───────────── {"layout": [...]} ──────
            ◀───────────── the bytes of the tensors
            ◀───────────── {"is_whole": true} ─────  false: the slot was overwritten meanwhile

Receivers pull when they are told of a version, so nobody waits for anybody: a receiver that dies in the middle costs
the trainer a thread that ends, and a trainer that dies costs a receiver one error. They pull while they go on
generating (`prepare`), so that a generator pauses no longer than it takes to load what has arrived.

With deltas, a receiver that holds what lies in the other slot gets only what changed (`weights.delta`), where that is
less.

Both ends show certificates of an authority that only this channel knows (`engine.identity`): its secret is drawn at
random and travels inside the channel, over the engine's own connections.
"""

import asyncio
import json
import secrets
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple, Self
from uuid import uuid4

import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.shards import Sharding
from llamarl.engine.identity import Identity
from llamarl.weights.delta import Delta, apply_delta, encode_delta
from llamarl.weights.shm import Publication, ShmChannel
from llamarl.weights.slots import NUM_SLOTS, Slots

_SECONDS = 30.0
"""Longest silence in the middle of a transfer, at either end."""
_CHUNK = 1 << 20
"""Bytes that are handed to TLS at a time."""


class TcpChannel:
    """Weights over the network. Build it where the run lives, hand it to the trainer, `open` it there.

    Receivers get what `open` returns. `close`, or the end of the trainer's process, ends the service and removes the
    arena.

    Args:
        dtype: in which floating-point tensors travel; None: theirs.
        sends_deltas: finds what changed and sends that alone where it is less. It takes the trainer's host time to find
            and receivers memory to keep.
    """

    dtype: torch.dtype | None
    sends_deltas: bool
    _server: "_Server | None"
    _received: dict[str, Tensor]
    _held: Publication | None
    _prepared: int | None

    def __init__(self, dtype: torch.dtype | None = None, sends_deltas: bool = False) -> None:
        self.__setstate__(
            {
                "secret": secrets.token_hex(32),
                "arena": f"llamarl-{uuid4().hex[:12]}",
                "address": None,
                "dtype": dtype,
                "sends_deltas": sends_deltas,
            },
        )

    def open(self, host: str) -> Self:
        """Serves from here on, on a free port of this machine's address `host`; returns the receivers' end.

        Raises:
            WeightSyncError: `host` is no address of this machine, or stands for all of them.
        """
        if self._server is None:
            self._arena = ShmChannel(self._name, self.dtype)  # the owner's: it goes with this process
            self._server = _Server(host, self._secret, self._arena, self.sends_deltas)
            self._address = self._server.address
        receiver = type(self).__new__(type(self))
        receiver.__setstate__(self.__getstate__())
        return receiver

    def publish(self, version: int, tensors: Mapping[str, Tensor], sharding: Sharding | None = None) -> None:
        """Copies `tensors` into the arena as `version` (`ShmChannel.publish`). Rank 0 has called `open` before.

        Raises:
            WeightSyncError: names, shapes or dtypes differ from the first publication, or shared memory is full.
        """
        self._arena.publish(version, tensors, sharding)

    def fetch(self, version: int, into: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """Copies `version` into the tensors of `into` and returns it; without `into`, into new tensors.

        Raises:
            WeightSyncError: `version` is not on the channel or was overwritten meanwhile, `into` does not fit, or the
                trainer cannot be reached.
        """
        with self.reading(version) as tensors:
            stamps = torch.tensor([[[1, version], *[[0, 0]] * (NUM_SLOTS - 1)]])
            return Slots(stamps, [tensors] * NUM_SLOTS).read(version, into)

    @contextmanager
    def reading(self, version: int) -> Iterator[Mapping[str, Tensor]]:
        """Lends the tensors of `version`, which have arrived whole, in memory that the next fetch uses again.

        Raises:
            WeightSyncError: as for `fetch`.
        """
        if self._prepared != version:
            self._pull(version)
        self._prepared = None
        yield self._received

    async def prepare(self, version: int) -> None:
        """Fetches `version` in a thread, so that `reading` finds it here.

        Raises:
            WeightSyncError: as for `fetch`.
        """
        self._prepared = None
        await asyncio.to_thread(self._pull, version)
        self._prepared = version

    def _pull(self, version: int) -> None:
        if self._address is None:
            raise WeightSyncError(f"weights of version {version}: nothing was published on a channel that is not open")
        try:
            with self._connect() as connection, connection.makefile("rb") as source:
                _send_line(connection, {"version": version, "held": self._held})
                self._receive(source, version)
        except (OSError, ValueError) as error:  # ValueError: a line that is no JSON
            host, port = self._address
            raise WeightSyncError(f"weights of version {version} did not arrive from {host}:{port}: {error}") from error

    def close(self) -> None:
        """Ends the service, where this end has it. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._arena.close()

    def _connect(self) -> ssl.SSLSocket:
        assert self._address is not None
        with Identity(self._secret, "localhost") as identity:  # nobody connects to a receiver: any name will do
            context = identity.client_context()
        connection = socket.create_connection(self._address, timeout=_SECONDS)
        return context.wrap_socket(connection, server_hostname=self._address[0])

    def _receive(self, source: BinaryIO, version: int) -> None:
        """Fills the tensors with what comes."""
        answer = json.loads(source.readline())
        if "error" in answer:
            raise WeightSyncError(answer["error"])
        if "base" in answer:
            self._receive_delta(source, answer)
        else:
            self._held = None  # what is here is neither the one nor the other from now on
            layout = [(name, tuple(shape), dtype) for name, shape, dtype in answer["layout"]]
            if layout != _layout(self._received):
                self._received = _allocate(layout)
            _read_into(source, self._received)
            if not json.loads(source.readline())["is_whole"]:
                raise WeightSyncError(f"weights of version {version} were overwritten while they were being read")
        self._held = tuple(answer["publication"])

    def _receive_delta(self, source: BinaryIO, answer: Mapping[str, Any]) -> None:
        if self._held != tuple(answer["base"]):
            raise WeightSyncError("weights: the trainer sent what changed since others than those that are held")
        masks, values = (_allocate(answer[part]) for part in ("masks", "values"))
        _read_into(source, masks)
        _read_into(source, values)
        base, stamp = answer["base"][1], answer["publication"][1]
        self._held = None
        apply_delta(Delta(base, stamp, masks, values), base, self._received)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "secret": self._secret,
            "arena": self._name,
            "address": self._address,
            "dtype": self.dtype,
            "sends_deltas": self.sends_deltas,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._secret, self._name, self._address = state["secret"], state["arena"], state["address"]
        self.dtype, self.sends_deltas = state["dtype"], state["sends_deltas"]
        self._arena = ShmChannel(self._name, self.dtype, is_owner=False)
        self._server, self._received, self._held, self._prepared = None, {}, None, None


class _Server:
    """The trainer's end: a thread for each receiver that fetches."""

    def __init__(self, host: str, secret: str, arena: ShmChannel, sends_deltas: bool) -> None:
        with Identity(secret, host) as identity:
            self._context = identity.server_context()
        if host in ("", "0.0.0.0", "::"):
            raise WeightSyncError(f"weights: host={host!r} would serve them on all interfaces; state one address")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise WeightSyncError(f"weights: cannot serve them on {host}: {error}") from error
        self._name, self._sends_deltas = arena.name, sends_deltas
        self._lock, self._found = threading.Lock(), _NOTHING_FOUND
        self.address: tuple[str, int] = (host, self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="weights", daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):  # wakes `accept`; not connected, which is an error that does not matter
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), name="weights", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # A receiver that dies or a stranger: the one is replaced by the controller, the other gets nothing.
        with suppress(OSError, ValueError), connection:
            connection.settimeout(_SECONDS)
            with self._context.wrap_socket(connection, server_side=True) as trusted, trusted.makefile("rb") as lines:
                request = json.loads(lines.readline(_CHUNK))
                held = request["held"]
                self._answer(trusted, int(request["version"]), None if held is None else tuple(held))

    def _answer(self, connection: ssl.SSLSocket, version: int, held: Publication | None) -> None:
        arena = ShmChannel(self._name, is_owner=False)  # an end of its own: threads attach by themselves
        is_begun = False
        try:
            if delta := self._find_delta(arena, version, held):
                return self._send_delta(connection, delta)
            with arena.reading(version) as tensors:
                layout, publication = _layout(tensors), _newest(arena, version)
                _send_line(connection, {"layout": layout, "publication": publication})
                is_begun = True
                _send_all(connection, tensors)
        except WeightSyncError as error:
            _send_line(connection, {"is_whole": False} if is_begun else {"error": str(error)})
        else:
            _send_line(connection, {"is_whole": True})

    def _find_delta(self, arena: ShmChannel, version: int, held: Publication | None) -> "_Found | None":
        """What changed since the publication that a receiver holds; None where a full copy is less, or the only way."""
        if held is None or not self._sends_deltas:
            return None
        base = arena.publications().get(held)
        if base is None or base == version:  # an older publication of the same number cannot be asked for
            return None
        with self._lock:  # receivers ask for the same: one thread finds it, the others wait for that
            newest = _newest(arena, version)
            if (self._found.base, self._found.publication) != (held, newest):
                self._found = _Found(held, newest, _changes(arena, base, held, version, newest))
            return self._found if self._found.delta is not None else None

    def _send_delta(self, connection: ssl.SSLSocket, found: "_Found") -> None:
        assert found.delta is not None
        masks, values = found.delta.masks, found.delta.values
        shapes = {"masks": _layout(masks), "values": _layout(values)}
        _send_line(connection, {"base": found.base, "publication": found.publication, **shapes})
        _send_all(connection, masks)
        _send_all(connection, values)


class _Found(NamedTuple):
    """The last delta that somebody asked for."""

    base: Publication
    publication: Publication
    delta: Delta | None
    """None: a full copy is less."""


_NOTHING_FOUND = _Found((0, 0), (0, 0), None)


def _changes(arena: ShmChannel, base: int, held: Publication, version: int, newest: Publication) -> Delta | None:
    try:
        with arena.reading(base) as old, arena.reading(version) as new:
            delta = encode_delta(held[1], old, newest[1], new)
            return delta if delta.num_bytes < sum(tensor.nbytes for tensor in new.values()) else None
    except WeightSyncError:  # the older slot was overwritten meanwhile: what it held is no base any more
        return None


def _newest(arena: ShmChannel, version: int) -> Publication:
    """The publication that the arena lends under a version."""
    found = [publication for publication, number in arena.publications().items() if number == version]
    if not found:
        raise WeightSyncError(f"weights of version {version} are not on the channel")
    return found[-1]


def _allocate(layout: Iterable[tuple[str, Sequence[int], str]]) -> dict[str, Tensor]:
    return {name: torch.empty(tuple(shape), dtype=getattr(torch, dtype)) for name, shape, dtype in layout}


def _read_into(source: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        left = _bytes_of(tensor)
        while left:
            if not (count := source.readinto(left[:_CHUNK])):  # type: ignore[attr-defined] # a buffered reader has it
                raise ConnectionError(f"the trainer hung up in the middle of {name}")
            left = left[count:]


def _send_all(connection: ssl.SSLSocket, tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        left = _bytes_of(tensor)
        while left:
            connection.sendall(left[:_CHUNK])
            left = left[_CHUNK:]


def _layout(tensors: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of each tensor."""
    return [(name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()]


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, shared with it."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type] # an array is a buffer


def _send_line(connection: ssl.SSLSocket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")
