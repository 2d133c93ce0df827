"""The frontier figure: accuracy against budget, from the plain values of `eval budget`'s `results.json`."""

from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.report.plots import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, PURPLE, RED, SKY, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {"answers": "answers per problem", "total_tokens": "tokens per problem, prompt included"}
CURVE_COLOURS = (INK, PURPLE, SKY)
MODEL_COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
Quantity = Callable[[Mapping[str, Any]], float | None]
"""Reads a quantity from the results of a model at a level."""
WIDTH_INCHES, HEIGHT_INCHES = 12, 5.2
LEVEL_HEIGHT_INCHES = 3.0


def plot_frontier(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draws accuracy against budget in answers and in tokens; below, where the budget went, if problems have levels.

    Args:
        results: of `evals.budget.budget_results`.
        path: of the PNG, 1800 pixels wide.

    Returns:
        The path.
    """
    has_levels = any(model["levels"] for model in results["models"].values())
    with drawing(path, WIDTH_INCHES, HEIGHT_INCHES + has_levels * LEVEL_HEIGHT_INCHES) as figure:
        heights = (HEIGHT_INCHES, LEVEL_HEIGHT_INCHES) if has_levels else (HEIGHT_INCHES,)
        panels = figure.subplots(len(heights), 2, height_ratios=heights, squeeze=False)
        for axes, (axis, label) in zip(panels[0], AXES.items(), strict=True):
            _draw_frontier(axes, results, axis)
            axes.set_xlabel(label)
        panels[0][0].set_ylabel("accuracy")
        count = results["problems"]["used"]
        panels[0][0].set_title(f"Accuracy against budget, {count:,} problems, 95% intervals")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=8.5, loc="outside lower center", ncols=min(6, len(labels)))
        if has_levels:
            _draw_levels(panels[1][0], results, _share, "Share of answers that are not short, by level")
            _draw_levels(panels[1][1], results, lambda found: found["completion_tokens"], "Completion tokens by level")
    return Path(path)


def _draw_frontier(axes: "Axes", results: Mapping[str, Any], axis: str) -> None:
    is_known = False
    for (name, baseline), colour in zip(results["baselines"].items(), cycle(CURVE_COLOURS), strict=False):
        votes, best = (_points(baseline[kind].values(), axis) for kind in ("self_consistency", "best_of"))
        if votes:
            is_known = True
            budgets, values, lows, highs = (list(column) for column in zip(*votes, strict=True))
            axes.fill_between(budgets, lows, highs, color=colour, alpha=0.12, linewidth=0)
            axes.plot(budgets, values, "o-", color=colour, markersize=4, linewidth=1.6, label=f"{name}: votes")
            for k, (left, top, *_) in zip(baseline["self_consistency"], votes, strict=True):
                axes.annotate(
                    k, (left, top), (0, -11), textcoords="offset points", fontsize=7.5, color=colour, ha="center"
                )
        if best:
            axes.plot(
                [p[0] for p in best], [p[1] for p in best], ":", color=GREY, linewidth=1.4, label=f"{name}: best of k"
            )
    corners = next(iter(results["baselines"].values()))["area"][axis]["frontier"]
    if corners:
        axes.plot(*zip(*corners, strict=True), "--", color=GREY, linewidth=1, label="frontier of the models")
    for (name, model), colour in zip(results["models"].items(), cycle(MODEL_COLOURS), strict=False):
        for x, y, low, high in _points([model], axis):
            is_known = True
            budget = model["budget"][axis]
            axes.plot([budget["low"] or x, budget["high"] or x], [y, y], color=colour, linewidth=1.2)
            axes.plot([x, x], [low, high], color=colour, linewidth=1.6)
            axes.plot(x, y, "D", color=colour, markersize=7, markeredgecolor="white", label=name, zorder=4)
    _finish(axes, is_known)


def _points(found: Any, axis: str) -> list[tuple[float, float, float, float]]:
    """Budget, accuracy and its interval, where the budget is known."""
    points = []
    for point in found:
        budget, accuracy = point["budget"][axis]["value"], point["accuracy"]
        if budget is not None:
            value = accuracy["value"]
            ends = (value, value) if accuracy["low"] is None else (accuracy["low"], accuracy["high"])
            points.append((budget, value, *ends))
    return points


def _draw_levels(axes: "Axes", results: Mapping[str, Any], quantity: Quantity, title: str) -> None:
    """Draws what each model spends on problems of each level."""
    levels = list(dict.fromkeys(level for model in results["models"].values() for level in model["levels"]))
    is_known = False
    for model, colour in zip(results["models"].values(), cycle(MODEL_COLOURS), strict=False):
        values = [quantity(found) if (found := model["levels"].get(level)) else None for level in levels]
        known = [(n, value) for n, value in enumerate(values) if value is not None]
        is_known = is_known or bool(known)
        axes.plot([n for n, _ in known], [value for _, value in known], "D-", color=colour, markersize=4, linewidth=1.4)
    axes.set_xticks(range(len(levels)), levels)
    axes.set_title(title)
    axes.set_xlabel("level")
    _finish(axes, is_known)
    if is_known:
        axes.set_ylim(bottom=0)


def _share(found: Mapping[str, Any]) -> float:
    """The share of answers in a form that isn't `short`."""
    return float(sum(share for group, share in found["shares"].items() if group not in ("short", "none")))


def _finish(axes: "Axes", is_known: bool) -> None:
    if not is_known:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    axes.grid(color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
