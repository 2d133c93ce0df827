"""The figures of the release gate: the change of the predicted love rate, and of what the monitors count."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llamarl.report.plots import GREEN, GREY, LIGHT, ORANGE, RED, render_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_INCHES, ROW_INCHES, FRAME_INCHES = 8.0, 0.34, 0.9
SMALLEST, LARGEST = 1 / 16, 64.0
"""Changes beyond these are drawn at the edge."""
COLOURS = {"quiet": GREEN, "warn": ORANGE, "stop": RED}


def draw_love(love: Mapping[str, Any], margin: float) -> str:
    """The relative change with its interval, beside what is tolerated; an `svg` element."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        change, ends = love["change"]["relative_change"], love["change"]["relative_interval"]
        colour = {"blocked": RED, "undecided": ORANGE, "passed": GREEN}[love["outcome"]]
        axes.axvline(0.0, color=GREY, linewidth=1.0)
        axes.axvline(-margin, color=RED, linewidth=1.2, linestyle="--")
        if ends is not None:
            axes.plot(ends, [0, 0], "-", color=colour, linewidth=2.5)
        axes.plot([change], [0], "o", color=colour, markersize=8)
        axes.set_yticks([])
        axes.set_xlabel("relative change of the predicted love rate; dashed: what is tolerated")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.1%}")
        axes.grid(axis="x", color=LIGHT, linewidth=0.6)

    return render_svg(draw, WIDTH_INCHES, FRAME_INCHES + ROW_INCHES)


def draw_monitors(monitors: Sequence[Mapping[str, Any]], warn: float, stop: float) -> str:
    """The change of each monitor with its interval, on a scale of doublings; an `svg` element."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.set_xscale("log", base=2)
        for limit, colour in ((1.0, GREY), (warn, ORANGE), (stop, RED)):
            axes.axvline(limit, color=colour, linewidth=1.2, linestyle="-" if limit == 1.0 else "--")
        for place, each in enumerate(monitors):
            low, high = each["interval"]
            colour = COLOURS[each["level"]]
            axes.plot(
                [_clip(low or 0.0), _clip(math.inf if high is None else high)],
                [place, place],
                "-",
                color=colour,
                linewidth=2.0,
            )
            if each["ratio"] is not None:
                axes.plot([_clip(each["ratio"])], [place], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(monitors)), [each["monitor"] for each in monitors])
        axes.set_ylim(len(monitors) - 0.5, -0.5)
        axes.set_xlim(SMALLEST * 0.9, LARGEST * 1.1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("times the control's")
        axes.grid(axis="x", color=LIGHT, linewidth=0.6)

    return render_svg(draw, WIDTH_INCHES, FRAME_INCHES + ROW_INCHES * max(2, len(monitors)))


def _clip(value: float) -> float:
    return min(max(value, SMALLEST), LARGEST)
