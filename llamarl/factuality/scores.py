"""Scored claims as detectors write them, one file or many, one method or many.

    {"id": "p7/2", "prompt": "p7", "label": true, "score": 0.81, "split": "test"}

A method is a column of scores, or a `method` in the rows. Every row is used or refused with its file and line: a
detector whose failures went missing would look better than it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llamarl.core.errors import DataError
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import RowError, check_text, excerpt
from llamarl.functional.detection import Array, check_classes

SPLITS = ("validation", "test")
LABELS = {"true": True, "false": False}
"""Spellings of a label in tables that hold nothing but text."""


@dataclass(frozen=True, slots=True)
class ScoredClaims:
    """The claims of one split with a method's scores."""

    ids: tuple[str, ...]
    labels: Array
    """[N] bool: True on factual claims."""
    scores: Array
    """[N], in [0, 1]: the probability that the claim is factual."""
    prompts: tuple[str, ...]
    """The prompt of each claim; its own id where the rows name none."""

    def pick(self, ids: Sequence[str]) -> "ScoredClaims":
        """The claims of these ids, in their order."""
        places = {each: place for place, each in enumerate(self.ids)}
        chosen = [places[each] for each in ids]
        return ScoredClaims(
            tuple(ids), self.labels[chosen], self.scores[chosen], tuple(self.prompts[place] for place in chosen)
        )


@dataclass(frozen=True, slots=True)
class Method:
    """A detector's scores."""

    name: str
    source: str
    """The files that they come from."""
    validation: ScoredClaims
    test: ScoredClaims
    has_prompts: bool
    """False where no row names its prompt, so that each claim stands for itself."""


@dataclass(slots=True)
class _Rows:
    """All that has been read of one method so far."""

    claims: dict[str, dict[str, tuple[bool, float, str | None]]] = field(
        default_factory=lambda: {split: {} for split in SPLITS}
    )
    lines: dict[str, int] = field(default_factory=dict)


def read_scores(files: Sequence[str], columns: Sequence[str] = ("score",)) -> list[Method]:
    """The methods of some score files, in their order.

    Args:
        files: JSONL, CSV, Parquet, or globs.
        columns: that hold scores.

    Returns:
        A method for each file, `method` and column. It is named by `method` and by the column where there are several
        columns, else by its file.

    Raises:
        DataError: a row that is no scored claim, an id given twice, a split without claims or without one of the
            classes, two methods of one name; names file, line and field.
    """
    methods: list[Method] = []
    for source in dict.fromkeys(files):
        for (method, column), rows in _read_file(source, columns).items():
            parts = [method, column if len(columns) > 1 else ""]
            name = "/".join(part for part in parts if part) or _stem(source, files)
            if len(files) > 1 and name != _stem(source, files) and any(each.name == name for each in methods):
                name = f"{_stem(source, files)}/{name}"
            if any(each.name == name for each in methods):
                raise DataError(f"{source}: method {name!r} is in another file too; rename one of them")
            methods.append(_build_method(name, source, rows))
    return methods


def _stem(source: str, files: Sequence[str]) -> str:
    """The file's name without its ending, with as many folders before it as tell it from the other files."""
    paths = {each: Path(each).with_suffix("").parts for each in files}
    for length in range(1, len(paths[source])):
        tail = paths[source][-length:]
        if all(other[-length:] != tail for each, other in paths.items() if each != source):
            return "/".join(tail)
    return "/".join(paths[source])


def _read_file(source: str, columns: Sequence[str]) -> dict[tuple[str, str], _Rows]:
    found: dict[tuple[str, str], _Rows] = {}
    for name, line, row in raw_rows(source):
        try:
            for key, values in _read_row(row, columns):
                _add(found.setdefault(key, _Rows()), values, line)
        except RowError as error:
            raise DataError(str(error.at(name, line))) from None
    if not found:
        raise DataError(f"{source}: no rows; give lines of {{id, label, score, split}}")
    return found


def _add(rows: _Rows, values: tuple[str, str, bool, float, str | None], line: int) -> None:
    identifier, split, label, score, prompt = values
    if identifier in rows.lines:
        problem = f"{identifier!r} is also the id of line {rows.lines[identifier]}"
        raise RowError("duplicate_id", "id", problem, "give each claim one score, or tell methods apart by 'method'")
    rows.lines[identifier] = line
    rows.claims[split][identifier] = (label, score, prompt)


def _read_row(
    row: dict[str, Any] | RowError, columns: Sequence[str]
) -> Iterator[tuple[tuple[str, str], tuple[str, str, bool, float, str | None]]]:
    """Yields (method, column) and (id, split, label, score, prompt) for each column of scores."""
    if isinstance(row, RowError):
        raise row
    identifier, split = read_text(row, "id"), read_text(row, "split")
    if split not in SPLITS:
        remedy = f"use {' or '.join(SPLITS)}, and leave rows of other splits out"
        raise RowError("unknown_split", "split", f"{split!r} is no split", remedy)
    prompt = None if row.get("prompt") is None else read_text(row, "prompt")
    method = "" if row.get("method") is None else read_text(row, "method")
    label = row.get("label")
    label = LABELS.get(label.strip().lower()) if isinstance(label, str) else label
    if not isinstance(label, bool):
        problem = f"{excerpt(row.get('label'))} is neither true nor false"
        raise RowError("bad_label", "label", problem, "write true for a factual claim, false for a hallucinated one")
    for column in columns:
        yield (method, column), (identifier, split, label, _read_score(row, column), prompt)


def read_text(row: Mapping[str, Any], name: str) -> str:
    """A field that is whole text or a whole number. Raises `RowError`."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or str(value).strip() == "":
        problem = "missing" if value is None else f"{excerpt(value)} is neither text nor a whole number"
        raise RowError("bad_" + name, name, problem, f"give every row its {name}")
    check_text(value, name)
    return str(value)


def _read_score(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        there = f" (columns: {', '.join(row)})" if column not in row else ""
        problem = f"missing{there}" if value is None else f"{excerpt(value)} is no number"
        raise RowError("bad_score", column, problem, "give the detector's probability that the claim is factual")
    if not 0.0 <= number <= 1.0:  # NaN is not either
        remedy = "scores are probabilities; map others into [0, 1] first, in the same order"
        raise RowError("score_out_of_range", column, f"{excerpt(number)} is not in [0, 1]", remedy)
    return float(number)


def _build_method(name: str, source: str, rows: _Rows) -> Method:
    splits = {}
    for split, claims in rows.claims.items():
        if not claims:
            raise DataError(
                f"{source}: method {name!r} has no rows with split {split!r}; thresholds are chosen on validation "
                "claims and judged on test claims, so both are needed"
            )
        labels, scores, prompts = (list(column) for column in zip(*claims.values(), strict=True))
        names = tuple(key if prompt is None else prompt for key, prompt in zip(claims, prompts, strict=True))
        splits[split] = ScoredClaims(tuple(claims), np.array(labels, dtype=bool), np.array(scores, dtype=float), names)
        try:
            check_classes(splits[split].labels)
        except ValueError:
            label = "true" if labels[0] else "false"
            raise DataError(
                f"{source}: method {name!r}: all {len(labels)} rows with split {split!r} have the label {label}; "
                "balanced accuracy needs claims of both labels"
            ) from None
    has_prompts = any(prompt is not None for claims in rows.claims.values() for _, _, prompt in claims.values())
    return Method(name, source, splits["validation"], splits["test"], has_prompts)
