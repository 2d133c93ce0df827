"""Figures of A/B tests for a page: rates and changes by arm, day by day, guardrails, and the power of a plan.

They draw from the plain values that `feedback ab --json` prints.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from llamarl.report.plots import BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, RED, SKY, render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARM_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
WIDTH_INCHES = 9.2
ROW_INCHES, FRAME_INCHES, PANEL_INCHES = 0.42, 1.1, 2.4
WIDEST_CHANGE = 2.0
"""Changes beyond it, such as those of the first day, are cut off: +200 %."""


def draw_arms(result: Mapping[str, Any]) -> str:
    """The love rate of each arm, and its change with the interval for one look and the always-valid one, as SVG."""
    arms = result["arms"]
    others = [name for name in arms if name != result["control"]]

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        for place, (name, arm) in enumerate(arms.items()):
            colour = GREY if name == result["control"] else BLUE
            _draw_interval(left, place, arm["rate"], arm["rate_interval"], colour)
        _label_rows(left, list(arms), "Love rate")
        right.axvline(0, color=GREY, linewidth=1)
        for place, name in enumerate(others):
            arm = arms[name]
            _draw_interval(right, place - 0.13, arm["relative_change"], arm["interval"], BLUE, "for one look")
            always = arm["always_valid_interval"]
            _draw_interval(right, place + 0.13, arm["relative_change"], always, ORANGE, "always valid")
        _label_rows(right, others, "Relative change of the love rate")
        _limit(right, [arms[name]["always_valid_interval"] for name in others])
        _legend(right)

    return render_svg(draw, WIDTH_INCHES, FRAME_INCHES + 0.3 + ROW_INCHES * max(2, len(arms)))


def draw_days(result: Mapping[str, Any]) -> str:
    """The change known after each day with its always-valid interval, a panel for each arm, as SVG."""
    others = [name for name in result["arms"] if name != result["control"]]
    days = [each["day"] for each in result["by_day"]]

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(len(others), 1, squeeze=False, sharex=True)[:, 0]
        for axes, name, colour in zip(panels, others, cycle(ARM_COLOURS), strict=False):
            _draw_course(axes, [each["arms"].get(name) for each in result["by_day"]], colour)
            axes.set_title(f"{name}: change known at the end of each day")
            _thin_ticks(axes, days)

    return render_svg(draw, WIDTH_INCHES, 0.4 + PANEL_INCHES * len(others))


def draw_guardrails(result: Mapping[str, Any]) -> str:
    """Relative changes of guardrails with their 95 % intervals and margins, as SVG."""
    rows = [
        (f"{column}, {name}", found)
        for name, arm in result["arms"].items()
        if name != result["control"]
        for column, found in arm["guardrails"].items()
        if found["relative_change"] is not None
    ]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axvline(0, color=GREY, linewidth=1)
        for place, (_, found) in enumerate(rows):
            colour = {None: BLUE, "held": GREEN, "open": ORANGE, "broken": RED}[found["state"]]
            _draw_interval(axes, place, found["relative_change"], found["interval"], colour)
            if found["margin"] is not None:
                margin = 100 * found["margin"]
                axes.plot([margin] * 2, [place - 0.35, place + 0.35], ":", color=RED, linewidth=2)
        _label_rows(axes, [label for label, _ in rows], "Relative change of guardrails (dotted: the margin)")

    return render_svg(draw, WIDTH_INCHES, FRAME_INCHES + ROW_INCHES * max(2, len(rows)))


def draw_power(plan: Mapping[str, Any]) -> str:
    """Power, and the change that it could find, against days, as SVG."""
    curve = plan["curve"]
    days = [each["day"] for each in curve]

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        left.plot(days, [each["power"] for each in curve], color=BLUE, linewidth=2, label="one look, on this day")
        always = [each["always_valid_power"] for each in curve]
        left.plot(days, always, color=ORANGE, linewidth=2, label="always valid, by now")
        left.axhline(plan["settings"]["power"], color=GREY, linewidth=1, linestyle="--")
        left.set_ylim(0, 1.02)
        left.set_title(f"Power to find a change of {100 * plan['settings']['change']:+.3g} %")
        known = [(each["day"], 100 * each["detectable_change"]) for each in curve if each["detectable_change"]]
        right.plot([day for day, _ in known], [change for _, change in known], color=BLUE, linewidth=2)
        right.axhline(100 * plan["settings"]["change"], color=GREY, linewidth=1, linestyle="--")
        right.set_title(f"Change found with power {plan['settings']['power']:.0%}, in %")
        if known:
            right.set_ylim(*sorted((0, 4 * 100 * plan["settings"]["change"])))
        for axes in (left, right):
            axes.set_xlabel("days")
            axes.grid(color=LIGHT, linewidth=0.8)
            axes.set_axisbelow(True)
            if plan["days"] is not None:
                axes.axvline(plan["days"], color=GREY, linewidth=1, linestyle="--")
        _legend(left)

    return render_svg(draw, WIDTH_INCHES, 3.2)


def _draw_interval(
    axes: "Axes", place: float, value: float, interval: tuple[float, float | None], colour: str, label: str = ""
) -> None:
    """A point with a line, in percent; without an upper bound the line leaves the panel."""
    low, high = interval
    known = label in axes.get_legend_handles_labels()[1]
    far = 100 * (1e3 if high is None else high)
    axes.plot([100 * low, far], [place, place], color=colour, linewidth=2.4, label="" if known else label)
    axes.plot(100 * value, place, "o", color=colour, markersize=6)


def _label_rows(axes: "Axes", labels: Sequence[str], title: str) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_title(title)
    axes.set_xlabel("%")
    axes.grid(axis="x", color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)


def _limit(axes: "Axes", intervals: Sequence[tuple[float, float | None]]) -> None:
    """Shows the intervals, but not what is beyond `WIDEST_CHANGE`."""
    highs = [WIDEST_CHANGE if high is None else min(high, WIDEST_CHANGE) for _, high in intervals]
    low, high = 100 * min([0.0, *(low for low, _ in intervals)]), 100 * max([0.0, *highs])
    room = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)


def _draw_course(axes: "Axes", course: Sequence[Mapping[str, Any] | None], colour: str) -> None:
    known = [
        (place, each) for place, each in enumerate(course) if each and each["always_valid_interval"][1] is not None
    ]
    places = [place for place, _ in known]
    changes = [100 * each["relative_change"] for _, each in known]
    lows, highs = ([100 * each["always_valid_interval"][side] for _, each in known] for side in (0, 1))
    axes.axhline(0, color=GREY, linewidth=1)
    axes.fill_between(places, lows, highs, color=colour, alpha=0.2, linewidth=0, label="always-valid interval")
    axes.plot(places, changes, "o-", color=colour, markersize=4, linewidth=1.8, label="relative change so far")
    if known:
        # the first days know little: their band would flatten the rest
        later = len(known) // 3
        low, high = min(0.0, *lows[later:]), max(0.0, *highs[later:])
        axes.set_ylim(low - 0.3 * (high - low), high + 0.3 * (high - low))
    axes.set_ylabel("%")
    axes.grid(axis="y", color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    _legend(axes)


def _thin_ticks(axes: "Axes", days: Sequence[str], most: int = 10) -> None:
    step = max(1, -(-len(days) // most))
    axes.set_xticks(range(0, len(days), step), [day[5:] for day in days[::step]])
    axes.set_xlim(-0.5, len(days) - 0.5)


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8.5, loc="best")
