"""Values and messages between the processes of one run: JSON lines that can only ever become plain data.

None, bool, int, float, str and lists are JSON's own; the other plain types are tagged, `{"t": "tuple", "v": [...]}`.
The exact type counts: an instance of a subclass, or of any other class, stays where it is and travels as a reference.
"""

from __future__ import annotations  # and TYPE_CHECKING: every run would pay for importing `typing`

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LARGE_BITS = 10_000
"""Integers beyond are written in base 16: Python bounds the decimal digits that it reads."""

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
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if value.bit_length() <= LARGE_BITS else {"t": "int", "v": hex(value)}
    if kind is list:
        return [encode(item, keep) for item in value]
    if kind in (tuple, set, frozenset):
        return {"t": kind.__name__, "v": [encode(item, keep) for item in value]}
    if kind.__name__ in _DICTIONARIES and kind.__module__ in ("builtins", "collections"):
        return {"t": "dict", "v": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    if kind in (bytes, bytearray):
        return {"t": kind.__name__, "v": value.hex()}
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
    if tag == "int":
        return int(content, 16)
    if tag in ("bytes", "bytearray"):
        return (bytes if tag == "bytes" else bytearray).fromhex(content)
    if tag == "complex":
        return complex(*content)
    if tag == "Fraction":
        from fractions import Fraction

        return Fraction(*(decode(part, find) for part in content))
    if tag == "Decimal":
        from decimal import Decimal

        return Decimal(content)
    return find(tag, content)


class Lines:
    """JSON messages, one a line, over file descriptors. `receive` raises EOFError, and ValueError for what is none."""

    def __init__(self, read_descriptor: int, write_descriptor: int, max_bytes: int) -> None:
        self._read, self._write, self._max_bytes = read_descriptor, write_descriptor, max_bytes
        self._pending = b""

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message."""
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[os.write(self._write, data) :]

    def receive(self) -> dict[str, Any]:
        """Waits for one message."""
        pieces = [self._pending]
        size = len(self._pending)
        while b"\n" not in pieces[-1]:
            piece = os.read(self._read, 1 << 16)
            size += len(piece)
            if not piece:
                raise EOFError("the other process is gone")
            if size > self._max_bytes:
                raise ValueError(f"a message has more than {self._max_bytes} bytes")
            pieces.append(piece)
        line, _, self._pending = b"".join(pieces).partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("a message is no object")
        return message
