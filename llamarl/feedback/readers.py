"""Log files in chunks, whatever their size: JSON lines, CSV and Parquet as Arrow tables of raw values and their lines.

A chunk is the unit of work and of resuming: the same file always falls into the same chunks. Memory holds a chunk, not
a file. JSON lines are cut at line breaks without looking at what they hold, so that reading costs next to nothing.
"""

import csv
import gzip
import io
import math
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from llamarl.core.errors import ConfigError, DataError, MissingDependencyError

if TYPE_CHECKING:
    import pyarrow

Format = Literal["jsonl", "csv", "parquet"]
SUFFIXES: dict[str, Format] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
LINE, BROKEN, TEXT = "__line", "__broken", "__text"
"""Columns of a chunk beside those of a file: line from 1; why a row cannot be read, or null; the JSON of a row."""
OWN_COLUMNS = (LINE, BROKEN, TEXT)
CHUNK_BYTES = 1 << 25
CHUNK_ROWS = 100_000
MEGABYTE = 1_000_000
MAX_ROW_BYTES = 1 << 23
"""A longer line is taken for a defect: a missing line break."""
_OTHER_FORMATS = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip"}
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


class OnProgress(Protocol):
    """A function that is told how far the reading of files is."""

    def __call__(self, done: int, total: int, *, note: str = "") -> None:
        """Takes the megabytes that are read, and all, and what else is done meanwhile."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one file."""

    index: int
    """Place in the file, from 0."""
    table: Any
    """A `pyarrow.Table` with `LINE`, `BROKEN`, and either `TEXT` or the columns of the file."""
    is_json: bool
    share: float
    """The share of the file that is read with this chunk and those before it."""

    def may_have(self, column: str) -> bool:
        """False if surely no row has the column; JSON is searched for its name, not parsed."""
        if not self.is_json:
            return column in self.table.column_names
        if not (column.isascii() and column.isidentifier()):  # JSON may spell it otherwise
            return True
        data = self.table.column(TEXT).chunk(0).buffers()[2]
        # `in` would need a copy of all bytes
        return data is not None and re.search(f'"{column}"'.encode(), data) is not None


def find_format(path: Path) -> Format:
    """The format of a log by its name; `.gz` behind it is fine for text. Raises `ConfigError` for other names."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: logs end in {', '.join(SUFFIXES)}, or in .gz after it; rename or convert the file")
    return SUFFIXES[suffix]


def read_chunks(path: Path) -> Iterator[Chunk]:
    """The rows of a log, chunk by chunk.

    Raises:
        DataError: the file, or the rest of it, cannot be read.
    """
    readers = {"jsonl": _read_json_lines, "csv": _read_csv, "parquet": _read_parquet}
    try:
        yield from readers[find_format(path)](path)
    except (OSError, EOFError) as error:  # a broken gzip among them; pyarrow's errors are OSErrors or ValueErrors
        raise DataError(f"{path}: cannot be read ({error})") from None


def import_pyarrow() -> Any:
    """The module, or `MissingDependencyError`."""
    try:
        import pyarrow
    except ImportError:
        raise MissingDependencyError.for_extra("pyarrow", "feedback") from None
    return pyarrow


def follow_progress(files: Sequence[Path], on_progress: OnProgress | None) -> Callable[[int, float], None]:
    """Makes a function of a file's number and the share of it that is read, which tells the megabytes of all files."""
    sizes = [path.stat().st_size for path in files]
    total = math.ceil(sum(sizes) / MEGABYTE)
    is_begun = False

    def follow(number: int, share: float) -> None:
        nonlocal is_begun
        if on_progress is None:
            return
        if not is_begun:
            on_progress(0, total)  # else what the first chunk holds would count as there before
            is_begun = True
        on_progress(math.ceil((sum(sizes[:number]) + share * sizes[number]) / MEGABYTE), total)

    return follow


def _number_lines(first: int, count: int) -> "pyarrow.Array[Any]":
    """`count` numbers from `first` on. `pyarrow.array` would import pandas, which takes longer than 30,000 rows."""
    pyarrow = import_pyarrow()
    numbers = np.arange(first, first + count, dtype=np.int64)
    return pyarrow.Array.from_buffers(pyarrow.int64(), count, [None, pyarrow.py_buffer(numbers)])


@contextmanager
def _open(path: Path) -> Iterator[tuple[io.BufferedReader, Callable[[], float]]]:
    """The bytes of a file, unpacked, and the share of it that is read."""
    with open(path, "rb") as packed:
        size = path.stat().st_size

        def share() -> float:
            return packed.tell() / size if size else 1.0

        yield (gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed), share  # type: ignore[misc]


# ---- JSON lines -----------------------------------------------------------------------------------------------------


class _Block(np.ndarray):
    """Bytes whose parts are `_Block`s, too: numpy keeps the whole alive for them, not the plain array below it."""


class _Blocks:
    """Memory for parts of a file: to have it from the system anew for each takes longer than to read them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: deque[np.ndarray] = deque()

    def take(self) -> np.ndarray:
        """Some bytes, [size], that are lent again when nobody uses them any more, Arrow and DuckDB among others."""
        memory = self._free.pop() if self._free else np.empty(self._size, dtype=np.uint8)
        block = memory.view(_Block)
        weakref.finalize(block, self._free.append, memory).atexit = False
        return block


def _read_json_lines(path: Path) -> Iterator[Chunk]:
    with _open(path) as (file, share):
        index, first_line = 0, 1
        head, is_skipping = file.read(4), False
        if head.startswith(_WIDE_MARKS):
            raise DataError(f"{path}: UTF-16 or UTF-32 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
        if name := next((name for mark, name in _OTHER_FORMATS.items() if head.startswith(mark)), None):
            raise DataError(f"{path}: its first bytes are those of {name}; give it the name of such a file")
        rest = np.frombuffer(head.removeprefix(b"\xef\xbb\xbf"), dtype=np.uint8)
        blocks = _Blocks(2 * CHUNK_BYTES)  # what is left of a block is shorter than CHUNK_BYTES
        while True:
            block = blocks.take()
            block[: len(rest)] = rest
            count = file.readinto(block[len(rest) : len(rest) + CHUNK_BYTES].data)
            data = block[: len(rest) + count]
            breaks = _find_breaks(data)
            end = len(data) if not count else int(breaks[-1]) + 1 if len(breaks) else 0
            if count and end == 0:  # still no line break: a line this long is dropped, not held
                is_skipping = is_skipping or len(data) > MAX_ROW_BYTES
                rest = data[:0] if is_skipping else data
                continue
            rest = data[end:].copy()
            if end or is_skipping:
                table, lines = _cut_lines(data[:end], breaks, first_line, is_skipping)
                del block, data  # else they are not free while others work on the chunk
                yield Chunk(index, table, is_json=True, share=share())
                index, first_line, is_skipping = index + 1, first_line + lines, False
            if not count:
                return


def _find_breaks(data: np.ndarray) -> np.ndarray:
    """The places of line breaks, looked for piece by piece, so that what is compared stays in the processor's cache."""
    size = 1 << 18
    pieces = [np.flatnonzero(data[first : first + size] == ord("\n")) + first for first in range(0, len(data), size)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *pieces])


def _cut_lines(
    data: np.ndarray, breaks: np.ndarray, first_line: int, is_first_too_long: bool
) -> tuple["pyarrow.Table", int]:
    """The lines of some bytes as a table, and their number; the text column shares the bytes."""
    pyarrow = import_pyarrow()
    ends = breaks + 1
    if not len(ends) or ends[-1] < len(data):
        ends = np.append(ends, len(data))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    broken: dict[int, str] = {}
    too_long = np.flatnonzero(np.diff(offsets) > MAX_ROW_BYTES).tolist()
    broken |= dict.fromkeys([0, *too_long] if is_first_too_long else too_long, "row_too_long")
    count = len(ends)
    text: Any = pyarrow.StringArray.from_buffers(count, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data))
    try:
        text.validate(full=True)
    except pyarrow.ArrowInvalid:
        for place, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            if not _is_utf8(data[begin:end].data):
                broken.setdefault(place, "invalid_utf8")
    if broken:  # what cannot be read becomes empty text, and is known by its reason
        reasons: Any = pyarrow.array([broken.get(place) for place in range(count)], pyarrow.string())
        pieces = [
            b"{}" if place in broken else data[offsets[place] : offsets[place + 1]].tobytes() for place in range(count)
        ]
        text = pyarrow.array(pieces, pyarrow.binary()).cast(pyarrow.string())
    else:
        reasons = pyarrow.nulls(count, pyarrow.string())
    return pyarrow.table({LINE: _number_lines(first_line, count), BROKEN: reasons, TEXT: text}), count


def _is_utf8(data: memoryview) -> bool:
    try:
        str(data, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


# ---- CSV ------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Iterator[Chunk]:
    """Read by the standard library, which knows lines and goes on after a bad row."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with _open(path) as (binary, share):
        file = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
        delimiter = "\t" if ".tsv" in path.suffixes else ","
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        try:
            columns = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}, line 1: no CSV header: {error}") from None
        if columns is None:
            return  # an empty file
        if not columns or len(set(columns)) < len(columns) or "" in columns:
            raise DataError(f"{path}, line 1: the header names a column twice or leaves one without a name: {columns}")
        if not _is_text("".join(columns)):
            raise DataError(f"{path}, line 1: the header is not UTF-8; save the file as UTF-8 (iconv -t UTF-8)")
        rows = _csv_rows(reader, len(columns))
        for index in range(1 << 32):
            batch = list(islice(rows, CHUNK_ROWS))
            if not batch and index:
                return
            yield Chunk(index, _csv_table(columns, batch), is_json=False, share=share())


def _csv_rows(reader: Any, width: int) -> Iterator[tuple[int, str | None, Sequence[str]]]:
    """Line on which a row ends, what is wrong with it, and its values."""
    empty = [""] * width
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield reader.line_num, "invalid_csv", empty
            continue
        if len(values) == width:
            yield reader.line_num, None, values
        elif values:
            yield reader.line_num, "column_count", empty


def _csv_table(columns: Sequence[str], batch: list[tuple[int, str | None, Sequence[str]]]) -> "pyarrow.Table":
    pyarrow = import_pyarrow()
    lines, reasons, rows = zip(*batch, strict=True) if batch else ((), (), ())
    values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    try:
        arrays = [pyarrow.array(column, pyarrow.string()) for column in values]
    except UnicodeEncodeError:  # surrogates stand for bytes that are not UTF-8
        fine = ["".join(row).isprintable() or _is_text("".join(row)) for row in rows]
        reasons = tuple(
            reason or (None if is_fine else "invalid_utf8") for reason, is_fine in zip(reasons, fine, strict=True)
        )
        arrays = [
            pyarrow.array([value if is_fine else "" for value, is_fine in zip(column, fine, strict=True)])
            for column in values
        ]
    named = {name: array for name, array in zip(columns, arrays, strict=True) if name not in OWN_COLUMNS}
    return pyarrow.table(
        {LINE: pyarrow.array(lines, pyarrow.int64()), BROKEN: pyarrow.array(reasons, pyarrow.string()), **named}
    )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- Parquet --------------------------------------------------------------------------------------------------------


def _refuse_twins(path: Path, names: Sequence[str]) -> None:
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: two columns are named {twins[0]!r}; give each a name of its own")


def _plain_table(table: "pyarrow.Table") -> "pyarrow.Table":
    """The table without columns named like ours, and with types that DuckDB knows."""
    pyarrow = import_pyarrow()
    table = table.drop_columns([name for name in table.column_names if name in OWN_COLUMNS])
    for place, field in enumerate(table.schema):
        if pyarrow.types.is_float16(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(pyarrow.float32()))
    return table


def _read_parquet(path: Path) -> Iterator[Chunk]:
    pyarrow = import_pyarrow()
    from pyarrow import parquet

    line = 1
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:  # else Arrow holds what was read of the file
            _refuse_twins(path, file.schema_arrow.names)
            # one thread: those who check the chunks need the others
            batches = file.iter_batches(batch_size=CHUNK_ROWS, use_threads=False)
            for index, batch in enumerate(batches):
                table = _plain_table(pyarrow.Table.from_batches([batch]))
                table = table.append_column(LINE, _number_lines(line, len(batch)))
                table = table.append_column(BROKEN, pyarrow.nulls(len(batch), pyarrow.string()))
                line += len(batch)
                yield Chunk(index, table, is_json=False, share=(line - 1) / file.metadata.num_rows)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: no readable Parquet ({str(error).splitlines()[0]})") from None
