"""Figures of a report as plain values, drawn by the page that shows them (`report.page`): curves, and rows of dots.

    LineChart("Power by day", [Curve("one look", [(1, 0.2), (2, 0.4)])], x="day", unit="%")
    RowChart("Love rate", [Row("warm", [Dot(0.021, (0.019, 0.023), "2.1%")])], unit="%")

A curve or a series has the colour of its name, on every page (`report.colours`).
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

Unit = Literal["", "%", "×"]
"""Unit of an axis; values of `%` are shares."""
Tone = Literal["good", "bad", "unsure"]
Interval = tuple[float | None, float | None]
"""Lower and upper end; None: no bound is known."""
Style = Literal["line", "marked", "dashed", "dots"]
DIGITS = 6
"""Significant digits of a value in a page."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points from left to right; those of one x follow each other."""

    name: str
    points: Sequence[tuple[float, float | None]]
    band: Sequence[Interval] = ()
    """An interval for each point."""
    style: Style = "line"
    """With `marked` each point is seen on its line; `dots` have none; `dashed` is grey, a line to compare with."""
    colour: str = ""
    """The name whose colour it has; empty: its own."""


@dataclass(frozen=True, slots=True)
class LineChart:
    """Curves over a numeric axis."""

    title: str
    curves: Sequence[Curve]
    x: str
    """Name of the horizontal axis."""
    x_names: Sequence[str] = ()
    """Names of the places 0, 1, 2 ... on it, such as days."""
    x_unit: Unit = ""
    unit: Unit = ""
    y: str = ""
    """Name of the vertical axis, beside the title."""
    limits: tuple[float, float] | None = None
    """Ends of the vertical axis; None: those of the values."""
    is_doubling: bool = False
    """True: the vertical axis is one of doublings between `limits`, at which values beyond them are drawn."""
    x_marks: Sequence[float] = ()
    y_marks: Sequence[float] | Mapping[float, str] = ()
    """Places of dashed lines across the chart; those on the vertical axis may have names."""
    caption: str = ""

    def names(self) -> Iterator[str]:
        """Names that have a colour."""
        return (curve.colour or curve.name for curve in self.curves if curve.style != "dashed")

    def _mark_names(self) -> dict[str, list[str]]:
        return {"names": list(self.y_marks.values())} if isinstance(self.y_marks, Mapping) else {}

    def as_dict(self, colours: Mapping[str, int]) -> dict[str, Any]:
        """The chart as the page's script reads it: all curves on the places of all, None where one has no point."""
        xs = list(_merge([x for x, _ in curve.points] for curve in self.curves))
        table: dict[str, Any] = {"steps": list(map(shorten, xs)), "values": {}, "band": {}}
        for number, curve in enumerate(self.curves):
            key, places = str(number), _place([x for x, _ in curve.points], xs)
            table["values"][key] = _spread([y for _, y in curve.points], places, len(xs))
            if curve.band:
                sides = zip(*curve.band, strict=True)
                table["band"][key] = [_spread(side, places, len(xs)) for side in sides]
        return {
            "kind": "lines",
            "title": self.title,
            "unit": self.y,
            "scale": self.unit,
            "x": {"name": self.x, "names": list(self.x_names), "scale": self.x_unit},
            "limits": self.limits,
            "doubling": self.is_doubling,
            "marks": {"x": list(self.x_marks), "y": list(self.y_marks)} | self._mark_names(),
            "caption": self.caption,
            "legend": len(self.curves) > 1,
            "curves": [
                {
                    "key": str(number),
                    "label": curve.name,
                    "colour": colours.get(curve.colour or curve.name),
                    "style": curve.style,
                }
                for number, curve in enumerate(self.curves)
            ],
            "table": table,
        }


@dataclass(frozen=True, slots=True)
class Dot:
    """A value with its interval on a line of its own."""

    value: float | None
    """None: not known."""
    interval: Interval | None = None
    """None: not known. An end that is None has no bound."""
    text: str = ""
    """The value as the reader sees it, beside the dot."""
    series: str = ""
    """The series that it belongs to, whose colour it has; empty: the only one."""
    tone: Tone | None = None
    """A colour that judges, instead of the series'."""
    is_open: bool = False
    """A circle instead of a disc."""
    limit: float | None = None
    """A place that the interval should not reach, dotted."""


@dataclass(frozen=True, slots=True)
class Row:
    """Dots under one name."""

    name: str
    dots: Sequence[Dot]
    is_total: bool = False
    """True for a mean of other rows: it stands apart."""


@dataclass(frozen=True, slots=True)
class RowChart:
    """Values side by side, each on a line with its interval and its number."""

    title: str
    rows: Sequence[Row]
    unit: Unit = ""
    marks: Sequence[float] = ()
    """Places of lines across all rows, the first of them drawn through, the others dashed."""
    limits: tuple[float, float] | None = None
    """Ends of the axis, where what lies beyond is cut off; None: those of the values."""
    is_log: bool = False
    is_signed: bool = False
    """True: ticks carry their sign."""
    caption: str = ""
    series: Sequence[str] = ()
    """Order of the legend; a name alone needs none."""

    def names(self) -> Iterator[str]:
        """Names that have a colour."""
        yield from self.series
        yield from (dot.series or "mean" for row in self.rows for dot in row.dots)

    def as_dict(self, colours: Mapping[str, int]) -> dict[str, Any]:
        """The chart as the page's script reads it."""
        return {
            "kind": "rows",
            "title": self.title,
            "scale": self.unit,
            "marks": list(self.marks),
            "limits": self.limits,
            "log": self.is_log,
            "signed": self.is_signed,
            "caption": self.caption,
            "series": [{"label": name, "colour": colours[name]} for name in self.series],
            "rows": [
                {"name": row.name, "total": row.is_total, "dots": [_describe_dot(dot, colours) for dot in row.dots]}
                for row in self.rows
            ],
        }


Figure = LineChart | RowChart


def _describe_dot(dot: Dot, colours: Mapping[str, int]) -> dict[str, Any]:
    low, high = dot.interval or (None, None)
    return {
        "value": shorten(dot.value),
        "low": shorten(low),
        "high": shorten(high),
        "text": dot.text,
        "label": dot.series,
        "colour": colours[dot.series or "mean"],
        "tone": dot.tone,
        "open": dot.is_open,
        "limit": dot.limit,
    }


def _merge(columns: Iterator[list[float]]) -> Iterator[float]:
    """Every x in order, as often as the curve repeats it that does so most: a step of a curve has one x twice."""
    counts: Counter[float] = Counter()
    for column in columns:
        counts |= Counter(column)
    return chain.from_iterable([x] * counts[x] for x in sorted(counts))


def _place(xs: Sequence[float], merged: Sequence[float]) -> list[int]:
    """Index among the merged places of each x, in order."""
    places, start = [], 0
    for x in xs:
        start = merged.index(x, start)
        places.append(start)
        start += 1
    return places


def _spread(values: Sequence[float | None], places: Sequence[int], count: int) -> list[float | None]:
    spread: list[float | None] = [None] * count
    for place, value in zip(places, values, strict=True):
        spread[place] = shorten(value)
    return spread


def shorten(value: float | None) -> float | None:
    """The value in `DIGITS` significant digits; None for what is no number that JSON knows."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
