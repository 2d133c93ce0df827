"""Reads prompt data of any supported kind into checked `Prompt` records.

    data = read_prompts("train.jsonl")                                   # also .parquet, .csv, globs, lists of rows
    data = read_prompts("openai/gsm8k:main", mapping={"prompt": "question"})   # Hub id, extra `hub`
    data = read_prompts("train.jsonl", on_bad_row="skip")
    data[0], len(data), data.skipped, data.skip_counts

A bad row raises `DataError` naming file, line, field, problem and remedy; with `on_bad_row="skip"` it is listed in
`skipped` instead. Nothing is ever guessed or dropped in silence.
"""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, overload

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Prompt
from llamarl.data.hub import DISK_MARKS, read_hub
from llamarl.data.jsonl import MAX_ROW_BYTES, read_jsonl
from llamarl.data.rows import FIELDS, FORMATS, BadRow, RowError, RowFormat, row_to_prompt
from llamarl.data.tables import plain_or_error, read_csv, read_parquet

BadRowPolicy = Literal["error", "skip"]
RawRow = tuple[str, int, dict[str, Any] | RowError]
"""Source, line, and the row or what is wrong with it."""
Place = tuple[str, int]
"""Source and line of a row, for messages."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


class PromptData(Sequence[Prompt]):
    """Prompts with unique ids, in file order, and the rows that were skipped."""

    def __init__(self, prompts: Iterable[Prompt], skipped: Iterable[BadRow] = (), places: Iterable[Place] = ()) -> None:
        self._prompts = tuple(prompts)
        self.skipped = tuple(skipped)
        self.places = tuple(places)
        """The file and line of each prompt, in their order; empty where they were not read."""

    @property
    def skip_counts(self) -> dict[str, int]:
        """Number of skipped rows by reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.skipped).most_common())

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prompt, ...]: ...
    def __getitem__(self, index: int | slice) -> Prompt | tuple[Prompt, ...]:
        return self._prompts[index]

    def __repr__(self) -> str:
        return f"PromptData({len(self)} prompts, {len(self.skipped)} rows skipped)"


def read_prompts(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    format: RowFormat = "auto",
    on_bad_row: BadRowPolicy = "error",
    mapping: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> PromptData:
    """Reads every prompt of a file, a glob of files, a folder of `save_to_disk`, a Hub data set or a list of rows.

    Args:
        source: path or glob (`*.jsonl`, `.json`, `.ndjson`, `.parquet`, `.csv`), folder of `save_to_disk`, Hub id
            `owner/name[:configuration]`, or rows.
        format: the rows' format (`data.rows`); `auto` tells verl rows from the others by `reward_model`.
        on_bad_row: `error` raises at the first bad row, `skip` lists it in the result.
        mapping: our field -> the data's column, such as `{"prompt": "question"}`. A column that already has our
            field's name is then dropped.
        split: of a Hub data set or `save_to_disk` folder; default `train`.
        limit: stop after this many good rows.
        max_row_bytes: longest line of a JSON-lines file.

    Raises:
        DataError: a bad row (with `on_bad_row="error"`), an unreadable or empty source, or no usable row at all.
        ConfigError: a wrong argument.
        MissingDependencyError: the source needs a package that is not installed.
    """
    _check_arguments(format, on_bad_row, mapping, limit)
    prompts: list[Prompt] = []
    skipped: list[BadRow] = []
    seen: dict[str, Place] = {}
    for name, line, row in raw_rows(source, split, max_row_bytes):
        try:
            prompts.append(_parse_prompt(name, line, row, format, mapping, seen))
        except RowError as error:
            skipped.append(error.at(name, line))
            if on_bad_row == "error":
                raise DataError(str(skipped[-1])) from None
        if limit is not None and len(prompts) >= limit:
            break
    if not prompts:
        raise DataError(_nothing_usable(source, skipped))
    return PromptData(prompts, skipped, seen.values())


def raw_rows(
    source: str | Path | Iterable[Mapping[str, Any]], split: str | None = None, max_row_bytes: int = MAX_ROW_BYTES
) -> Iterator[RawRow]:
    """Every row of a source with its place, unchecked. Raises `DataError` for a source that cannot be read."""
    if not isinstance(source, str | Path):
        return (("rows", number, plain_or_error(row)) for number, row in enumerate(source, start=1))
    path = Path(source)
    if path.is_dir():
        if not any((path / mark).exists() for mark in DISK_MARKS):
            raise DataError(f"{path}: a folder; name its files by a glob such as '{path}/*.parquet'")
        return ((str(path), line, row) for line, row in read_hub(str(path), split))
    paths = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(source), recursive=True))]
    if paths:
        return chain.from_iterable(_file_rows(path, max_row_bytes) for path in paths)
    if path.suffix not in SUFFIXES and _HUB_ID.fullmatch(str(source)):
        return ((str(source), line, row) for line, row in read_hub(str(source), split))
    raise DataError(f"{source}: no such file; give a path, a glob, or a Hub id 'owner/name'")


def _file_rows(path: Path, max_row_bytes: int) -> Iterator[RawRow]:
    if path.suffix == ".parquet":
        rows = read_parquet(path)
    elif path.suffix == ".csv":
        rows = read_csv(path)
    elif path.suffix in SUFFIXES:
        rows = read_jsonl(path, max_row_bytes)
    else:
        raise DataError(f"{path}: unknown kind of file '{path.suffix}'; use one of {', '.join(SUFFIXES)}")
    try:
        for line, row in rows:
            yield str(path), line, row
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _parse_prompt(
    name: str,
    line: int,
    row: dict[str, Any] | RowError,
    format: RowFormat,
    mapping: Mapping[str, str] | None,
    seen: dict[str, Place],
) -> Prompt:
    """Reads the prompt of a row. Raises `RowError` where the row is bad or its id is known already."""
    if isinstance(row, RowError):
        raise row
    prompt = row_to_prompt(row, format, mapping)
    if prompt.id in seen:
        earlier = "{}, line {}".format(*seen[prompt.id])
        if row.get((mapping or {}).get("id", "id")) is None:
            raise RowError("duplicate_row", "", f"the same row as {earlier}", "remove it, or give both an id")
        raise RowError("duplicate_id", "id", f"{prompt.id!r} is also the id of {earlier}", "make ids unique")
    seen[prompt.id] = (name, line)
    return prompt


def _check_arguments(format: str, on_bad_row: str, mapping: Mapping[str, str] | None, limit: int | None) -> None:
    if format not in FORMATS:
        raise ConfigError(f"format: {format!r} is no row format.{suggest(format, list(FORMATS))}")
    if on_bad_row not in get_args(BadRowPolicy):
        raise ConfigError(f"on_bad_row: got {on_bad_row!r}; use 'error' or 'skip'")
    for field in mapping or {}:
        if field not in FIELDS:
            raise ConfigError(f"mapping: {field!r} is no field of a prompt.{suggest(field, list(FIELDS))}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: got {limit}; use a positive number, or leave it out for all rows")


def _nothing_usable(source: Any, skipped: Sequence[BadRow]) -> str:
    name = source if isinstance(source, str | Path) else "rows"
    if not skipped:
        return f"{name}: no rows; the source is empty"
    return f"{name}: none of {len(skipped)} rows is usable; the first: {skipped[0]}"
