"""The last readings of a run's monitors, out of its metrics."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamarl.report.files import Record

_LEVEL = re.compile(r"(?P<task>task/(?P<owner>[^/]+)/)?watch/monitor/(?P<name>[^/]+)/level$")


@dataclass(frozen=True, slots=True)
class LoggedReading:
    """One monitor's newest record."""

    name: str
    """Name of the monitor, with its task's before it where a run has several."""
    prefix: str
    """The beginning of its metrics' names."""
    value: float | None
    control: float | None
    ratio: float | None
    low: float | None
    high: float
    """Infinite where it is unbounded."""
    level: float
    """0 quiet, 1 warns, 2 stops the run."""


def last_readings(metrics: Sequence[Record]) -> Iterator[LoggedReading]:
    """The readings of the newest step that has some, in the order of the metrics."""
    newest: Record = next((record for record in reversed(metrics) if any(map(_LEVEL.match, record))), {})
    for key, level in newest.items():
        if match := _LEVEL.match(key):
            prefix = key.removesuffix("level")
            value, control, ratio = (newest.get(f"{prefix}{what}") for what in ("value", "control", "ratio"))
            low, high = newest.get(f"{prefix}ratio/low"), newest.get(f"{prefix}ratio/high", math.inf)
            name = f"{match['owner']}/{match['name']}" if match["owner"] else match["name"]
            yield LoggedReading(name, prefix, value, control, ratio, low, high, level or 0.0)
