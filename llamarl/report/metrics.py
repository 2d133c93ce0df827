"""Metric records: one per trainer step, always to `metrics.jsonl`, on request to trackers too (`trackers.py`).

    {"step": 12, "policy_version": 12, "time": 1767225600.0, "rollout/reward/mean": 0.42, "rollout/reward/count": 128}

Every sink takes the same call, `write(step, metrics)`. A value that is None, NaN or infinite is written as null and
counted under `nonfinite`.
"""

import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamarl.core.metric_names import NONFINITE, POLICY_VERSION
from llamarl.core.protocols import MetricSink
from llamarl.report.files import JsonlFile, read_jsonl

RESERVED = ("step", "time")
"""Keys of a record that a metric may not take."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A few numbers that stand for many. All but `count` are NaN when there were none."""

    mean: float
    max: float
    p95: float
    """95th percentile, linear between neighbours."""
    count: int


def summarise(values: Iterable[float | None]) -> Summary:
    """Mean, maximum, 95th percentile and count of the values that are not None."""
    present = sorted(float(value) for value in values if value is not None)
    if not present or any(math.isnan(value) for value in present):
        return Summary(math.nan, math.nan, math.nan, len(present))
    position = 0.95 * (len(present) - 1)
    below = math.floor(position)
    above = min(below + 1, len(present) - 1)
    p95 = (
        present[below] if above == below else present[below] * (above - position) + present[above] * (position - below)
    )
    return Summary(math.fsum(present) / len(present), present[-1], p95, len(present))


class Meter:
    """Collects values between two records and turns each name into mean, max, p95 and count.

    Example:
        >>> meter = Meter()
        >>> meter.add("time/judge", 0.5)
        >>> meter.add("time/judge", 1.5)
        >>> meter.take()["time/judge/mean"]
        1.0
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float | None]] = {}

    def add(self, name: str, *values: float | None) -> None:
        """Adds values under a name; None (not measured) counts nowhere."""
        self._values.setdefault(name, []).extend(values)

    def take(self) -> dict[str, float]:
        """`<name>/{mean,max,p95,count}` of everything added since the last call."""
        taken, self._values = self._values, {}
        return {
            f"{name}/{key}": value for name, values in taken.items() for key, value in asdict(summarise(values)).items()
        }


def clean(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Plain numbers, None for each value that is not finite, and the count of those under `nonfinite`.

    Raises:
        TypeError: a value is not a number; names the metric.
        ValueError: a metric is named `step` or `time`.
    """
    cleaned = {name: _number(name, value) for name, value in metrics.items() if name != NONFINITE}
    cleaned[NONFINITE] = sum(value is None for value in cleaned.values())
    return cleaned


class JsonlSink:
    """Appends to `metrics.jsonl`. A record is on disk, in the kernel's keeping, when `write` returns.

    Args:
        path: of the file; a line torn by an earlier crash is cut off.
        clock: seconds since the epoch, for the record's `time`.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time) -> None:
        self._file = JsonlFile(path)
        self._clock = clock

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends the step's record. Raises `OSError` when the disk is full, and leaves no half line."""
        cleaned = clean(metrics)
        head = {"step": step, POLICY_VERSION: cleaned.pop(POLICY_VERSION, None), "time": round(self._clock(), 3)}
        self._file.append(head | cleaned)

    def rewind(self, step: int) -> int:
        """Drops the records after `step`, for a run that resumes from there; returns how many went."""
        return self._file.keep_only(lambda record: record.get("step", 0) <= step)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        self._file.close()


class MultiSink:
    """Hands each record to several sinks, in order."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes to every sink."""
        cleaned = clean(metrics)
        for sink in self._sinks:
            sink.write(step, cleaned)

    def close(self) -> None:
        """Closes every sink, also when one of them fails; then raises what failed first."""
        failures = []
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in file order; a torn last line is left out.

    Raises:
        DataError: no such file, a broken line, or a record without a whole `step`; names file and line.
    """
    return read_jsonl(path, required={"step": int})


def read_outline(path: str | Path, max_records: int) -> tuple[list[dict[str, Any]], int]:
    """Enough records of a long run to draw and judge it at a glance, and the distance of those that were read.

    Those at the beginning and at the end are read, evaluations, and of the rest one in so many; the others are not
    parsed, and may be broken.

    Args:
        path: of a `metrics.jsonl`.
        max_records: about as many, besides evaluations, are read.

    Returns:
        The records, and 1 where that is all of them.

    Raises:
        DataError: see `read_metrics`.
    """
    count = Path(path).read_bytes().count(b"\n")
    every = max(1, count // max_records)
    places = itertools.count()

    def is_wanted(line: bytes) -> bool:
        place = next(places)
        return place % every == 0 or place < _FIRST or place >= count - _LATEST or b'"eval/' in line

    return read_jsonl(path, required={"step": int}, is_wanted=is_wanted if every > 1 else lambda line: True), every


_FIRST, _LATEST = 20, 60
"""Records at either end that an outline holds: as many as the means and the warnings of a run's page look at."""
_STEP = re.compile(rb'\{"step": ?(\d+)')
"""The head of a record as `JsonlSink` writes it."""


def read_steps(path: str | Path, first: int, last: int) -> list[dict[str, Any]]:
    """The records of the steps from `first` to `last`; those of other steps are not parsed, and may be broken.

    Raises:
        DataError: see `read_metrics`.
    """

    def is_wanted(line: bytes) -> bool:
        head = _STEP.match(line)
        return head is None or first <= int(head[1]) <= last

    found = read_jsonl(path, required={"step": int}, is_wanted=is_wanted)
    return [record for record in found if first <= record["step"] <= last]


def column(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was recorded and finite."""
    rows = [(record["step"], record[name]) for record in records if isinstance(record.get(name), (int, float))]
    return [step for step, _ in rows], [value for _, value in rows]


def _number(name: str, value: Any) -> float | None:
    if name in RESERVED:
        raise ValueError(f"metric {name!r} is a key of the record itself; name it area/{name}")
    if value is None:
        return None
    try:
        number = value if type(value) in (int, float) else float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {name!r} is {value!r}; a metric is one number or None") from None
    return number if math.isfinite(number) else None
