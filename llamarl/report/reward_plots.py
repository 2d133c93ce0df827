"""The figure of a reward model or classifier: how it was learned, how far its confidence can be trusted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.functional.statistics import Bin
from llamarl.report.metrics import column
from llamarl.report.plots import BLUE, GREEN, GREY, LIGHT, ORANGE, RED, SKY, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]
"""(answer tokens, score) of answers."""


def plot_reward_model(
    path: str | Path,
    records: Sequence[Mapping[str, Any]],
    bins: Sequence[Bin],
    answers: Mapping[str, Points],
    title: str,
) -> Path:
    """Draws one page: learning curve, accuracy, calibration, and score against length.

    Args:
        path: of the PNG, 1800 pixels wide.
        records: of `metrics.jsonl`.
        bins: of the calibration, on held-out rows; none leave the panel empty.
        answers: held-out answers by kind, such as `chosen` and `rejected`.
        title: of the page.

    Returns:
        The path.
    """
    with drawing(path, 12, 7.5) as figure:
        figure.suptitle(title, fontsize=11)
        panels = figure.subplots(2, 2)
        _curves(panels[0, 0], records, "Loss", (("train/loss", SKY, "training"), ("eval/loss", RED, "held out")))
        _curves(
            panels[0, 1], records, "Accuracy", (("train/accuracy", SKY, "training"), ("eval/accuracy", RED, "held out"))
        )
        _calibration(panels[1, 0], bins)
        _lengths(panels[1, 1], answers)
    return Path(path)


def _curves(
    axes: "Axes", records: Sequence[Mapping[str, Any]], title: str, curves: Sequence[tuple[str, str, str]]
) -> None:
    for name, colour, label in curves:
        steps, values = column(records, name)
        axes.plot(steps, values, "o-" if name.startswith("eval/") else "-", color=colour, markersize=4, label=label)
    if title == "Accuracy":
        steps, low = column(records, "eval/accuracy/low")
        high = column(records, "eval/accuracy/high")[1]
        axes.fill_between(steps, low, high, color=RED, alpha=0.15, linewidth=0, label="95% interval")
        axes.set_ylim(0, 1.02)
    axes.set_title(title)
    _label(axes, "optimizer step", "")


def _calibration(axes: "Axes", bins: Sequence[Bin]) -> None:
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2, label="perfect")
    axes.plot([b.predicted for b in bins], [b.observed for b in bins], "-", color=BLUE, linewidth=1.2)
    largest = max((b.count for b in bins), default=1)
    sizes = [20 + 180 * b.count / largest for b in bins]
    axes.scatter([b.predicted for b in bins], [b.observed for b in bins], s=sizes, color=BLUE, label="held out")
    axes.set_xlim(min([0.5, *(b.predicted for b in bins)]) - 0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title("Calibration (area: rows in the bin)")
    _label(axes, "predicted probability", "observed frequency")


def _lengths(axes: "Axes", answers: Mapping[str, Points]) -> None:
    for (label, points), colour in zip(answers.items(), (GREEN, ORANGE), strict=False):
        axes.plot(
            [tokens for tokens, _ in points],
            [score for _, score in points],
            ".",
            color=colour,
            alpha=0.5,
            markersize=5,
            label=label,
        )
    axes.set_title("Score against length")
    _label(axes, "answer tokens", "score")


def _label(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8.5)
