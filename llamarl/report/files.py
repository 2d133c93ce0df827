"""Files that survive a crash: append-only JSON lines, and documents replaced in one step."""

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llamarl.core.errors import DataError

Record = dict[str, Any]
"""One line of a JSONL file."""


class JsonlFile:
    """An append-only file of one JSON object per line, with one writing process.

    A line is handed to the operating system whole, so killing the process never loses a line that `append` returned
    for. A line that a crash tore is cut off the next time the file is opened.

    Args:
        path: created with its folders where absent.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()  # the loop and helper threads write; `keep_only` swaps the file below them
        _mend_tail(self.path)
        self._fd: int | None = _open_append(self.path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one line. Raises `OSError` when the disk refuses; the file then holds no part of the line."""
        line = encode(record) + b"\n"
        with self._lock:
            if self._fd is None:
                raise ValueError(f"{self.path} is closed; open a new JsonlFile to append")
            _write_whole(self._fd, line)

    def keep_only(self, should_keep: Callable[[Record], bool]) -> int:
        """Drops the other lines, in one atomic replacement; returns how many went."""
        with self._lock:
            if self._fd is None:
                raise ValueError(f"{self.path} is closed; open a new JsonlFile to rewrite it")
            records = read_jsonl(self.path)
            kept = [record for record in records if should_keep(record)]
            if len(kept) == len(records):
                return 0
            _replace(self.path, b"".join(encode(record) + b"\n" for record in kept))
            os.close(self._fd)
            self._fd = _open_append(self.path)
            return len(records) - len(kept)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


def encode(value: Any) -> bytes:
    """UTF-8 JSON on one line. Non-finite floats become null; objects JSON does not know become their `str`."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)
    # A lone surrogate (half a character cut by the tokenizer) has no UTF-8 form; as a \ud800 escape it is valid JSON.
    return text.encode("utf-8", errors="backslashreplace")


def read_jsonl(
    path: str | Path,
    required: Mapping[str, type] = MappingProxyType({}),
    is_wanted: Callable[[bytes], bool] = lambda line: True,
) -> list[Record]:
    """All records of a JSONL file. A torn last line, as a crash leaves it, is left out.

    Args:
        path: of the file.
        required: keys that every record must have, each with its type (`float` takes whole numbers too).
        is_wanted: tells from a line whether it is read at all.

    Raises:
        DataError: no such file, a line before the last is not a JSON object or lacks a key; names file and line.
    """
    lines = _read_bytes(Path(path)).split(b"\n")
    if _parse_or_none(lines[-1]) is None:
        lines.pop()
    return [
        _parse(line, path, number, required)
        for number, line in enumerate(lines, start=1)
        if line.strip() and is_wanted(line)
    ]


def has_torn_tail(path: str | Path) -> bool:
    """True where the last line is cut off."""
    tail = _read_tail(Path(path))
    return bool(tail) and _parse_or_none(tail) is None


def write_json(path: str | Path, value: Any) -> None:
    """Writes an indented JSON document so that a crash leaves the old document or the new one, never a mix."""
    write_text(path, json.dumps(json.loads(encode(value)), ensure_ascii=False, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text so that a crash leaves the old file or the new one, never a mix."""
    _replace(Path(path), text.encode("utf-8", errors="backslashreplace"))


def read_json(path: str | Path) -> Record:
    """Reads a JSON object. Raises `DataError` naming the file and the line."""
    path = Path(path)
    try:
        value = json.loads(_read_bytes(path).decode())
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}); restore or delete the file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); restore or delete the file") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists within lists
        raise DataError(f"{path}: not usable JSON ({error}); restore or delete the file") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}; restore or delete the file")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; is {path.parent} a run directory?") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def _read_tail(path: Path) -> bytes:
    """Reads what stands behind the last line's end; the rest of a large file is not read."""
    with path.open("rb") as file:
        size, length = file.seek(0, os.SEEK_END), 1 << 16
        while True:
            file.seek(max(0, size - length))
            data = file.read()
            if b"\n" in data or length >= size:
                return data.rpartition(b"\n")[2]
            length *= 4


def _parse(line: bytes, path: str | Path, number: int, required: Mapping[str, type]) -> Record:
    record = _parse_or_none(line)
    if record is None:
        shown = line[:60].decode(errors="replace")
        raise DataError(f"{path}, line {number}: not a JSON object ({shown!r}); delete the line or restore the file")
    for key, kind in required.items():
        value = record.get(key)
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise DataError(
                f"{path}, line {number}: {key!r} must be of type {kind.__name__}, got {value!r}; "
                "delete the line or restore the file"
            )
    return record


def _parse_or_none(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:  # bad JSON and bad UTF-8 alike
        return None
    return value if isinstance(value, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _mend_tail(path: Path) -> None:
    """Cuts a torn last line; completes a whole one that lacks its newline."""
    if not path.exists():
        return
    content = _read_bytes(path)
    tail = content.rpartition(b"\n")[2]
    if not tail:
        return
    if _parse_or_none(tail) is None:
        os.truncate(path, len(content) - len(tail))
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def _open_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _write_whole(fd: int, data: bytes) -> None:
    size = os.fstat(fd).st_size
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.ftruncate(fd, size)
        raise


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
