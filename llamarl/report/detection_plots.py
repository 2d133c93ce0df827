"""Figures of detectors, from the plain values of `detect eval`: ROC, calibration, accuracy against coverage."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.report.plots import BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, RED, SKY, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Methods = Mapping[str, Mapping[str, Any]]
"""Name -> results of a method."""
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
MIN_COVERAGE = 0.05
"""The number of claims below which a curve cannot be read."""
WIDTH_INCHES, HEIGHT_INCHES = 13, 4.6


def plot_detection(methods: Methods, path: str | Path) -> Path:
    """Draws the three panels side by side. Returns the path of the PNG."""
    with drawing(path, WIDTH_INCHES, HEIGHT_INCHES) as figure:
        for axes, panel in zip(figure.subplots(1, 3), (_draw_roc, _draw_calibration, _draw_coverage), strict=True):
            panel(axes, methods)
    return Path(path)


def _draw_roc(axes: "Axes", methods: Methods) -> None:
    """Factual claims recognised against hallucinated ones taken for factual; a dot at the chosen threshold."""
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    for (name, found), colour in zip(methods.items(), cycle(COLOURS), strict=False):
        axes.plot(found["roc"]["false"], found["roc"]["true"], color=colour, label=f"{name}, AUC {found['auc']:.3f}")
        recall = found["recall"]
        axes.plot([1 - recall["hallucinated"]], [recall["factual"]], "o", color=colour, markersize=6)
    _finish(axes, "ROC, with the chosen threshold", "hallucinated called factual", "factual called factual")
    axes.legend(fontsize=8.5, loc="lower right")


def _draw_calibration(axes: "Axes", methods: Methods) -> None:
    """The share of factual claims against their score; the area of a dot is the number of claims."""
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    for (name, found), colour in zip(methods.items(), cycle(COLOURS), strict=False):
        bins, error = found["calibration"]["bins"], found["calibration"]["error"]
        most = max(each["count"] for each in bins)
        x, y = ([each[key] for each in bins] for key in ("predicted", "observed"))
        axes.plot(x, y, color=colour, linewidth=1.2, label=f"{name}, error {error:.3f}")
        axes.scatter(x, y, s=[8 + 90 * each["count"] / most for each in bins], color=colour, alpha=0.7, linewidth=0)
    _finish(axes, "Calibration (area: claims)", "score", "share that is factual")
    axes.legend(fontsize=8.5, loc="upper left")


def _draw_coverage(axes: "Axes", methods: Methods) -> None:
    """Balanced accuracy of the surest claims against their share; a diamond at the hybrid mode."""
    for (name, found), colour in zip(methods.items(), cycle(COLOURS), strict=False):
        points = [p for p in found["coverage"] if p["coverage"] >= MIN_COVERAGE and p["bacc"] is not None]
        axes.plot([p["coverage"] for p in points], [p["bacc"] for p in points], color=colour, label=name)
        hybrid = found["hybrid"]
        if hybrid["low"] is not None and hybrid["bacc_decided"] is not None:
            axes.plot([1 - hybrid["unknown_share"]], [hybrid["bacc_decided"]], "D", color=colour, markersize=6)
    _finish(axes, "Accuracy against coverage", "share of claims that is decided", "BAcc of the decided claims")
    axes.set_ylim(bottom=min(0.5, axes.get_ylim()[0]))
    axes.legend(fontsize=8.5, loc="lower left")


def _finish(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(axes.get_ylim()[0] if "BAcc" in y else -0.02, 1.02)
    axes.grid(color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
