"""Figures of A/B tests: rates and changes by arm, day by day, guardrails, and the power of a plan.

They are built from the plain values that `feedback ab --json` prints.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llamarl.feedback.ab_verdicts import format_change, format_interval, format_rate
from llamarl.report.figures import Curve, Dot, LineChart, Row, RowChart, Tone

ONE_LOOK, ALWAYS = "for one look", "always valid"
WIDEST_CHANGE = 2.0
"""Changes beyond it, such as those of the first day, are cut off: +200%."""
_TONES: Mapping[str | None, Tone | None] = {None: None, "held": "good", "open": "unsure", "broken": "bad"}


def build_rates(result: Mapping[str, Any]) -> RowChart:
    """The love rate of each arm."""
    rows = [
        Row(name, [Dot(arm["rate"], arm["rate_interval"], text=_said(arm["rate"], arm["rate_interval"]))])
        for name, arm in result["arms"].items()
    ]
    return RowChart("Love rate", rows, unit="%")


def build_changes(result: Mapping[str, Any]) -> RowChart:
    """The change of each arm against the control, with the interval for one look and the always-valid one."""
    rows, intervals = [], []
    for name, arm in _others(result):
        change, always = arm["relative_change"], arm["always_valid_interval"]
        dots = [
            Dot(change, interval, text=f"{format_change(change)} ({format_interval(interval)})", series=series)
            for series, interval in ((ONE_LOOK, arm["interval"]), (ALWAYS, always))
        ]
        rows.append(Row(name, dots))
        intervals.append(always)
    return RowChart(
        "Relative change of the love rate",
        rows,
        unit="%",
        marks=[0.0],
        limits=_limit(intervals),
        is_signed=True,
        series=(ONE_LOOK, ALWAYS),
        caption="The interval for one look is right if the day was fixed before the test. The always-valid one is "
        "right on all days together.",
    )


def build_days(result: Mapping[str, Any]) -> list[LineChart]:
    """The change known after each day with its always-valid interval, a chart for each arm."""
    days = [each["day"] for each in result["by_day"]]
    charts = []
    for name, _ in _others(result):
        known = [
            (place, each["arms"][name])
            for place, each in enumerate(result["by_day"])
            if each["arms"].get(name) and each["arms"][name]["always_valid_interval"][1] is not None
        ]
        points = [(place, arm["relative_change"]) for place, arm in known]
        band = [arm["always_valid_interval"] for _, arm in known]
        curve = Curve(name, points, band, style="marked")
        chart = LineChart(
            f"{name}: change known at the end of each day",
            [curve],
            x="",
            x_names=days,
            unit="%",
            limits=_later_limits(band),
            y_marks=[0.0],
        )
        charts.append(chart)
    return charts


def build_guardrails(result: Mapping[str, Any]) -> RowChart | None:
    """Relative changes of guardrails with their 95% intervals and margins; None where no change is known."""
    rows = []
    for name, arm in _others(result):
        for column, found in arm["guardrails"].items():
            change, interval = found["relative_change"], found["interval"]
            if change is not None:
                text = f"{format_change(change)} ({format_interval(interval)})"
                tone = _TONES[found["state"]]
                dot = Dot(change, interval, text=text, tone=tone, limit=found["margin"])
                rows.append(Row(f"{column}, {name}", [dot]))
    if not rows:
        return None
    return RowChart(
        "Relative change of guardrails",
        rows,
        unit="%",
        marks=[0.0],
        is_signed=True,
        caption="Dotted: the margin that must be left out.",
    )


def build_power(plan: Mapping[str, Any]) -> list[LineChart]:
    """Power, and the change that it could find, by day."""
    curve, settings = plan["curve"], plan["settings"]
    ends = [] if plan["days"] is None else [plan["days"]]
    change = settings["change"]
    power = LineChart(
        f"Power to find a change of {format_change(change)}",
        [
            Curve("one look, on this day", [(each["day"], each["power"]) for each in curve], colour=ONE_LOOK),
            Curve("always valid, by now", [(each["day"], each["always_valid_power"]) for each in curve], colour=ALWAYS),
        ],
        x="day",
        unit="%",
        limits=(0.0, 1.02),
        x_marks=ends,
        y_marks=[settings["power"]],
    )
    known = [(each["day"], each["detectable_change"]) for each in curve if each["detectable_change"]]
    low, high = sorted((0.0, 4 * change))
    found = LineChart(
        f"Change found with power {settings['power']:.0%}",
        [Curve("change", known, colour=ONE_LOOK)],
        x="day",
        unit="%",
        limits=(low, high),
        x_marks=ends,
        y_marks=[change],
    )
    return [power, found]


def _others(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, arm) for name, arm in result["arms"].items() if name != result["control"]]


def _said(rate: float, interval: tuple[float, float]) -> str:
    return f"{format_rate(rate)} ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


def _limit(intervals: Sequence[tuple[float, float | None]]) -> tuple[float, float]:
    """Ends that show the intervals, but not what is beyond `WIDEST_CHANGE`."""
    highs = [WIDEST_CHANGE if high is None else min(high, WIDEST_CHANGE) for _, high in intervals]
    low, high = min([0.0, *(low for low, _ in intervals)]), max([0.0, *highs])
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def _later_limits(band: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Ends for the later two thirds: the first days know little, and their band would flatten the rest."""
    if not band:
        return None
    later = band[len(band) // 3 :]
    low, high = min([0.0, *(low for low, _ in later)]), max([0.0, *(high for _, high in later)])
    return low - 0.3 * (high - low), high + 0.3 * (high - low)
