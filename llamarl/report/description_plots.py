"""The figures of a store of messages: love rates by day and by segment, and what one could learn from, compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llamarl.report.plots import BLUE, GREY, LIGHT, ORANGE, SKY, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES, DAY_INCHES, ROW_INCHES, FRAME_INCHES = 11.0, 3.2, 0.3, 1.0
MOST_SEGMENTS = 12
"""Segments of one kind that a figure shows, those with the most messages."""
NOT_SAID = "not said"
MANY_DAYS = 60
"""The most days that are drawn as points: with more, a point would hide its neighbours."""


def plot_description(path: str | Path, result: Mapping[str, Any]) -> Path:
    """Draws the love rate by day, by segment, and the signals compared, one below the other.

    Args:
        path: of the PNG.
        result: of `feedback.describe`.

    Returns:
        The path.
    """
    parts: list[tuple[float, Callable[[Figure], None]]] = [
        (DAY_INCHES, lambda figure: _draw_days(figure, result)),
        (_segments_inches(result), lambda figure: _draw_segments(figure, result)),
        (_signals_inches(result), lambda figure: _draw_signals(figure, result)),
    ]
    heights = [height for height, _ in parts]
    with drawing(path, WIDTH_INCHES, sum(heights)) as figure:
        places: Any = figure.subfigures(len(parts), 1, height_ratios=heights)
        for place, (_, draw) in zip(places, parts, strict=True):
            draw(place)
    return Path(path)


def _draw_days(figure: "Figure", result: Mapping[str, Any]) -> None:
    axes: Any = figure.subplots()  # the stubs know no dates
    rates = [rate for rate in result["by"]["day"] if rate["segment"] is not None]
    days = [date.fromisoformat(rate["segment"]) for rate in rates]
    lows, highs = zip(*(rate["interval"] for rate in rates), strict=True)
    axes.fill_between(days, lows, highs, color=SKY, alpha=0.35, linewidth=0, label="95% interval, over users")
    style = "o-" if len(days) <= MANY_DAYS else "-"
    axes.plot(days, [rate["rate"] for rate in rates], style, color=BLUE, markersize=4, linewidth=1.5)
    if len(days) == 1:  # a band of no width is not seen
        axes.plot([days[0]] * 2, [lows[0], highs[0]], color=SKY, linewidth=4)
    _draw_base_rate(axes.axhline, result)
    axes.set_title("Love rate by day")
    axes.set_ylim(0, _top([*highs, result["base_rate"]]))
    axes.yaxis.set_major_formatter(_percent)
    axes.legend(fontsize=8.5, loc="lower left", ncols=2)
    _finish(axes, "y")
    _write_days(axes)


def _write_days(axes: "Axes") -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=1, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _kinds(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The segments to draw, by what they are segments of."""
    return {
        name: sorted(rates, key=lambda rate: -rate["messages"])[:MOST_SEGMENTS]
        for name, rates in result["by"].items()
        if name != "day"
    }


def _segments_inches(result: Mapping[str, Any]) -> float:
    return FRAME_INCHES + ROW_INCHES * max(3, *map(len, _kinds(result).values()))


def _draw_segments(figure: "Figure", result: Mapping[str, Any]) -> None:
    kinds = _kinds(result)
    top = _top([rate["interval"][1] for rates in kinds.values() for rate in rates])
    for axes, (name, rates) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds.items(), strict=True):
        for place, rate in enumerate(rates):
            _draw_interval(axes, place, rate["rate"], rate["interval"], BLUE)
        _draw_base_rate(axes.axvline, result)
        hidden = len(result["by"][name]) - len(rates)
        axes.set_title(f"By {name.replace('_', ' ')}" + (f" ({hidden} more)" if hidden else ""))
        axes.set_xlim(0, top)
        axes.xaxis.set_major_formatter(_percent)
        _name_rows(axes, [NOT_SAID if rate["segment"] is None else rate["segment"] for rate in rates])
        _finish(axes, "x")


def _signals_inches(result: Mapping[str, Any]) -> float:
    return FRAME_INCHES + ROW_INCHES * max(3, len(result["signals"]))


def _draw_signals(figure: "Figure", result: Mapping[str, Any]) -> None:
    volume, correlation, ambiguity = figure.subplots(1, 3, sharey=True)
    signals = result["signals"]
    for place, signal in enumerate(signals):
        volume.barh(place, signal["share"], height=0.55, color=BLUE)
        for axes, key, colour in ((correlation, "correlation", BLUE), (ambiguity, "ambiguity", ORANGE)):
            if signal[key] is None:
                axes.annotate("not known", (0.02, place), xycoords=("axes fraction", "data"), color=GREY, fontsize=8)
            else:
                _draw_interval(axes, place, signal[key], signal[f"{key}_interval"], colour)
    _name_rows(volume, [signal["name"] for signal in signals])
    volume.set_title("Good signals, share of messages")
    volume.set_xlim(0, _top([signal["share"] for signal in signals]))
    correlation.set_title("r with the outcome, over users")
    correlation.axvline(0.0, color=GREY, linewidth=1.0)
    ambiguity.set_title("Ambiguity: another signal objects")
    ambiguity.set_xlim(0, _top([signal["ambiguity_interval"][1] for signal in signals if signal["ambiguity_interval"]]))
    for axes in (volume, ambiguity):
        axes.xaxis.set_major_formatter(_percent)
    for axes in (volume, correlation, ambiguity):
        _finish(axes, "x")


def _draw_interval(axes: "Axes", place: int, value: float, interval: Sequence[float], colour: str) -> None:
    ends = [end if math.isfinite(end) else value for end in interval]
    axes.plot(ends, [place, place], "-", color=colour, linewidth=1.8)
    axes.plot([value], [place], "o", color=colour, markersize=5)


def _draw_base_rate(draw_line: Callable[..., object], result: Mapping[str, Any]) -> None:
    label = f"all messages {result['base_rate']:.2%}"
    draw_line(result["base_rate"], color=GREY, linestyle="--", linewidth=1.2, label=label)


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(max(3, len(names)) - 0.5, -0.5)


def _top(values: Sequence[float]) -> float:
    return min(1.0, 1.1 * max(values, default=0.0)) or 1.0


def _percent(value: float, _: object) -> str:
    return f"{value:.3g}%" if (value := 100 * value) < 1 else f"{value:.4g}%"


def _finish(axes: "Axes", grid: Literal["x", "y"]) -> None:
    axes.grid(axis=grid, color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
