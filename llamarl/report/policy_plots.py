"""The figure of the offline evaluator: each policy's score, and how scores went with love rates online."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.report.plots import BLUE, GREY, LIGHT, ORANGE, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES, ROW_INCHES, MARGIN_INCHES = 6.5, 0.35, 2.2


def plot_policies(path: str | Path, result: Mapping[str, Any]) -> Path:
    """Draws the score of each policy, and beside it, where they are known, scores against love rates online.

    Args:
        path: of the PNG.
        result: of `feedback.evaluate`.

    Returns:
        The path.
    """
    online = result.get("online")
    height = max(4.0, MARGIN_INCHES + ROW_INCHES * len(result["policies"]))
    with drawing(path, PANEL_INCHES * (1 + (online is not None)), height) as figure:
        panels = figure.subplots(1, 1 + (online is not None), squeeze=False)[0]
        _draw_scores(panels[0], result)
        if online is not None:
            _draw_online(panels[1], result["policies"], online)
    return Path(path)


def _draw_scores(axes: "Axes", result: Mapping[str, Any]) -> None:
    axes.axvline(result["base_rate"], color=GREY, linestyle="--", linewidth=1.2, label="base rate of the log")
    policies = sorted(result["policies"].items(), key=lambda item: -item[1]["score"])
    for place, (_, policy) in enumerate(policies):
        axes.plot(policy["interval"], [place, place], "-", color=BLUE, linewidth=1.5)
        axes.plot([policy["score"]], [place], "o", color=BLUE, markersize=6)
    axes.set_yticks(range(len(policies)), [name for name, _ in policies])
    axes.set_ylim(len(policies) - 0.5, -0.5)
    axes.set_title(f"Offline score, {result['prompts']:,} prompts, 95% intervals")
    axes.set_xlabel("mean P[Love], corrected")
    axes.legend(fontsize=8.5)
    _finish(axes)


def _draw_online(axes: "Axes", policies: Mapping[str, Any], online: Mapping[str, Any]) -> None:
    for name, rate in online["rates"].items():
        axes.plot(policies[name]["interval"], [rate, rate], "-", color=LIGHT, linewidth=2.5)
        axes.plot([policies[name]["score"]], [rate], "o", color=ORANGE, markersize=6)
        axes.annotate(name, (policies[name]["score"], rate), (5, 5), textcoords="offset points", fontsize=8)
    r = "not defined"
    if online["pearson"] is not None:
        r = "{:.3f} ({:.3f} to {:.3f})".format(online["pearson"], *online["pearson_interval"])
    axes.set_title(f"Online against offline, {online['policies']} policies: r {r}")
    axes.set_xlabel("mean P[Love], corrected")
    axes.set_ylabel("love rate online")
    _finish(axes)


def _finish(axes: "Axes") -> None:
    axes.grid(color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
