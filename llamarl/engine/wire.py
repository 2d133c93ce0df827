"""The line between a run and a host that it works on: JSON, a line each, and signs of life both ways.

An empty line is a sign of life. Silence is counted in the beats of the one who listens, not in seconds of a clock: a
process that was suspended itself takes nobody for dead when it wakes.
"""

import json
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from llamarl.core.errors import ConfigError

BEAT_SECONDS = 0.5
"""Seconds between two signs of life."""
_MOST_BYTES = 1 << 20
"""Longest line that is read."""


class Wire:
    """One end of a connection. One thread at a time may use it, but for `post`.

    Args:
        connection: open, with TLS.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        # Another thread may append, but not write: OpenSSL's connections belong to one thread at a time.
        self._outbox: deque[bytes] = deque()
        self._is_over = False

    def post(self, message: Mapping[str, Any]) -> None:
        """Queues a message, which `watch` sends with its next beat. Any thread may call this."""
        self._outbox.append(json.dumps(message).encode() + b"\n")

    def end(self) -> None:
        """Lets `watch` return with its next beat. Any thread may call this."""
        self._is_over = True

    def send(self, message: Mapping[str, Any], timeout_seconds: float) -> None:
        """Sends a message. Raises `OSError`."""
        self._connection.settimeout(timeout_seconds)
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_seconds: float) -> dict[str, Any]:
        """The next message. Raises `OSError`: none came in time, or the other end hung up."""
        deadline = time.monotonic() + timeout_seconds
        while not (messages := list(self._messages())):
            self._read(max(0.01, deadline - time.monotonic()))
        return messages[0]

    def watch(self, patience_seconds: float) -> Iterator[dict[str, Any]]:
        """Yields messages as they come, and gives and takes signs of life, until `end`.

        Args:
            patience_seconds: silence after which the other end counts as lost.

        Raises:
            OSError: why the other end is lost.
        """
        silent_beats, next_beat, last_heard = 0, time.monotonic(), time.monotonic()
        while silent_beats * BEAT_SECONDS < patience_seconds and not self._is_over:
            if time.monotonic() >= next_beat:
                self._connection.settimeout(patience_seconds)
                self._connection.sendall(self._outbox.popleft() if self._outbox else b"\n")
                silent_beats, next_beat = silent_beats + 1, time.monotonic() + BEAT_SECONDS
            try:
                self._read(max(0.01, next_beat - time.monotonic()))
            except TimeoutError:
                continue
            silent_beats, last_heard = 0, time.monotonic()
            yield from self._messages()
        if not self._is_over:
            raise ConnectionError(f"no sign of life for {time.monotonic() - last_heard:.1f} s")

    def close(self) -> None:
        """Hangs up; the other end is told. Idempotent."""
        self._connection.close()

    def _read(self, timeout_seconds: float) -> None:
        self._connection.settimeout(timeout_seconds)
        data = self._connection.recv(65536)
        if not data:
            raise ConnectionError("the other end hung up")
        self._received += data
        if len(self._received) > _MOST_BYTES:
            raise ConnectionError(f"a line of more than {_MOST_BYTES} bytes")

    def _messages(self) -> Iterator[dict[str, Any]]:
        while b"\n" in self._received:
            line, _, self._received = self._received.partition(b"\n")
            if not line:
                continue
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ConnectionError("a message that is no JSON object")
            yield message


def split_address(address: str, setting: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[IPv6]:port`.

    Raises:
        ConfigError: it is neither; names `setting`.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ConfigError(f"{setting}: {address!r} is no address; write it as host:port, such as 10.0.0.2:26600")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The text that `split_address` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach."""
    try:
        resolved = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(str(address).startswith("127.") or address == "::1" for address in resolved)
