"""Weights between hosts: the trainer's ranks share an arena (`weights.shm`), from which rank 0 serves them over TCP.

    receiver                                       trainer
    {"version": 7} ──────────────────────────────▶ a thread for each receiver
            ◀───────────── {"layout": [...]} ──────
            ◀───────────── the bytes of the tensors
            ◀───────────── {"is_whole": true} ─────  false: the slot was overwritten meanwhile

Receivers pull when they are told of a version, so nobody waits for anybody: a receiver that dies in the middle costs
the trainer a thread that ends, and a trainer that dies costs a receiver one error.

Both ends show certificates of an authority that only this channel knows (`engine.identity`): its secret is drawn at
random and travels inside the channel, over the engine's own connections.
"""

import json
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Self
from uuid import uuid4

import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.shards import Sharding
from llamarl.engine.identity import Identity
from llamarl.weights.shm import ShmChannel
from llamarl.weights.slots import NUM_SLOTS, Slots

_SECONDS = 30.0
"""Longest silence in the middle of a transfer, at either end."""
_CHUNK = 1 << 20
"""Bytes that are handed to TLS at a time."""


class TcpChannel:
    """Weights over the network. Build it where the run lives, hand it to the trainer, `open` it there.

    Receivers get what `open` returns. `close`, or the end of the trainer's process, ends the service and removes the
    arena.
    """

    _server: "_Server | None"
    _received: dict[str, Tensor]

    def __init__(self) -> None:
        self.__setstate__(
            {"secret": secrets.token_hex(32), "arena": f"llamarl-{uuid4().hex[:12]}", "address": None},
        )

    def open(self, host: str) -> Self:
        """Serves from here on, on a free port of this machine's address `host`; returns the receivers' end.

        Raises:
            WeightSyncError: `host` is no address of this machine.
        """
        if self._server is None:
            self._arena = ShmChannel(self._name)  # the owner's: it goes with this process
            self._server = _Server(host, self._secret, self._arena)
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
        if self._address is None:
            raise WeightSyncError(f"weights of version {version}: nothing was published on a channel that is not open")
        try:
            with self._connect() as connection, connection.makefile("rb") as source:
                _send_line(connection, {"version": version})
                self._receive(source, version)
        except (OSError, ValueError) as error:  # ValueError: a line that is no JSON
            host, port = self._address
            raise WeightSyncError(f"weights of version {version} did not arrive from {host}:{port}: {error}") from error
        yield self._received

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
        layout = [(name, tuple(shape), dtype) for name, shape, dtype in answer["layout"]]
        if layout != _layout(self._received):
            self._received = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in layout}
        for name, tensor in self._received.items():
            left = _bytes_of(tensor)
            while left:
                if not (count := source.readinto(left[:_CHUNK])):  # type: ignore[attr-defined] # a buffered reader has it
                    raise ConnectionError(f"the trainer hung up in the middle of {name}")
                left = left[count:]
        if not json.loads(source.readline())["is_whole"]:
            raise WeightSyncError(f"weights of version {version} were overwritten while they were being read")

    def __getstate__(self) -> dict[str, Any]:
        return {"secret": self._secret, "arena": self._name, "address": self._address}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._secret, self._name, self._address = state["secret"], state["arena"], state["address"]
        self._arena = ShmChannel(self._name, is_owner=False)
        self._server, self._received = None, {}


class _Server:
    """The trainer's end: a thread for each receiver that fetches."""

    def __init__(self, host: str, secret: str, arena: ShmChannel) -> None:
        with Identity(secret, host) as identity:
            self._context = identity.server_context()
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise WeightSyncError(f"weights: cannot serve them on {host}: {error}") from error
        self._name = arena.name
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
                self._answer(trusted, int(json.loads(lines.readline(_CHUNK))["version"]))

    def _answer(self, connection: ssl.SSLSocket, version: int) -> None:
        is_begun = False
        try:
            # An end of its own: threads attach by themselves.
            with ShmChannel(self._name, is_owner=False).reading(version) as tensors:
                _send_line(connection, {"layout": _layout(tensors)})
                is_begun = True
                for tensor in tensors.values():
                    left = _bytes_of(tensor)
                    while left:
                        connection.sendall(left[:_CHUNK])
                        left = left[_CHUNK:]
        except WeightSyncError as error:
            _send_line(connection, {"is_whole": False} if is_begun else {"error": str(error)})
        else:
            _send_line(connection, {"is_whole": True})


def _layout(tensors: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of each tensor."""
    return [(name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()]


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, shared with it."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type] # an array is a buffer


def _send_line(connection: ssl.SSLSocket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")
