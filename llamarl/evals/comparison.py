"""Two evaluations of the same data side by side, with paired intervals of their differences.

    comparison = compare("runs/before", "runs/after")
    comparison["modes"]["official"]["pooled"]["turns"]["1"]["overall"]     # {"a", "b", "difference", "low", "high"}

Only turns that both have a verdict on count. Each resample draws the same conversations for both, so what makes a
conversation hard cancels out, and the interval of the difference is narrower than the two intervals suggest.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from llamarl.core.errors import DataError
from llamarl.evals import scores
from llamarl.evals.groups import Bootstrap, GroupRates, group_rates, grouped_tree
from llamarl.evals.results import VERDICTS_FILE, read_results
from llamarl.evals.scores import or_none
from llamarl.evals.verdicts import TurnVerdict, read_verdicts
from llamarl.report.files import write_json

COMPARISON_FILE = "comparison.json"
FIGURE_FILE = "comparison.png"
WIDE = 100
"""Columns of a terminal from which intervals are shown."""
MUST_AGREE = ("sentence_splitter", "language_detector")
"""Settings of a grader that change what a verdict means. Versions and seeds are only noted."""


def compare(a: str | Path, b: str | Path, bootstrap: Bootstrap | None = None) -> dict[str, Any]:
    """Differences (b minus a) of all rates, by mode and group.

    Args:
        a: directory of an evaluation.
        b: of another one, on the same data.
        bootstrap: of the intervals.

    Raises:
        DataError: no results there; other data, modes or grader settings; no turn that both have; names what differs.
    """
    first, second = read_results(a), read_results(b)
    modes = _common_modes(first, second, a, b)
    verdicts = [read_verdicts(Path(directory) / VERDICTS_FILE) for directory in (a, b)]
    return {
        "a": str(a),
        "b": str(b),
        "benchmark": first["benchmark"],
        "data": {name: first["data"][name] for name in ("source", "revision")},
        "language_names": first["language_names"] | second["language_names"],
        "notes": _notes(first, second, modes),
        "modes": {
            mode: _compare_mode(
                first["keys"], _of_mode(verdicts[0], mode), _of_mode(verdicts[1], mode), bootstrap or Bootstrap()
            )
            for mode in modes
        },
    }


def write_comparison(directory: str | Path, comparison: Mapping[str, Any]) -> list[Path]:
    """Writes `comparison.json`, `comparison.png` and `comparison.html`; returns their paths."""
    from llamarl.evals.accuracy_report import build_comparison_page
    from llamarl.report.accuracy_plot import plot_comparison
    from llamarl.report.page import write_page

    path = Path(directory) / COMPARISON_FILE
    write_json(path, comparison)
    figure = plot_comparison(comparison, path.with_name(FIGURE_FILE))
    page = build_comparison_page(comparison, ComparisonTable(comparison))
    return [path, figure, write_page(path.with_suffix(".html"), page)]


def _common_modes(first: Mapping[str, Any], second: Mapping[str, Any], a: str | Path, b: str | Path) -> list[str]:
    """Refuses what cannot be compared."""
    if first["benchmark"] != second["benchmark"]:
        raise DataError(f"{a} is {first['benchmark']}, {b} is {second['benchmark']}; compare one benchmark")
    if first["data"]["revision"] != second["data"]["revision"]:
        sources = " and ".join(
            f"{each['data']['source']} ({each['data']['revision'][:19]})" for each in (first, second)
        )
        raise DataError(f"{a} and {b} were evaluated on other data: {sources}; evaluate both on the same file")
    modes = [mode for mode in first["modes"] if mode in second["modes"]]
    if not modes:
        has = " and ".join(f"{'/'.join(each['modes'])}" for each in (first, second))
        raise DataError(f"{a} and {b} have no mode in common ({has}); grade one again with --mode both")
    for mode in modes:
        for name in MUST_AGREE:
            values = [each["modes"][mode]["grader"][name] for each in (first, second)]
            if values[0] != values[1]:
                raise DataError(
                    f"{mode} mode: {name} is {values[0]!r} in {a}, but {values[1]!r} in {b}; grade one of them again"
                )
    return modes


def _notes(first: Mapping[str, Any], second: Mapping[str, Any], modes: Sequence[str]) -> list[str]:
    """Smaller differences that a reader should know."""
    notes = []
    if first["llamarl"] != second["llamarl"]:
        notes.append(f"llamarl {first['llamarl']} graded a, {second['llamarl']} graded b")
    for mode in modes:
        graders = [each["modes"][mode]["grader"] for each in (first, second)]
        for name in sorted(set(graders[0]) | set(graders[1])):
            values = [grader.get(name, "") for grader in graders]
            if values[0] != values[1]:
                notes.append(f"{mode}: {name} {values[0] or 'none'} graded a, {values[1] or 'none'} graded b")
    return notes


def _of_mode(verdicts: Iterable[TurnVerdict], mode: str) -> dict[tuple[str, int], TurnVerdict]:
    return {(verdict.key, verdict.turn): verdict for verdict in verdicts if verdict.mode == mode}


def _compare_mode(
    keys: Mapping[str, Sequence[str]],
    a: Mapping[tuple[str, int], TurnVerdict],
    b: Mapping[tuple[str, int], TurnVerdict],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Rates of both and their differences, over the turns that both have."""
    languages = {key: language for language, each in keys.items() for key in each}
    both = [place for place in a if place in b and place[0] in languages]
    if not both:
        raise DataError("the two evaluations have no turn in common; evaluate the same conversations")
    lengths = {key: 0 for key, _ in both}
    for key, turn in (*a, *b):  # a conversation is complete where both have each of its turns
        if key in lengths:
            lengths[key] = max(turn, lengths[key])
    num_turns = max(lengths.values())
    counts = {
        name: scores.count([each[place] for place in both], lengths, num_turns) for name, each in (("a", a), ("b", b))
    }
    groups = group_rates(counts, [languages[key] for key in lengths], num_turns, bootstrap)
    return grouped_tree({name: _tree(pair["a"], pair["b"]) for name, pair in groups.items()})


def _tree(a: GroupRates, b: GroupRates) -> dict[str, Any]:
    leaves = {}
    for path in a.point:
        low, high = b.interval(path, baseline=a)
        values = {"a": a.point[path], "b": b.point[path], "difference": b.point[path] - a.point[path]}
        leaves[path] = {name: or_none(value) for name, value in values.items()} | {"low": low, "high": high}
    return {"conversations": a.num_conversations, **scores.nest(leaves)}


class ComparisonTable:
    """A comparison, for `Console.print`."""

    def __init__(self, comparison: Mapping[str, Any]) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        comparison = self.comparison
        yield Text(f"{comparison['benchmark']}: a = {comparison['a']}, b = {comparison['b']}", style="bold")
        for mode, found in comparison["modes"].items():
            yield Text()
            yield _table(mode, found, comparison["language_names"], options.max_width >= WIDE)
        yield Text()
        yield Text("differences are b minus a; *: the 95% interval, paired by conversation, leaves out 0", style="dim")
        for note in comparison["notes"]:
            yield Text(note, style="yellow")


def _table(mode: str, found: Mapping[str, Any], names: Mapping[str, str], is_wide: bool) -> Table:
    turns = list(found["pooled"]["turns"])
    table = Table(
        box=None,
        padding=(0, 2 if is_wide else 1, 0, 0),
        header_style="bold",
        title=f"{mode} mode",
        title_justify="left",
    )
    table.add_column("accuracy", no_wrap=True)
    for header in ("n", "a", "b", *(f"turn {turn}" for turn in turns), *(["mean"] if len(turns) > 1 else [])):
        table.add_column(header, justify="right", no_wrap=True)
    groups = {names.get(name, name): group for name, group in found["languages"].items()}
    if len(groups) > 1:
        groups |= {"mean of languages": found["macro"], "all conversations": found["pooled"]}
    for name, group in groups.items():
        mean = group["mean_over_turns"]
        leaves = [group["turns"][turn]["overall"] for turn in turns] + ([mean] if len(turns) > 1 else [])
        cells = [f"{group['conversations']:,}", *(_number(mean[side], "0.3f") for side in ("a", "b"))]
        table.add_row(name, *cells, *(_difference(leaf, is_wide) for leaf in leaves))
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _difference(leaf: Mapping[str, float | None], is_wide: bool) -> str:
    """`+0.018 ±.012*`: half the width of the interval, and a star where this leaves out 0."""
    low, high = leaf["low"], leaf["high"]
    text = _number(leaf["difference"], "+.3f")
    if low is None or high is None:
        return f"{text} "
    half = f" ±{f'{(high - low) / 2:.3f}'.lstrip('0')}" if is_wide else ""
    return f"{text}{half}{'*' if low > 0 or high < 0 else ' '}"
