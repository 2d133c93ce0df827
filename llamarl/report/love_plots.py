"""The figure of P[Love]: what it tells apart, how far its probabilities can be trusted, and where."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.functional.statistics import wilson_interval
from llamarl.report.metrics import column
from llamarl.report.plots import BLUE, GREY, LIGHT, ORANGE, RED, SKY, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[int, float, bool]
"""Response tokens, corrected logit, and whether it was loved, of a held-out message."""
MOST_POINTS = 4000
"""Points of the scatter; of more, every so many-th is drawn, and all count for the means."""
MOST_SEGMENTS = 12


def plot_love(
    path: str | Path,
    records: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    points: Sequence[Point],
    title: str,
) -> Path:
    """Draws one page: loss, ROC, calibration, score against length, AUROC and love rate by segment.

    Args:
        path: of the PNG, 1950 pixels wide.
        records: of `metrics.jsonl`.
        report: plain values of a `LoveReport`.
        points: of all held-out messages.
        title: of the page.

    Returns:
        The path.
    """
    parts = [(name, *item) for name, values in report["by"].items() for item in values.items()]
    segments = [(f"{name}: {value or 'not said'}", part) for name, value, part in parts[:MOST_SEGMENTS]]
    with drawing(path, 13, 8) as figure:
        figure.suptitle(title, fontsize=11)
        # apart, so that the names of segments take no room from the upper row
        above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
        loss, roc, calibration = above.subplots(1, 3)
        _draw_loss(loss, records)
        _draw_roc(roc, points, report)
        _draw_calibration(calibration, report)
        lengths, auroc, rate = below.subplots(1, 3)
        _draw_lengths(lengths, points, report)
        _draw_auroc_by_segment(auroc, [("all", report), *segments])
        _draw_rate_by_segment(rate, [("all", report), *segments])
    return Path(path)


def _draw_loss(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    axes.plot(*column(records, "train/loss"), color=SKY, linewidth=1.0, label="training, at its share of loved")
    axes.plot(*column(records, "eval/loss"), "o-", color=RED, markersize=4, label="held out, at the base rate")
    axes.set_title("Loss")
    axes.set_ylim(bottom=0)
    _finish(axes, "optimizer step", "nats")


def _draw_roc(axes: "Axes", points: Sequence[Point], report: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2)
    axes.plot(*_roc([(logit, loved) for _, logit, loved in points]), color=BLUE, linewidth=1.8)
    axes.set_title(f"ROC: AUROC {_with_interval(report['auroc'], report['auroc_interval'])}")
    axes.set_aspect("equal")
    _finish(axes, "share of other messages above", "share of loved messages above")


def _roc(scored: Sequence[tuple[float, bool]]) -> tuple[list[float], list[float]]:
    """Shares of others and of loved messages above each score; equal scores make one step."""
    loves = sum(loved for _, loved in scored)
    others, found = max(1, len(scored) - loves), max(1, loves)
    left, up, last = [0.0], [0.0], None
    false, true = 0, 0
    for logit, loved in sorted(scored, reverse=True):
        if last is not None and logit != last:
            left.append(false / others)
            up.append(true / found)
        true, false, last = true + loved, false + (not loved), logit
    return [*left, 1.0], [*up, 1.0]


def _draw_calibration(axes: "Axes", report: Mapping[str, Any]) -> None:
    bins = report["bins"]
    predicted, observed = ([b[name] for b in bins] for name in ("predicted", "observed"))
    intervals = [wilson_interval(b["observed"] * b["count"], b["count"]) for b in bins]
    gaps = [
        [max(0.0, rate - low) for rate, (low, _) in zip(observed, intervals, strict=True)],
        [max(0.0, high - rate) for rate, (_, high) in zip(observed, intervals, strict=True)],
    ]
    top = max([*predicted, *(high for _, high in intervals), 1e-3]) * 1.05
    axes.plot([0, top], [0, top], "--", color=GREY, linewidth=1.2, label="perfect")
    axes.errorbar(predicted, observed, yerr=gaps, fmt="o", color=BLUE, markersize=4, linewidth=1.2, capsize=2)
    axes.set_xlim(0, max([*predicted, 1e-3]) * 1.1)
    axes.set_ylim(0, top)
    axes.locator_params(axis="x", nbins=5)
    count = round(sum(b["count"] for b in bins) / max(1, len(bins)))
    axes.set_title(f"Calibration ({len(bins)} bins of {count:,} or so)")
    _finish(axes, "P[Love], corrected", "share loved")


def _draw_lengths(axes: "Axes", points: Sequence[Point], report: Mapping[str, Any]) -> None:
    shown = points[:: -(-len(points) // MOST_POINTS)]
    for loved, colour, label in ((False, LIGHT, "not loved"), (True, ORANGE, "loved")):
        some = [(tokens, logit) for tokens, logit, is_loved in shown if is_loved is loved]
        axes.plot(*(zip(*some, strict=True) if some else ([], [])), ".", color=colour, markersize=4, label=label)
    axes.plot(*_means_by_length(points), "o-", color=BLUE, markersize=4, linewidth=1.5, label="mean")
    r = _with_interval(report["length_correlation"], report["length_correlation_interval"], "+.2f")
    axes.set_title(f"Score against length: r {r}", fontsize=9.5)
    _finish(axes, "response tokens", "log-odds of P[Love]")


def _means_by_length(points: Sequence[Point], num_bins: int = 8) -> tuple[list[float], list[float]]:
    """Mean length and mean score of messages in groups of similar length and equal size."""
    ordered = sorted(points)
    cuts = [index * len(ordered) // num_bins for index in range(num_bins + 1)]
    groups = [ordered[a:b] for a, b in itertools.pairwise(cuts) if a < b]
    lengths = [sum(tokens for tokens, *_ in group) / len(group) for group in groups]
    return lengths, [sum(logit for _, logit, _ in group) / len(group) for group in groups]


def _draw_auroc_by_segment(axes: "Axes", segments: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1.2)
    for place, (_, part) in enumerate(segments):
        if part["auroc"] is not None:
            axes.plot(part["auroc_interval"], [place, place], "-", color=BLUE, linewidth=1.5)
            axes.plot([part["auroc"]], [place], "o", color=BLUE, markersize=5)
    axes.set_title("AUROC by segment, 95% intervals")
    _name_segments(axes, [(f"{name} ({part['loves']:,} / {part['messages']:,})", part) for name, part in segments])
    _finish(axes, "AUROC", "")


def _draw_rate_by_segment(axes: "Axes", segments: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    for place, (_, part) in enumerate(segments):
        axes.plot(part["observed_interval"], [place, place], "-", color=ORANGE, linewidth=3, alpha=0.4)
        for name, mark, colour, label in (
            ("observed_rate", "o", ORANGE, "observed"),
            ("mean_probability", "d", BLUE, "predicted"),
        ):
            axes.plot([part[name]], [place], mark, color=colour, markersize=5, label="" if place else label)
    axes.set_xlim(left=0)
    axes.set_title("Love rate by segment")
    _name_segments(axes, [("", part) for _, part in segments])  # as on the left
    _finish(axes, "share of messages loved", "")


def _name_segments(axes: "Axes", segments: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    axes.set_yticks(range(len(segments)), [name for name, _ in segments])
    axes.set_ylim(len(segments) - 0.5, -0.5)


def _with_interval(value: float | None, interval: tuple[float, float] | None, form: str = ".3f") -> str:
    if value is None or interval is None:
        return "not defined"
    return f"{value:{form}} ({interval[0]:{form}} to {interval[1]:{form}})"


def _finish(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
