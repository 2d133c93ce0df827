"""Figures of detectors, from the plain values of `detect eval`: ROC, calibration, accuracy against coverage."""

from collections.abc import Mapping
from typing import Any

from llamarl.report.figures import Curve, LineChart

Methods = Mapping[str, Mapping[str, Any]]
"""Name -> results of a method."""
MIN_COVERAGE = 0.05
"""The share of claims below which a curve cannot be read."""
WHOLE = (0.0, 1.0)
_DIAGONAL = Curve("by chance", [(0.0, 0.0), (1.0, 1.0)], style="dashed")


def build_roc(methods: Methods) -> LineChart:
    """Factual claims recognised against hallucinated ones taken for factual."""
    curves = []
    for name, found in methods.items():
        points = sorted(zip(found["roc"]["false"], found["roc"]["true"], strict=True))
        curves.append(Curve(f"{name}, AUC {found['auc']:.3f}", points, colour=name))
        chosen = (1 - found["recall"]["hallucinated"], found["recall"]["factual"])
        curves.append(Curve(f"{name}, chosen threshold", [chosen], style="dots", colour=name))
    return LineChart(
        "ROC",
        [*curves, _DIAGONAL],
        x="hallucinated called factual",
        y="factual called factual",
        limits=WHOLE,
        caption="Each point is a threshold; the dot is the one that validation chose.",
    )


def build_calibration(methods: Methods) -> LineChart:
    """The share of factual claims against their score."""
    curves = []
    for name, found in methods.items():
        bins, error = found["calibration"]["bins"], found["calibration"]["error"]
        points = sorted((each["predicted"], each["observed"]) for each in bins)
        curves.append(Curve(f"{name}, error {error:.3f}", points, style="marked", colour=name))
    return LineChart(
        "Calibration",
        [*curves, Curve("calibrated", _DIAGONAL.points, style="dashed")],
        x="score",
        y="share that is factual",
        limits=WHOLE,
        caption="On the diagonal a score of 0.8 means that 80% of such claims are factual.",
    )


def build_coverage(methods: Methods) -> LineChart:
    """Balanced accuracy of the surest claims against their share."""
    curves = []
    for name, found in methods.items():
        points = sorted(
            (point["coverage"], point["bacc"])
            for point in found["coverage"]
            if point["coverage"] >= MIN_COVERAGE and point["bacc"] is not None
        )
        curves.append(Curve(name, points))
        hybrid = found["hybrid"]
        if hybrid["low"] is not None and hybrid["bacc_decided"] is not None:
            point = (1 - hybrid["unknown_share"], hybrid["bacc_decided"])
            curves.append(Curve(f"{name}, hybrid", [point], style="dots", colour=name))
    return LineChart(
        "Accuracy against coverage",
        curves,
        x="share of claims that is decided",
        y="BAcc of the decided claims",
        caption="The surest claims of each side are decided first. A dot is the hybrid mode.",
    )
