"""The results of `eval budget` as tables for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from llamarl.evals.budget import AXES
from llamarl.evals.tables import Rate, fraction
from llamarl.report.text import one_line

LABELS = {"answers": "answers", "completion_tokens": "tokens", "total_tokens": "+ prompt"}


class BudgetTable:
    """The contents of `results.json` as tables for `Console.print`."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        problems = self.results["problems"]
        yield Text(f"accuracy against budget: {problems['used']:,} problems, means per problem", style="bold")
        yield Text()
        yield _points(self.results)
        for name, baseline in self.results["baselines"].items():
            yield Text()
            yield _gains(name, self.results)
            yield Text()
            yield _areas(name, baseline)
        yield from _allocation(self.results)
        yield Text()
        yield from _notes(self.results)


def _points(results: Mapping[str, Any]) -> Table:
    """Models, votes and best-of-k, a row each."""
    table = _table("", "accuracy", *LABELS.values(), "groups")
    for name, model in results["models"].items():
        shares = ", ".join(f"{group} {found['share']:.1%}" for group, found in model["groups"].items())
        table.add_row(name, fraction(model["accuracy"], with_interval=True), *_budget(model), shares)
    for name, baseline in results["baselines"].items():
        for kind, label in (("self_consistency", "vote of"), ("best_of", "best of")):
            for k, point in baseline[kind].items():
                if k != "1":
                    accuracy = fraction(point["accuracy"], with_interval=True)
                    table.add_row(f"{name}, {label} {k}", accuracy, *_budget(point), "", style="dim")
    return table


def _budget(point: Mapping[str, Any]) -> Iterator[str]:
    for axis in AXES:
        value = point["budget"][axis]["value"]
        yield "–" if value is None else f"{value:,.2f}" if axis == "answers" else f"{value:,.1f}"


def _gains(name: str, results: Mapping[str, Any]) -> Table:
    """Each model beside the baseline's votes, at the model's own mean budget."""
    table = _table(f"gain over {name}", "at equal", "budget", "votes", "model", "gain")
    for model, by_axis in results["baselines"][name]["gain"].items():
        found = results["models"][model]
        for axis, gain in by_axis.items():
            budget = found["budget"][axis]["value"]
            if budget is None:
                continue
            opponent = "–" if gain["opponent"] is None else f"{gain['opponent']:.3f}"
            shown = "beyond all votes" if gain["value"] is None else _format_sign(gain)
            mark = " *" if gain["where"] == "below" else ""
            label = "" if axis != AXES[0] else model
            table.add_row(label, LABELS[axis], f"{budget:,.2f}{mark}", opponent, fraction(found["accuracy"]), shown)
    return table


def _areas(name: str, baseline: Mapping[str, Any]) -> Table:
    table = _table("area", "under", "from", "to", "votes", "models", "gain")
    for axis, area in baseline["area"].items():
        if area["difference"] is not None:
            sides = [fraction(area[side]) for side in ("self_consistency", "models")]
            ends = [f"{area[end]:,.2f}" for end in ("low", "high")]
            table.add_row("", LABELS[axis], *ends, *sides, _format_sign(area["difference"]))
    return table


def _format_sign(rate: Rate) -> str:
    ends = "" if rate["low"] is None else f" [{rate['low']:+.3f}, {rate['high']:+.3f}]"
    return f"{rate['value']:+.3f}{ends}"


def _allocation(results: Mapping[str, Any]) -> Iterator[Text | Table]:
    """Spending by difficulty: accuracy, answers, tokens and share of each group."""
    levels = list(dict.fromkeys(level for model in results["models"].values() for level in model["levels"]))
    if not levels:
        return
    yield Text()
    table = _table("by level", "", *levels)
    for name, model in results["models"].items():
        groups = [group for group in model["groups"] if group != "short"]
        for index, label in enumerate(("accuracy", *groups, "answers", "completion_tokens")):
            found = [model["levels"].get(level) for level in levels]
            cells = ("–" if each is None else _level_cell(each, label) for each in found)
            table.add_row("" if index else name, LABELS.get(label, label), *cells)
    yield table


def _level_cell(found: Mapping[str, Any], label: str) -> str:
    if label in ("accuracy", "answers"):
        return f"{found[label]:.2f}"
    if label == "completion_tokens":
        return "–" if found[label] is None else f"{found[label]:,.1f}"
    return f"{found['shares'].get(label, 0.0):.0%}"


def _notes(results: Mapping[str, Any]) -> Iterator[Text]:
    problems = results["problems"]
    if left := problems["all"] - problems["used"]:
        yield Text(f"{left:,} problems left out of all numbers: too few judged samples of some model", style="yellow")
    for name, model in results["models"].items():
        counts = model["samples"]
        if counts["left_out"]:
            reasons = ", ".join(f"{count}× {one_line(reason, 120)}" for reason, count in counts["left_out"].items())
            yield Text(f"{name}: {counts['asked'] - counts['judged']} samples in no number: {reasons}", style="yellow")
        if counts["cut"]:
            share = counts["cut"] / counts["judged"]
            yield Text(f"{name}: {share:.1%} of samples cut at the token limit", style="yellow" if share > 0.01 else "")
    gains = [g for each in results["baselines"].values() for by_axis in each["gain"].values() for g in by_axis.values()]
    if any(gain["where"] == "below" for gain in gains):
        yield Text("* cheaper than a single answer of the opponent, which it is compared with", style="dim")
    yield Text(
        "votes: exact means over all subsets of the samples; a tie goes to the answer drawn first; one prompt per vote",
        style="dim",
    )


def _table(*headers: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for index, header in enumerate(headers):
        is_text = index == 0 or header in ("", "groups")
        table.add_column(header, justify="left" if is_text else "right", vertical="bottom", no_wrap=header != "groups")
    return table
