"""The figures of the release gate: the change of the predicted love rate, and of what the monitors count."""

from collections.abc import Mapping, Sequence
from typing import Any

from llamarl.report.figures import Dot, Row, RowChart, Tone
from llamarl.report.text import format_number

SMALLEST, LARGEST = 1 / 16, 64.0
"""Changes beyond these are drawn at the edge."""
_LEVELS: Mapping[str, Tone] = {"quiet": "good", "warn": "unsure", "stop": "bad"}
_OUTCOMES: Mapping[str, Tone] = {"passed": "good", "undecided": "unsure", "blocked": "bad"}


def build_love(love: Mapping[str, Any], margin: float) -> RowChart:
    """The relative change with its interval, beside what is tolerated."""
    change, ends = love["change"]["relative_change"], love["change"]["relative_interval"]
    between = "" if ends is None else f" ({ends[0]:+.2%} to {ends[1]:+.2%})"
    dot = Dot(
        change, None if ends is None else tuple(ends), text=f"{change:+.2%}{between}", tone=_OUTCOMES[love["outcome"]]
    )
    return RowChart(
        "Change of the predicted love rate",
        [Row("candidate", [dot])],
        unit="%",
        marks=[0.0, -margin],
        is_signed=True,
        caption="Dashed: what is tolerated.",
    )


def build_monitors(monitors: Sequence[Mapping[str, Any]], warn: float, stop: float) -> RowChart:
    """The change of each monitor with its interval, on a scale of doublings."""
    rows = []
    for each in monitors:
        low, high = each["interval"]
        text = "not known" if each["ratio"] is None else f"{format_number(each['ratio'])}×"
        dot = Dot(each["ratio"], (low or SMALLEST, high), text=text, tone=_LEVELS[each["level"]])
        rows.append(Row(each["monitor"], [dot]))
    return RowChart(
        "Change of what each monitor counts",
        rows,
        unit="×",
        marks=[1.0, warn, stop],
        limits=(SMALLEST, LARGEST),
        is_log=True,
        caption=f"Times the control's. Dashed: {warn:g} (warns) and {stop:g} times (stops).",
    )
