"""JSON lines: a reader that never loads more than one row, and an atomic writer."""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llamarl.core.errors import DataError
from llamarl.core.records import Prompt
from llamarl.data.rows import RowError, excerpt, prompt_to_row

MAX_ROW_BYTES = 1_000_000
"""A longer line is taken for a defect (a missing line break) unless the caller allows more."""

_UTF8_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


def read_jsonl(path: Path, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yields (line number from 1, object or what is wrong with the line). Blank lines count but yield nothing.

    A UTF-8 byte order mark at the start of the file is taken off; anywhere else it is an error.

    Raises:
        DataError: the file is UTF-16 or UTF-32.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        if head.startswith(_WIDE_MARKS):
            raise DataError(f"{path}: UTF-16 or UTF-32 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
        file.seek(len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0)
        number = 0
        while line := file.readline(max_row_bytes + 1):
            number += 1
            if len(line) > max_row_bytes:
                yield number, _too_long(len(line) + _skip_line(file, line), max_row_bytes)
            elif line.strip():
                yield number, parse_line(line)


def parse_line(line: bytes) -> dict[str, Any] | RowError:
    """One line as an object, or what is wrong with it; NaN and broken text are left to `row_to_prompt`."""
    try:
        text = line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} of the line is not UTF-8: {excerpt(line[error.start : error.start + 8])}"
        return RowError("invalid_utf8", "", problem, "save the file as UTF-8")
    if text.startswith("\ufeff"):
        return RowError("byte_order_mark", "", "a byte order mark inside the file", "remove it (files were joined?)")
    try:
        row = json.loads(text, object_pairs_hook=_unique_keys)
    except RowError as error:
        return error
    except json.JSONDecodeError as error:
        return RowError(
            "invalid_json", "", f"no JSON: {error.msg} at column {error.colno}: {excerpt(text)}", _hint(text)
        )
    except RecursionError:
        return RowError("nested_too_deep", "", "lists or objects nested too deeply", "flatten the row")
    except ValueError as error:  # Python's limit on the digits of an integer
        return RowError("invalid_json", "", f"no usable JSON: {error}", "write the number as text")
    if not isinstance(row, dict):
        problem = f"a {type(row).__name__}: {excerpt(row)}"
        return RowError("not_an_object", "", problem, _hint(text))
    return row


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any] | Prompt]) -> int:
    """Writes rows as JSON lines and returns their number. The file appears complete or not at all.

    Raises:
        DataError: a row is not plain JSON (NaN and infinities included); an existing file is then left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        count = 0
        with open(temporary, "xb") as file:
            for row in rows:
                count += 1
                file.write(_encode_row(row, path, count))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)
    return count


def _encode_row(row: Mapping[str, Any] | Prompt, path: Path, number: int) -> bytes:
    values = prompt_to_row(row) if isinstance(row, Prompt) else dict(row)
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: row {number} cannot be written as JSON: {error}; row: {excerpt(values)}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    keys = [key for key, _ in pairs]
    repeated = next(key for key in keys if keys.count(key) > 1)
    raise RowError("duplicate_key", repeated, f"key '{repeated}' stands twice in one object", "keep one of them")


def _hint(text: str) -> str:
    if text.lstrip().startswith("["):
        return "a JSON array is not JSON lines: write one object per line (jq -c '.[]')"
    return "each line is one complete JSON object"


def _too_long(size: int, limit: int) -> RowError:
    problem = f"the line has {size:,} bytes, more than {limit:,}"
    return RowError("row_too_long", "", problem, "is a line break missing? if not, shorten it or write Parquet")


def _skip_line(file: BinaryIO, read: bytes) -> int:
    """Reads to the end of the current line, in pieces; returns the bytes skipped."""
    skipped = 0
    while read and not read.endswith(b"\n"):
        read = file.readline(1 << 20)
        skipped += len(read)
    return skipped


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
