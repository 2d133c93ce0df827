"""The figures of monitors and of the release gate: the change of the predicted love rate, and of what is counted."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llamarl.report.figures import Curve, Dot, LineChart, Row, RowChart, Tone
from llamarl.report.text import format_number

SMALLEST, LARGEST = 1 / 16, 64.0
"""Changes beyond these are drawn at the edge."""
LEVELS: Mapping[str, Tone] = {"quiet": "good", "warn": "unsure", "stop": "bad"}
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
        caption="Dashed: what is tolerated." if margin else "",
    )


def build_monitors(monitors: Sequence[Mapping[str, Any]], warn: float, stop: float) -> RowChart:
    """The change of each monitor with its interval, on a scale of doublings."""
    rows = []
    for each in monitors:
        low, high = each["interval"]
        is_nothing = each["control"] == each["value"] == 0  # 0 of 0 is no number of times
        text = (
            "in neither" if is_nothing else "not known" if each["ratio"] is None else f"{format_number(each['ratio'])}×"
        )
        dot = Dot(None if is_nothing else each["ratio"], (low or SMALLEST, high), text=text, tone=LEVELS[each["level"]])
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


def build_course(
    looks: Sequence[Mapping[str, Any]], names: Sequence[str], warn: float, stop: float
) -> Iterator[LineChart]:
    """A chart of each monitor: its count in times of the control's over the files, with its interval."""
    for number, monitor in enumerate(each["monitor"] for each in looks[-1]["monitors"]):
        readings = [look["monitors"][number] for look in looks]
        # What is unbounded, or far beyond the curve, ends at the frame: the curve is what people came to see.
        ratios = [each["ratio"] for each in readings if each["ratio"]]
        bottom = 2.0 ** math.floor(math.log2(max(SMALLEST, min([0.5, *ratios]))))
        top = 2.0 ** math.ceil(math.log2(min(LARGEST, max([1.1 * stop, *ratios]))))
        band = [(low or bottom, top if high is None else high) for low, high in (each["interval"] for each in readings)]
        yield LineChart(
            monitor,
            [Curve(monitor, [(place, each["ratio"]) for place, each in enumerate(readings)], band, style="marked")],
            x="",
            x_names=names,
            unit="×",
            y="times the control",
            limits=(bottom, top),
            is_doubling=True,
            y_marks={1.0: "control", warn: "warns", stop: "stops"},
        )
