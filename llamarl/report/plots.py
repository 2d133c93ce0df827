"""Figures of a run. The one module that imports matplotlib, and only when a figure is drawn; no display is needed.

Colours are those of Okabe and Ito, which people with colour-blindness can tell apart.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from llamarl.core import metric_names as names
from llamarl.core.errors import ConfigError
from llamarl.report.colours import PALETTE, colour_indices
from llamarl.report.metrics import column
from llamarl.report.monitors import LoggedReading, last_readings
from llamarl.report.names import describe
from llamarl.report.recipe_values import run_title
from llamarl.report.rundir import RunFiles, read_run
from llamarl.report.text import figure_text, format_number, format_seconds
from llamarl.report.timeline import Span, Window, extent, utilisation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, LIGHT, INK = "#CC79A7", "#56B4E9", "#8A8A8A", "#E4E4E4", "#333333"
MONITOR_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, INK, GREY)
MONITORS_INCHES = 2.2
MOST_TIMES = 64.0
"""Changes of a monitor beyond this, or below its inverse, are drawn at the edge."""
WAITING = "waiting"
DPI = 150
PANEL_STYLE = {
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
}


def plot_run(run_dir: str | Path, path: str | Path) -> Path:
    """Draws one page of a run: reward, staleness, mismatch, speed, completion length, monitors, and who worked when.

    Args:
        run_dir: of a finished, running or crashed run.
        path: of the PNG, 1800 pixels wide.

    Returns:
        The path.

    Raises:
        DataError: see `read_run`.
    """
    import matplotlib as mpl

    run = read_run(run_dir)
    monitors = list(last_readings(run.metrics))
    with mpl.rc_context(PANEL_STYLE):
        figure = _figure(12, 10.5 + MONITORS_INCHES * bool(monitors))
        grid = figure.add_gridspec(4 + bool(monitors), 2, height_ratios=(2.1, 1, 1, *[1.25] * bool(monitors), 1.25))
        _reward_panel(figure.add_subplot(grid[0, :]), run)
        _staleness_panel(figure.add_subplot(grid[1, 0]), run)
        _mismatch_panel(figure.add_subplot(grid[1, 1]), run)
        _curve_panel(figure.add_subplot(grid[2, 0]), run, names.TOKENS_PER_SECOND, "Generation speed", SKY)
        _length_panel(figure.add_subplot(grid[2, 1]), run)
        if monitors:
            _monitors_panel(figure.add_subplot(grid[3, :]), run, monitors)
        _timeline_panel(figure.add_subplot(grid[-1, :]), run.spans, _last_part(run))
        return _save(figure, path)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Mean over a window of `width` values centred on each, shorter at the ends."""
    half = width // 2
    windows = (values[max(0, index - half) : index + half + 1] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]


@contextmanager
def drawing(path: str | Path, width: float, height: float) -> "Iterator[Figure]":
    """An empty figure of so many inches in the style of all figures; what is drawn on it is saved at the end.

    Raises:
        ConfigError: no figure can be written under a name that ends like this.
    """
    import matplotlib as mpl
    from matplotlib.backend_bases import FigureCanvasBase

    if (suffix := Path(path).suffix) and suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise ConfigError(f"{path}: no figure is written as {suffix}; give a name that ends in .png, .svg or .pdf")
    with mpl.rc_context(PANEL_STYLE):
        figure = _figure(width, height)
        yield figure
        _save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace_unshown(figure)
    figure.savefig(path, dpi=DPI)
    return path


def _replace_unshown(figure: "Figure") -> None:
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # names of runs, models and judges are anybody's
        text.set_text(figure_text(text.get_text()))


def _reward_panel(axes: "Axes", run: RunFiles) -> None:
    steps, values = column(run.metrics, names.REWARD)
    width = max(5, len(values) // 20 | 1)
    axes.plot(steps, values, ".", color=SKY, alpha=0.55, markersize=5, label="each step")
    if len(values) >= 2 * width:
        axes.plot(steps, smooth(values, width), color=BLUE, linewidth=2.2, label=f"mean of {width} steps")
    held_out = column(run.metrics, names.HELD_OUT_REWARD)
    if held_out[0]:  # what lies between two evaluations nobody measured
        axes.plot(*held_out, "D", color=RED, markersize=6, label="held-out prompts")
    if run.summary is not None:
        _level(axes, run.summary.reward_before, "held-out before", GREY, "--")
        _level(axes, run.summary.reward_after, "held-out after", GREEN, "--")
    axes.set_title(": ".join(filter(None, (f"Reward of {run.path.name}", run_title(run.recipe)))))
    axes.set_ylabel("mean reward")
    _finish(axes, bool(values), "upper left" if not values or values[-1] < values[0] else "lower right")


def _level(axes: "Axes", value: float | None, label: str, colour: str, style: str) -> None:
    if value is not None:
        axes.axhline(value, color=colour, linestyle=style, linewidth=1.6, label=f"{label} {format_number(value)}")


def _staleness_panel(axes: "Axes", run: RunFiles) -> None:
    steps, largest = column(run.metrics, names.STALENESS_MAX)
    mean_steps, means = column(run.metrics, names.STALENESS_MEAN)
    axes.fill_between(steps, largest, step="mid", color=LIGHT, label="oldest token")
    axes.plot(mean_steps, means, color=PURPLE, linewidth=1.6, label="mean")
    _whole_numbers(axes.yaxis)
    axes.set_ylim(0, max(1, *largest) * 1.35 if largest else 1)
    axes.set_title("Staleness of trained tokens")
    axes.set_ylabel("policy versions")
    _finish(axes, bool(steps or mean_steps), "upper right", columns=2)


def _mismatch_panel(axes: "Axes", run: RunFiles) -> None:
    is_empty = True
    for name, colour, label in (
        (names.MISMATCH_KL, RED, "KL per token (nats)"),
        (names.MISMATCH_PROB_MAX, ORANGE, "largest probability gap"),
    ):
        steps, values = column(run.metrics, name)
        positive = [(step, abs(value)) for step, value in zip(steps, values, strict=True) if value]
        if positive:
            axes.plot(*zip(*positive, strict=True), color=colour, linewidth=1.4, label=label)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # its own writes powers in TeX
        is_empty = is_empty and not steps
    axes.set_title("Generator against trainer, same tokens")
    axes.set_ylabel("mismatch")
    _finish(axes, not is_empty, "best")


def _curve_panel(axes: "Axes", run: RunFiles, name: str, title: str, colour: str) -> None:
    steps, values = column(run.metrics, name)
    axes.plot(steps, values, color=colour, linewidth=1.5)
    axes.set_title(title)
    axes.set_ylabel(describe(name).unit)
    axes.set_ylim(0, 1.15 * max(values) if values and max(values) > 0 else 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _finish(axes, bool(values))


def _length_panel(axes: "Axes", run: RunFiles) -> None:
    longest = column(run.metrics, names.RESPONSE_LENGTH_MAX)
    mean = column(run.metrics, names.RESPONSE_LENGTH)
    axes.plot(*longest, color=GREY, linewidth=1.2, label="longest")
    axes.plot(*mean, color=GREEN, linewidth=1.8, label="mean")
    top = max([*longest[1], *mean[1]], default=1.0)
    axes.set_ylim(0, 1.3 * top if top > 0 else 1)
    axes.set_title("Completion length")
    axes.set_ylabel("tokens")
    _finish(axes, bool(mean[1]), "upper right", columns=2)


def _monitors_panel(axes: "Axes", run: RunFiles, monitors: Sequence[LoggedReading]) -> None:
    """Draws what each monitor counts in times of the control's, in doublings; a bold point where it rings."""
    axes.axhline(1.0, color=GREY, linewidth=1.0)
    is_empty = True
    for place, monitor in enumerate(monitors):
        colour = MONITOR_COLOURS[place % len(MONITOR_COLOURS)]
        steps, ratios = column(run.metrics, f"{monitor.prefix}ratio")
        shown = {step: _within(ratio) for step, ratio in zip(steps, ratios, strict=True)}
        axes.plot(list(shown), list(shown.values()), color=colour, linewidth=1.5, label=monitor.name)
        ringing = {step for step, level in zip(*column(run.metrics, f"{monitor.prefix}level"), strict=True) if level}
        rings = [(step, ratio) for step, ratio in shown.items() if step in ringing]
        axes.plot([step for step, _ in rings], [ratio for _, ratio in rings], "o", color=colour, markersize=6)
        is_empty = is_empty and not shown
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("Monitors, times the control's (points: it warns or stops)")
    axes.set_ylabel("times")
    _finish(axes, not is_empty, "upper left", columns=min(6, len(monitors)))


def _within(ratio: float) -> float:
    """A change as it is drawn: an extreme one, or none at all, at the edge."""
    return min(max(ratio, 1 / MOST_TIMES), MOST_TIMES)


def _finish(axes: "Axes", has_data: bool, legend: str = "", columns: int = 1) -> None:
    """Grid, x axis, legend; or the words `not recorded`."""
    axes.set_xlabel("optimizer step")
    if not has_data:
        _say_empty(axes)
        return
    axes.grid(axis="y", color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    _whole_numbers(axes.xaxis)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(loc=legend, ncols=columns, fontsize=8.5)


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _say_empty(axes: "Axes") -> None:
    axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])


def _timeline_panel(axes: "Axes", spans: Sequence[Span], window: Window) -> None:
    axes.set_title("Who worked when")
    inside = [span for span in spans if span.end > window[0] and span.start < window[1]]
    if not inside or window[1] <= window[0]:
        _say_empty(axes)
        return
    executors = list(dict.fromkeys(span.executor for span in spans))
    colours = _activity_colours(inside)
    for activity, colour in colours.items():
        for row, executor in enumerate(executors):
            pieces = [_clip(s, window) for s in inside if s.executor == executor and _activity_label(s) == activity]
            axes.broken_barh(pieces, (row - 0.36, 0.72), facecolors=colour, linewidth=0)
        axes.plot([], [], "s", color=colour, label=activity)
    busy = utilisation(spans)
    axes.set_yticks(range(len(executors)), [f"{name}  {busy[name]:.0%}" for name in executors])
    axes.set_ylim(len(executors) - 0.4, -0.6)
    axes.set_xlim(0, window[1] - window[0])
    whole = extent(spans)
    part = "" if window == whole else f"; the last {format_seconds(window[1] - window[0])} shown"
    axes.set_title(f"Who worked when (busy share of all {format_seconds(whole[1] - whole[0])}{part})")
    axes.set_xlabel("seconds")
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=min(8, len(colours)), fontsize=8.5)


def _clip(span: Span, window: Window) -> Window:
    """Start within the window, and length."""
    start = max(span.start, window[0])
    return start - window[0], min(span.end, window[1]) - start


def _activity_label(span: Span) -> str:
    return span.activity if span.is_busy else WAITING


def _activity_colours(spans: Sequence[Span]) -> dict[str, str]:
    """A colour per activity, the same in every figure; waiting is light grey and comes first, under the others."""
    shown = dict.fromkeys(_activity_label(span) for span in spans)
    colours = {WAITING: LIGHT} if WAITING in shown else {}
    busy = colour_indices(activity for activity in shown if activity != WAITING)
    return colours | {name: PALETTE[index] for name, index in busy.items()}


def _last_part(run: RunFiles) -> Window:
    """The last twelve steps' time, or all of it where steps are not timed."""
    start, end = extent(run.spans)
    step_times = column(run.metrics, names.TIME_STEP)[1]
    length = 12 * median(step_times) if step_times else end - start
    return max(start, end - length), end
