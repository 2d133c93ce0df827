"""Curves in plain text, for terminals."""

import itertools
import math
from collections.abc import Sequence

from llamarl.report.text import format_number

Values = Sequence[float | None]
"""One value per step; None (or NaN) where there is none."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of a braille cell by column (left, right) and row from the top."""


def sparkline(values: Values, width: int) -> str:
    """The whole curve in at most `width` block characters, scaled from its minimum to its maximum."""
    points = resample(values, min(width, len(values)))
    bounds = _bounds(points)
    if bounds is None:
        return ""
    low, high = bounds
    is_flat = high - low <= 1e-9 * max(abs(low), abs(high))  # equal but for rounding in the bucket means
    scale = 0.0 if is_flat else (len(_BLOCKS) - 1) / (high - low)
    return "".join(" " if point is None else _BLOCKS[round((point - low) * scale)] for point in points)


def line_chart(values: Values, width: int, height: int, first: int = 1) -> list[str]:
    """A braille line chart with axis labels, `height + 2` lines (the last two are the x axis and its labels).

    Args:
        values: one per step, from step `first` on.
        width: characters, labels included; at least 20 is readable.
        height: characters of the plot itself.
        first: step of the first value.
    """
    bounds = _bounds(resample(values, 2 * width))
    if bounds is None:
        return ["no value yet"]
    low, high = _pad_range(*bounds)
    labels = [_axis_label(high, high - low), _axis_label(low, high - low)]
    gutter = max(map(len, labels))
    columns = max(2, width - gutter - 2)
    points = [_clamp(point, low, high) for point in resample(values, 2 * columns, stretch=True)]
    rows = _draw(points, low, high, columns, height)
    left = [labels[0], *[""] * (height - 2), labels[1]] if height > 1 else [labels[0]]
    chart = [f"{label:>{gutter}} {'┤' if label else '│'}{row}" for label, row in zip(left, rows, strict=True)]
    axis = " " * (gutter + 1) + "└" + "─" * columns
    ends = f"step {first}", str(first + len(values) - 1)
    return [*chart, axis, " " * (gutter + 2) + ends[0] + ends[1].rjust(columns - len(ends[0]))]


def resample(values: Values, count: int, stretch: bool = False) -> list[float | None]:
    """`count` values along the curve: bucket means where it is longer, linear in between where it is shorter.

    Args:
        values: the curve.
        count: how many values to return, at least 1.
        stretch: interpolate a shorter curve; otherwise it is returned as it is.
    """
    if len(values) > count:
        edges = [index * len(values) // count for index in range(count + 1)]
        return [_mean(values[start:end]) for start, end in itertools.pairwise(edges)]
    if not stretch or len(values) < 2:
        return [_mean((value,)) for value in values]
    step = (len(values) - 1) / (count - 1)
    return [_at(values, index * step) for index in range(count)]


def _mean(values: Values) -> float | None:
    present = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(present) / len(present) if present else None


def _at(values: Values, position: float) -> float | None:
    """The curve at a fractional index: linear between its neighbours, a gap where one of them is missing."""
    below = min(int(position), len(values) - 2)
    share = position - below
    left, right = _mean((values[below],)), _mean((values[below + 1],))
    if left is None or right is None:
        return left if share < 0.5 else right
    return left * (1 - share) + right * share


def _bounds(points: Values) -> tuple[float, float] | None:
    present = [point for point in points if point is not None]
    return (min(present), max(present)) if present else None


def _clamp(point: float | None, low: float, high: float) -> float | None:
    return None if point is None else min(high, max(low, point))


def _pad_range(low: float, high: float) -> tuple[float, float]:
    """Widens a range to a positive height: a flat curve lies in its middle."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    margin = abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _axis_label(value: float, span: float) -> str:
    """Just enough decimals to tell the two ends of the axis apart."""
    decimals = max(0, 2 - math.floor(math.log10(span)) - 1)
    return f"{value:.{decimals}f}" if decimals <= 6 and abs(value) < 1e6 else format_number(value)


def _draw(points: Values, low: float, high: float, columns: int, height: int) -> list[str]:
    """Braille rows, top first. Neighbouring points are joined by a vertical run of dots."""
    cells = [[0] * columns for _ in range(height)]
    last_row = 4 * height - 1
    previous: int | None = None
    for x, point in enumerate(points):
        if point is None:
            previous = None
            continue
        y = round((high - point) / (high - low) * last_row)
        start = y if previous is None else previous + (1 if y > previous else -1 if y < previous else 0)
        for dot in range(min(start, y), max(start, y) + 1):
            cells[dot // 4][x // 2] |= _DOTS[x % 2][dot % 4]
        previous = y
    return ["".join(chr(_BRAILLE + cell) for cell in row) for row in cells]
