"""Pools of judged responses from files: one row per response, for `llamarl budget solve`."""

import contextlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import DataError
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import RowError, excerpt
from llamarl.functional.budget import Pool


@dataclass(frozen=True, slots=True)
class PoolRows:
    """The rows of a file and the pool they make, both in the file's order."""

    rows: tuple[Mapping[str, Any], ...]
    pool: Pool


def read_pool(
    source: str | Path | Iterable[Mapping[str, Any]], groups: Sequence[str], cost_field: str | None = None
) -> PoolRows:
    """Reads a pool from a JSONL, Parquet or CSV file, a glob, a Hub id or a list of mappings.

    A row is one response: `prompt` (text, number or messages; equal prompts belong together), `group` (one of `groups`,
    or null for a malformed response) and `correct` (true or false, 1 or 0). Other fields are kept. A CSV file holds
    texts: `correct` and the cost are read from theirs, and an empty group is null.

    Args:
        source: where the rows are.
        groups: the groups that may occur.
        cost_field: the field that holds a response's cost, such as `tokens`; None: every response costs the same.

    Raises:
        DataError: the first bad row, with file, line and field; or a source that cannot be read or is empty.
    """
    rows: list[Mapping[str, Any]] = []
    prompts, names, correct, costs = [], [], [], []
    for name, line, row in raw_rows(source):
        try:
            if isinstance(row, RowError):
                raise row
            if name.endswith(".csv"):
                row = _from_texts(row, cost_field)
            prompts.append(_prompt(row))
            names.append(_group(row, groups))
            correct.append(_correct(row))
            costs.append(0.0 if cost_field is None else _cost(row, cost_field))
        except RowError as error:
            raise DataError(str(error.at(name, line))) from None
        rows.append(row)
    if not rows:
        raise DataError(f"{source if isinstance(source, str | Path) else 'rows'}: no rows; a pool needs responses")
    if str(source).endswith(".csv") and not any(names):
        raise DataError(f"{source}: the column 'group' is missing or empty; write one of {', '.join(groups)} in it")
    return PoolRows(tuple(rows), Pool(prompts, names, correct, None if cost_field is None else costs))


_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def _from_texts(row: Mapping[str, Any], cost_field: str | None) -> dict[str, Any]:
    """A row of CSV, in which empty values are absent, with the values that JSON would have; other texts stay."""
    read = {**row, "group": row.get("group")}
    if "correct" in row:
        read["correct"] = _TRUTHS.get(row["correct"].strip().lower(), row["correct"])
    if cost_field is not None and cost_field in row:
        with contextlib.suppress(ValueError):
            read[cost_field] = float(row[cost_field])
    return read


def _field(row: Mapping[str, Any], field: str, meaning: str) -> Any:
    if field not in row:
        raise RowError("missing_field", field, f"not in the row (it has {', '.join(list(row)[:8]) or 'none'})", meaning)
    return row[field]


def _prompt(row: Mapping[str, Any]) -> Hashable:
    value = _field(row, "prompt", "give the prompt's text or id")
    if value is None or value == "":
        raise RowError("empty_prompt", "prompt", f"{excerpt(value)} names no prompt", "give its text or id")
    return value if isinstance(value, str | int) else json.dumps(value, sort_keys=True)


def _group(row: Mapping[str, Any], groups: Sequence[str]) -> str | None:
    value: str | None = _field(row, "group", f"give one of {', '.join(groups)}, or null for a malformed response")
    if value is not None and value not in groups:
        problem = f"{excerpt(value)} is no group.{suggest(str(value), list(groups))}"
        raise RowError("unknown_group", "group", problem, "for a malformed response write null")
    return value


def _correct(row: Mapping[str, Any]) -> bool:
    value = _field(row, "correct", "give true or false")
    if value not in (0, 1):  # True and False among them
        raise RowError("bad_correct", "correct", f"{excerpt(value)} is neither true nor false", "write true or false")
    return bool(value)


def _cost(row: Mapping[str, Any], field: str) -> float:
    value = _field(row, field, "give the response's cost")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise RowError("bad_cost", field, f"{excerpt(value)} is no cost", "write a number, 0 or more")
    return float(value)
