"""Figures of plans and simulated runs: who works when, how old trained tokens are, what each size gains."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamarl.report.plots import BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, RED, SKY, drawing
from llamarl.report.text import format_seconds
from llamarl.report.timeline import Span, Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 12
"""Generators shown; of more, the first."""
MOST_STEPS = 8


def draw_simulation(
    path: str | Path,
    title: str,
    spans: Sequence[Span],
    window: Window,
    updates: Sequence[float],
    lags: Mapping[int, float],
    idle: Mapping[str, float],
) -> None:
    """Draws a simulated run as a PNG: the last steps of trainer and generators, lags of trained tokens, idle shares.

    Args:
        path: of the figure.
        title: of the first panel.
        spans: work of `trainer` and `generator-N`.
        window: the time that lags and idle shares are of.
        updates: times at which updates ended.
        lags: shares of the trained tokens by the versions they were behind.
        idle: shares of the window by side.
    """
    recent = [time for time in updates if time <= window[1]][-MOST_STEPS - 1 :]
    shown = (recent[0], window[1]) if len(recent) > 1 else window
    number = len({span.executor for span in spans if span.executor.startswith("generator-")})
    rows = ["trainer", *(f"generator-{index}" for index in range(min(number, MOST_ROWS)))]
    with drawing(path, 10.5, 3.6 + 0.24 * len(rows)) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(1 + 0.16 * len(rows), 1.3))
        gantt = figure.add_subplot(grid[0, :])
        for place, executor in enumerate(rows):
            colour = BLUE if executor == "trainer" else ORANGE
            pieces = [
                (max(span.start, shown[0]) - shown[0], min(span.end, shown[1]) - max(span.start, shown[0]))
                for span in spans
                if span.executor == executor and span.end > shown[0] and span.start < shown[1]
            ]
            gantt.broken_barh(pieces, (place - 0.36, 0.72), facecolors=colour, linewidth=0)
        for time in recent:
            gantt.axvline(time - shown[0], color=GREY, linewidth=0.8, linestyle=":")
        gantt.set_yticks(range(len(rows)), rows)
        gantt.set_ylim(len(rows) - 0.4, -0.6)
        gantt.set_xlim(0, shown[1] - shown[0])
        gantt.set_xlabel("seconds; dotted: an update ends")
        more = f", {len(rows) - 1} of {number} generators" if number > MOST_ROWS else ""
        gantt.set_title(f"{title}: the last {format_seconds(shown[1] - shown[0])}{more}")
        _bars(figure.add_subplot(grid[1, 0]), {str(lag): share for lag, share in lags.items()}, PURPLE)
        figure.axes[-1].set_title("Versions by which trained tokens are behind")
        _bars(figure.add_subplot(grid[1, 1]), dict(idle), SKY)
        figure.axes[-1].set_title("Idle share of the time")


def draw_speedups(
    path: str | Path, sizes: Sequence[str], curves: Mapping[str, Sequence[float]], title: str, label: str
) -> None:
    """Draws a ratio against model size, a line for each curve, as a PNG; a value that is not known is NaN."""
    with drawing(path, 8.6, 3.8) as figure:
        axes = figure.subplots()
        for (name, values), colour in zip(curves.items(), (BLUE, ORANGE, GREEN, RED, PURPLE, GREY), strict=False):
            known = [place for place, value in enumerate(values) if not math.isnan(value)]
            axes.plot(known, [values[place] for place in known], "o-", color=colour, linewidth=2, label=name)
        axes.axhline(1.0, color=GREY, linewidth=1, linestyle="--")
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set_yscale("log")
        axes.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        axes.minorticks_off()
        axes.set_title(title)
        axes.set_ylabel(label)
        axes.grid(color=LIGHT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8.5, loc="upper left")


def draw_shares(path: str | Path, numbers: Sequence[int], shares: Sequence[float], title: str, label: str) -> None:
    """Draws shares against numbers of devices, as a PNG."""
    with drawing(path, 8.6, 3.2) as figure:
        axes = figure.subplots()
        _bars(axes, {str(number): share for number, share in zip(numbers, shares, strict=True)}, SKY)
        axes.set_title(title)
        axes.set_xlabel(label)


def _bars(axes: "Axes", shares: Mapping[str, float], colour: str) -> None:
    axes.bar(range(len(shares)), [100 * share for share in shares.values()], color=colour, width=0.7)
    axes.set_xticks(range(len(shares)), list(shares))
    axes.set_ylim(0, 105)
    axes.set_ylabel("%")
    for place, share in enumerate(shares.values()):
        axes.text(place, 100 * share + 1.5, f"{share:.0%}", ha="center", fontsize=8.5)
