"""Whole messages over a socket between a parent and its worker, every wait with a deadline."""

import socket
import struct
import time

_LENGTH = struct.Struct("<Q")


class Channel:
    """Length-prefixed messages. Raises `TimeoutError` at the deadline and `EOFError` when the other side is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, message: bytes, timeout_seconds: float | None = None) -> None:
        """Sends one message within the time."""
        self._socket.settimeout(timeout_seconds)
        try:
            self._socket.sendall(_LENGTH.pack(len(message)) + message)
        except OSError as error:
            raise _translate(error) from None

    def receive(self, timeout_seconds: float | None = None) -> bytes:
        """Receives one message within the time."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        return self._read(length, deadline)

    def close(self) -> None:
        """Closes this side; the other side sees the end."""
        self._socket.close()

    def _read(self, count: int, deadline: float | None) -> bytes:
        pieces = bytearray()
        while len(pieces) < count:
            try:
                # Of each piece anew, or a sender that trickles would never be late; 0 would mean "do not block".
                self._socket.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-6))
                piece = self._socket.recv(min(count - len(pieces), 1 << 20))
            except OSError as error:
                raise _translate(error) from None
            if not piece:
                raise EOFError("the other side is gone")
            pieces += piece
        return bytes(pieces)


def _translate(error: OSError) -> Exception:
    return error if isinstance(error, TimeoutError) else EOFError(f"the other side is gone: {error}")
