"""Values and messages between the processes of one run: bytes that can only ever become plain data.

None, bool, int, float, str, bytes and lists stand for themselves; other plain types are tagged,
`{"t": "tuple", "v": [...]}`. The exact type counts: an instance of a subclass, or of any other class, stays where it is
and travels as a reference.

What a solution sends is whatever it likes, so reading is bounded in all that a few bytes could make large: the depth,
the digits of numbers, their exponents, and keys that share a hash. Time and memory grow with the bytes of the message
alone, and those the reader limits. `ValueError` is all that reading raises.
"""

from __future__ import annotations  # and TYPE_CHECKING: every run would pay for importing `typing`

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

MAX_DEPTH = 256
"""Most lists and tables within each other on the wire; a dictionary takes three, other collections two."""
MAX_INTEGER_CHARACTERS = 1 << 16
"""Longest integer, in base 16: 79,000 decimal digits."""
MAX_FRACTION_BITS = 1 << 16
"""Most bits of each part of a fraction; larger ones take long to shorten."""
MAX_DECIMAL_CHARACTERS = 10_000
MAX_EXPONENT = 10_000
"""Largest exponent of a Decimal, either way: 1e999999999 would have a billion digits for whoever asks for them."""
MAX_SAME_HASH = 16
"""Keys of one dictionary or set; each further one would be compared with all of them."""
MAX_ERROR_CHARACTERS = 300
"""Longest text on a test that failed."""
_MAX_FLOAT_CHARACTERS = 32
_DIGITS = b"-0123456789abcdef"
_PLAIN_MODULES = ("builtins", "collections", "fractions", "decimal", "datetime")
_VIEWS = {"dict_keys": "keys", "dict_values": "values", "dict_items": "items"}


class Kept:
    """The objects of this process that the other one holds references to."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def add(self, value: Any) -> dict[str, Any]:
        """Keeps an object and returns its name on the wire, which tells whether it is an iterator."""
        self.objects.append(value)
        return {"t": "iterator" if hasattr(type(value), "__next__") else "theirs", "v": len(self.objects) - 1}


def encode(value: Any, keep: Callable[[Any], Any], room: int = MAX_DEPTH - 8) -> Any:
    """Writes `value` for the wire; `keep` says what stands for anything that is not plain data.

    Raises ValueError where values are nested deeper than `room`: a message holds its values some levels below its own.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str, bytes):
        return value
    if room < 3:
        raise ValueError(f"lists and the like lie more than {MAX_DEPTH} deep in each other")
    if kind is list:
        return [encode(item, keep, room - 1) for item in value]
    name = kind.__name__ if kind.__module__ in _PLAIN_MODULES else ""
    if name in ("tuple", "set", "frozenset", "deque") or name in _VIEWS:
        return {"t": _VIEWS.get(name, name), "v": [encode(item, keep, room - 2) for item in value]}
    if name in ("dict", "OrderedDict", "Counter", "defaultdict"):
        pairs = [[encode(key, keep, room - 3), encode(item, keep, room - 3)] for key, item in value.items()]
        return {"t": "dict" if name == "defaultdict" else name, "v": pairs}
    content = _content_of(name, value)
    return keep(value) if content is None else {"t": name, "v": content}


def _content_of(name: str, value: Any) -> Any:
    """Returns the content of a value that holds no others, of the plain type called `name`; None for other types."""
    if name == "bytearray":
        return bytes(value)
    if name == "complex":
        return [value.real, value.imag]
    if name == "range":
        return [value.start, value.stop, value.step]
    if name == "Fraction":
        return [value.numerator, value.denominator]
    if name == "Decimal":
        return str(value)
    if name == "date":
        return [value.year, value.month, value.day]
    if name == "timedelta":
        return [value.days, value.seconds, value.microseconds]
    if name in ("time", "datetime"):
        zone = value.tzinfo
        if zone is not None and type(zone).__name__ != "timezone":  # others need the system's files
            return None
        offset = None if zone is None else _content_of("timedelta", zone.utcoffset(None))
        clock = [value.hour, value.minute, value.second, value.microsecond, offset, value.fold]
        return clock if name == "time" else [value.year, value.month, value.day, *clock]
    return None


def decode(value: Any, find: Callable[[str, Any], Any]) -> Any:
    """Reads the value that `encode` wrote; `find` gets the tag and content of what is no plain data.

    Raises ValueError for what `encode` would not write.
    """
    if type(value) is list:
        return [decode(item, find) for item in value]
    if type(value) is not dict:
        return value
    if value.keys() != {"t", "v"} or type(value["t"]) is not str:
        raise ValueError("a value that is neither plain nor tagged")
    tag, content = value["t"], value["v"]
    try:
        if tag in _COLLECTIONS:
            return _COLLECTIONS[tag](decode(_of(list, content), find))
        if tag in _TABLES:
            return _TABLES[tag]([(decode(key, find), decode(item, find)) for key, item in _of(list, content)])
        if tag in _SCALARS:
            return _SCALARS[tag](content)
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"no {tag}: {error}") from None
    return find(tag, content)


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} where only {kind.__name__} may stand")
    return value


def _integers(values: Any, count: int) -> list[int]:
    if type(values) is not list or len(values) != count:
        raise ValueError(f"not the {count} parts that there must be")
    return [_of(int, value) for value in values]


def _set(items: Iterable[Any]) -> set[Any]:
    """The set of these items: hashable, no two equal, and few of one hash."""
    found: set[Any] = set()
    hashes: dict[int, int] = {}
    for item in items:
        number = hash(item)
        hashes[number] = hashes.get(number, 0) + 1
        if hashes[number] > MAX_SAME_HASH:
            raise ValueError(f"more than {MAX_SAME_HASH} keys share a hash")
        if item in found:
            raise ValueError("a key is there twice")
        found.add(item)
    return found


def _dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    _set(key for key, _ in pairs)
    return dict(pairs)


def _deque(items: list[Any]) -> Any:
    from collections import deque

    return deque(items)


def _counter(pairs: list[tuple[Any, Any]]) -> Any:
    from collections import Counter

    return Counter(_dict(pairs))


def _ordered_dict(pairs: list[tuple[Any, Any]]) -> Any:
    from collections import OrderedDict

    return OrderedDict(_dict(pairs))


def _complex(content: Any) -> complex:
    real, imaginary = _of(list, content)
    return complex(_of(float, real), _of(float, imaginary))


def _fraction(content: Any) -> Any:
    from fractions import Fraction

    above, below = _integers(content, 2)
    if below <= 0 or max(above.bit_length(), below.bit_length()) > MAX_FRACTION_BITS:
        raise ValueError(f"a fraction's part is not positive or has more than {MAX_FRACTION_BITS} bits")
    return Fraction(above, below)


def _decimal(content: Any) -> Any:
    from decimal import Decimal

    if len(_of(str, content)) > MAX_DECIMAL_CHARACTERS:
        raise ValueError(f"a Decimal of more than {MAX_DECIMAL_CHARACTERS} characters")
    value = Decimal(content)
    if value.is_finite() and abs(value.adjusted()) > MAX_EXPONENT:
        raise ValueError(f"a Decimal whose exponent is beyond {MAX_EXPONENT}")
    return value


def _date(content: Any) -> Any:
    from datetime import date

    return date(*_integers(content, 3))


def _timedelta(content: Any) -> Any:
    from datetime import timedelta

    return timedelta(*_integers(content, 3))


def _clock(content: Any) -> dict[str, Any]:
    """The arguments that `time` and `datetime` share."""
    from datetime import timezone

    hour, minute, second, microsecond, offset, fold = content
    zone = None if offset is None else timezone(_timedelta(offset))
    names = ("hour", "minute", "second", "microsecond", "fold")
    return {**dict(zip(names, _integers([hour, minute, second, microsecond, fold], 5))), "tzinfo": zone}  # noqa: B905  # of 3.10, and of equal length


def _time(content: Any) -> Any:
    from datetime import time

    return time(**_clock(_of(list, content)))


def _datetime(content: Any) -> Any:
    from datetime import datetime

    year, month, day = _integers(_of(list, content)[:3], 3)
    return datetime(year, month, day, **_clock(content[3:]))


_COLLECTIONS: dict[str, Callable[[list[Any]], Any]] = {
    **{"tuple": tuple, "set": _set, "frozenset": lambda items: frozenset(_set(items)), "deque": _deque},
    "keys": lambda items: _dict([(item, None) for item in items]).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: _dict([(key, item) for key, item in items]).items(),
}
_TABLES: dict[str, Callable[[list[tuple[Any, Any]]], Any]] = {
    **{"dict": _dict, "Counter": _counter, "OrderedDict": _ordered_dict}
}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    **{"bytearray": lambda content: bytearray(_of(bytes, content)), "complex": _complex},
    **{"range": lambda content: range(*_integers(content, 3)), "Fraction": _fraction, "Decimal": _decimal},
    **{"date": _date, "timedelta": _timedelta, "time": _time, "datetime": _datetime},
}


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
    message, end = _unpack(data, 0, MAX_DEPTH)
    if end != len(data) or not isinstance(message, dict):
        raise ValueError("no message")
    return message


def _unpack(data: bytes, start: int, room: int) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends."""
    kind = data[start : start + 1]
    if kind in (b"n", b"t", b"f"):
        return {b"n": None, b"t": True, b"f": False}[kind], start + 1
    if kind in (b"i", b"d"):
        end = data.index(b";", start)
        return (_integer if kind == b"i" else _float)(data[start + 1 : end]), end + 1
    colon = data.index(b":", start, start + 20)
    count, position = int(data[start + 1 : colon]), colon + 1
    if count < 0:
        raise ValueError("a negative length")
    if kind in (b"s", b"b"):
        content = data[position : position + count]
        if not len(content) == count:
            raise ValueError("cut off")
        return (content.decode("utf-8", "surrogatepass") if kind == b"s" else content), position + count
    if kind not in (b"l", b"m"):
        raise ValueError("no such kind")
    if room == 0:
        raise ValueError(f"lists and tables lie more than {MAX_DEPTH} deep in each other")
    items = []
    for _ in range(count * (2 if kind == b"m" else 1)):
        item, position = _unpack(data, position, room - 1)
        items.append(item)
    return (_table(items) if kind == b"m" else items), position


def _integer(text: bytes) -> int:
    if len(text) > MAX_INTEGER_CHARACTERS or text.strip(_DIGITS):
        raise ValueError("an integer that is too long, or none")
    return int(text, 16)


def _float(text: bytes) -> float:
    if len(text) > _MAX_FLOAT_CHARACTERS:
        raise ValueError("too many characters for a float")
    return float(text)


def _table(items: list[Any]) -> dict[str, Any]:
    """Keys and values that alternate; keys are texts, each there once."""
    keys = [_of(str, key) for key in items[::2]]
    table = dict(zip(keys, items[1::2]))  # noqa: B905  # of equal length
    if len(table) != len(keys):
        raise ValueError("a key is there twice")
    return table


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
        if not self._pending[:colon].isdigit():
            raise ValueError("no length")
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
