"""Values and messages between the processes of one run: bytes that can only ever become plain data.

None, bool, int, float, str, bytes and lists stand for themselves; other plain types are tagged,
`{"t": "tuple", "v": [...]}`. The exact type counts: an instance of a subclass, or of any other class, stays where it is
and travels as a reference.
"""

from __future__ import annotations  # and TYPE_CHECKING: every run would pay for importing `typing`

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SEQUENCES: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_DICTIONARIES = ("dict", "defaultdict", "OrderedDict", "Counter")


class Kept:
    """The objects of this process that the other one holds references to."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def add(self, value: Any) -> dict[str, Any]:
        """Keeps an object; its name on the wire."""
        self.objects.append(value)
        return {"t": "theirs", "v": len(self.objects) - 1}


def encode(value: Any, keep: Callable[[Any], Any]) -> Any:
    """What stands for `value` on the wire; `keep` says what stands for anything that is not plain data."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, bytes):
        return value
    if kind is list:
        return [encode(item, keep) for item in value]
    if kind in (tuple, set, frozenset):
        return {"t": kind.__name__, "v": [encode(item, keep) for item in value]}
    if kind.__name__ in _DICTIONARIES and kind.__module__ in ("builtins", "collections"):
        return {"t": "dict", "v": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    if kind is bytearray:
        return {"t": "bytearray", "v": bytes(value)}
    if kind is complex:
        return {"t": "complex", "v": [value.real, value.imag]}
    if (kind.__module__, kind.__name__) == ("fractions", "Fraction"):
        return {"t": "Fraction", "v": [encode(value.numerator, keep), encode(value.denominator, keep)]}
    if (kind.__module__, kind.__name__) == ("decimal", "Decimal"):
        return {"t": "Decimal", "v": str(value)}
    return keep(value)


def decode(value: Any, find: Callable[[str, Any], Any]) -> Any:
    """The value that `encode` wrote; `find` gets the tag and content of what is no plain data."""
    if isinstance(value, list):
        return [decode(item, find) for item in value]
    if not isinstance(value, dict):
        return value
    tag, content = value["t"], value["v"]
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](decode(item, find) for item in content)
    if tag == "dict":
        return {decode(key, find): decode(item, find) for key, item in content}
    if tag == "bytearray":
        return bytearray(content)
    if tag == "complex":
        return complex(*content)
    if tag == "Fraction":
        from fractions import Fraction

        return Fraction(*(decode(part, find) for part in content))
    if tag == "Decimal":
        from decimal import Decimal

        return Decimal(content)
    return find(tag, content)


def pack(message: Any) -> bytes:
    """A message of None, bool, int, float, str, bytes, lists and dictionaries as bytes.

    Our own form, because each run would pay for the import of `json` (10 ms).
    """
    pieces: list[bytes] = []
    _pack(message, pieces)
    return b"".join(pieces)


def _pack(value: Any, pieces: list[bytes]) -> None:
    if value is None or value is True or value is False:
        pieces.append({None: b"n", True: b"t", False: b"f"}[value])
    elif isinstance(value, int):
        pieces.append(b"i%x;" % value)
    elif isinstance(value, float):
        pieces.append(b"d%s;" % repr(value).encode())
    elif isinstance(value, (str, bytes)):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        pieces += (b"s" if isinstance(value, str) else b"b", b"%d:" % len(data), data)
    elif isinstance(value, (list, tuple)):
        pieces.append(b"l%d:" % len(value))
        for item in value:
            _pack(item, pieces)
    else:
        pieces.append(b"m%d:" % len(value))
        for key, item in value.items():
            _pack(key, pieces)
            _pack(item, pieces)


def unpack(data: bytes) -> dict[str, Any]:
    """The message that `pack` wrote. Raises ValueError for anything else; never builds anything but plain data."""
    try:
        message, end = _unpack(data, 0)
    except (IndexError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"no message: {error}") from None
    if end != len(data) or not isinstance(message, dict):
        raise ValueError("no message")
    return message


def _unpack(data: bytes, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends."""
    kind = data[start : start + 1]
    if kind in (b"n", b"t", b"f"):
        return {b"n": None, b"t": True, b"f": False}[kind], start + 1
    if kind in (b"i", b"d"):
        end = data.index(b";", start)
        text = data[start + 1 : end]
        return (int(text, 16) if kind == b"i" else float(text)), end + 1
    colon = data.index(b":", start, start + 20)
    count, position = int(data[start + 1 : colon]), colon + 1
    if count < 0:
        raise ValueError("a negative length")
    if kind in (b"s", b"b"):
        content = data[position : position + count]
        if not len(content) == count:
            raise ValueError("cut off")
        return (content.decode("utf-8", "surrogatepass") if kind == b"s" else content), position + count
    items = []
    for _ in range(count * (2 if kind == b"m" else 1)):
        item, position = _unpack(data, position)
        items.append(item)
    if kind == b"m":
        return dict(zip(items[::2], items[1::2], strict=True)), position
    if kind != b"l":
        raise ValueError("no such kind")
    return items, position


class Frames:
    """Messages over a stream, each with its length before it.

    `receive` raises EOFError at the end of the stream, and ValueError for what is too long or no message.
    """

    def __init__(self, read: Callable[[int], bytes], write: Callable[[bytes], int], max_bytes: int) -> None:
        """Reads with `read(most bytes)` and writes with `write(bytes)`, which may take some of them only."""
        self._read, self._write, self.max_bytes = read, write, max_bytes
        self._pending = bytearray()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message."""
        data = pack(message)
        data = b"%d:" % len(data) + data
        sent = 0
        while sent < len(data):
            sent += self._write(data[sent : sent + (1 << 20)])

    def receive(self) -> dict[str, Any]:
        """Waits for one message."""
        while (colon := self._pending.find(b":", 0, 20)) < 0:
            if len(self._pending) >= 20:
                raise ValueError("no length")
            self._fill()
        size = int(self._pending[:colon])
        if not 0 <= size <= self.max_bytes:
            raise ValueError(f"a message has more than {self.max_bytes} bytes")
        end = colon + 1 + size
        while len(self._pending) < end:
            self._fill()
        message = bytes(self._pending[colon + 1 : end])
        del self._pending[:end]
        return unpack(message)

    def _fill(self) -> None:
        piece = self._read(1 << 16)
        if not piece:
            raise EOFError("the other process is gone")
        self._pending += piece


def descriptor_frames(descriptor: int, max_bytes: int) -> Frames:
    """Messages over a file descriptor."""
    return Frames(lambda size: os.read(descriptor, size), lambda data: os.write(descriptor, data), max_bytes)
