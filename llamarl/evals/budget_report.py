"""The page of `eval budget`, from the plain values of its `results.json`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console

import llamarl
from llamarl.evals.budget_table import BudgetTable
from llamarl.evals.tables import WIDE
from llamarl.report.figures import Curve, LineChart
from llamarl.report.page import Notes, Page, Part, Section, Table, parts_of

PAGE_FILE = "report.html"
AXES = {"answers": "answers per problem", "total_tokens": "tokens per problem, prompt included"}
Quantity = Callable[[Mapping[str, Any]], float | None]
"""Reads a quantity from the results of a model at a level."""


def build_page(results: Mapping[str, Any]) -> Page:
    """The page: accuracy against budget, what it is spent on, and the tables.

    Args:
        results: of `evals.budget.budget_results`.
    """
    console = Console(width=WIDE)
    _, *shown = parts_of(BudgetTable(results).__rich_console__(console, console.options))
    tables = [part for part in shown if isinstance(part, Table)]
    said = [part for part in shown if isinstance(part, str) and part]
    levels: list[Part] = list(_levels(results))
    return Page(
        title="Accuracy against budget",
        subtitle=f"{results['problems']['used']:,} problems, means per problem: {', '.join(results['models'])}",
        parts=[
            Section("Frontier", [_frontier(results, axis, label) for axis, label in AXES.items()]),
            *([Section("By level", levels)] if levels else []),
            Section("In numbers", tables),
            Section("To know", [Notes(said)]),
        ],
        footer=f"llamarl {llamarl.__version__}, eval budget. Intervals are 95%.",
    )


def _frontier(results: Mapping[str, Any], axis: str, label: str) -> LineChart:
    curves = []
    for name, baseline in results["baselines"].items():
        votes = list(_points(baseline["self_consistency"].values(), axis))
        if votes:
            points, band = [(x, y) for x, y, *_ in votes], [(low, high) for *_, low, high in votes]
            curves.append(Curve(f"{name}: votes", points, band, style="marked"))
        if best := [(x, y) for x, y, *_ in _points(baseline["best_of"].values(), axis)]:
            curves.append(Curve(f"{name}: best of k", best))
    if corners := next(iter(results["baselines"].values()))["area"][axis]["frontier"]:
        curves.append(Curve("frontier of the models", [tuple(corner) for corner in corners], style="dashed"))
    for name, model in results["models"].items():
        found = list(_points([model], axis))
        if found:
            points, band = [(x, y) for x, y, *_ in found], [(low, high) for *_, low, high in found]
            curves.append(Curve(name, points, band, style="dots"))
    is_known = any(curve.style != "dashed" for curve in curves)
    caption = "" if is_known else f"{label[:1].upper()}{label[1:]}: not recorded."
    return LineChart(f"Accuracy by {label}", curves, x=label, caption=caption)


def _points(found: Any, axis: str) -> Iterator[tuple[float, float, float, float]]:
    """Yields budget, accuracy and its interval, the smallest budget first, where the budget is known."""
    known = [point for point in found if point["budget"][axis]["value"] is not None]
    for point in sorted(known, key=lambda point: point["budget"][axis]["value"]):
        value, low, high = (point["accuracy"][end] for end in ("value", "low", "high"))
        yield point["budget"][axis]["value"], value, value if low is None else low, value if high is None else high


def _levels(results: Mapping[str, Any]) -> Iterator[LineChart]:
    """Yields what each model spends on problems of each level, where problems have levels."""
    levels = list(dict.fromkeys(level for model in results["models"].values() for level in model["levels"]))
    if levels:
        yield _by_level(results, levels, _share, "Share of answers that are not short", is_share=True)
        yield _by_level(results, levels, lambda found: found["completion_tokens"], "Completion tokens")


def _by_level(
    results: Mapping[str, Any], levels: list[str], quantity: Quantity, title: str, is_share: bool = False
) -> LineChart:
    curves = []
    for name, model in results["models"].items():
        known = [(place, model["levels"][level]) for place, level in enumerate(levels) if level in model["levels"]]
        curves.append(Curve(name, [(place, quantity(found)) for place, found in known], style="marked"))
    return LineChart(title, curves, x="level", x_names=levels, unit="%" if is_share else "")


def _share(found: Mapping[str, Any]) -> float:
    """The share of answers in a form that isn't `short`."""
    return float(sum(share for group, share in found["shares"].items() if group not in ("short", "none")))
