"""Rows with completions to judge: a prompt row plus `completion`, and for some uses a label.

{"id": "p1", "prompt": "2 + 2 =", "answer": "4", "completion": "4"}
{"id": "p2", "prompt": "3 + 3 =", "answer": "6", "completion": ["6", "seven"], "label": [true, false]}
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.core.records import Prompt
from llamarl.data.prompts import RawRow, raw_rows
from llamarl.data.rows import RowError, excerpt, row_to_prompt


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """One row: a prompt and what was answered."""

    source: str
    line: int
    prompt: Prompt
    completions: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)
    """Columns that the reader was asked to set aside, where the row has them."""

    def error(self, field: str, problem: str, remedy: str) -> DataError:
        """Makes the error that names this row."""
        return DataError(str(RowError("", field, problem, remedy).at(self.source, self.line)))


def read_completions(
    source: str | Path | Iterable[Mapping[str, Any]], *, aside: Collection[str] = (), needs_completion: bool = True
) -> list[CompletionRow]:
    """Reads every row of a file. Ids may repeat; the row's own `judges` are left out, since the caller names them.

    Args:
        source: JSON lines, Parquet, CSV, or a glob of them; or rows.
        aside: columns to set aside in `extras`, which judges then don't see.
        needs_completion: whether a row without `completion` is an error.

    Raises:
        DataError: a bad row, naming file, line and field; or no row at all.
    """
    rows = [_row(raw, aside, needs_completion) for raw in raw_rows(source)]
    if not rows:
        raise DataError(f"{source if isinstance(source, str | Path) else 'rows'}: no rows; the source is empty")
    return rows


def _row(raw: RawRow, aside: Collection[str], needs_completion: bool) -> CompletionRow:
    source, line, row = raw
    try:
        if isinstance(row, RowError):
            raise row
        rest = {name: value for name, value in row.items() if name != "completion" and name not in aside}
        prompt = row_to_prompt(rest)
        completions = _completions(row.get("completion"), needs_completion)
    except RowError as error:
        raise DataError(str(error.at(source, line))) from None
    info = {name: value for name, value in prompt.info.items() if name != "judges"}
    extras = {name: row[name] for name in aside if row.get(name) is not None}
    return CompletionRow(source, line, replace(prompt, info=info), completions, extras)


def _completions(value: Any, is_needed: bool) -> tuple[str, ...]:
    remedy = "give the text to judge, or a list of texts"
    if value is None:
        if is_needed:
            raise RowError("missing_completion", "completion", "missing", remedy)
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise RowError("bad_completion", "completion", f"got {excerpt(value)}", remedy)
    for number, item in enumerate(value):
        if not isinstance(item, str):
            raise RowError("bad_completion", f"completion[{number}]", f"got {excerpt(item)}", "give a text")
    return tuple(value)


def labels_of(row: CompletionRow) -> tuple[float, ...]:
    """One label per completion, from `label` (true, false, 1, 0) or `score` (any number). Raises `DataError`."""
    names = [name for name in ("label", "score") if name in row.extras]
    if len(names) != 1:
        raise row.error(
            "label", "neither or both of label and score", "give 'label' true or false, or 'score' a number"
        )
    name = names[0]
    values = row.extras[name]
    values = values if isinstance(values, list) else [values]
    if len(values) != len(row.completions):
        raise row.error(name, f"{len(values)} for {len(row.completions)} completions", "give one for each")
    return tuple(_label(row, name, value) for value in values)


def _label(row: CompletionRow, name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    if not is_number or (name == "label" and value not in (0, 1)):
        kind = "true or false" if name == "label" else "a finite number"
        raise row.error(name, f"got {excerpt(value)}", f"give {kind}")
    return float(value)
