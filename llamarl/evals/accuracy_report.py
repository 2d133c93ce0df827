"""The pages of instruction-following evaluations, from the plain values of their `results.json`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleRenderable

import llamarl
from llamarl.evals.scores import KINDS, LEVELS
from llamarl.evals.tables import WIDE, ResultsTable, notes
from llamarl.report.figures import Dot, Row, RowChart
from llamarl.report.page import Notes, Page, Part, Section, Table, parts_of
from llamarl.report.text import name_files

PAGE_FILE = "report.html"
CHANGES = {"ifr_percent": "Forgotten, of the instructions followed", "ecr_percent": "Recovered, of those not followed"}
WHOLE_CAPTION = (
    "Accuracy is the mean of strict and loose, per conversation and per instruction. Lines are 95% intervals."
)

Rate = Mapping[str, Any]
"""`{"value", "low", "high"}`."""


def build_page(results: Mapping[str, Any]) -> Page:
    """The page of an evaluation: by language and turn, or by type of instruction where there is one of each.

    Args:
        results: of `evals.results.build_results`.
    """
    model = ((results.get("generation") or {}).get("chat") or {}).get("model")
    data, tables = results["data"], _tables(ResultsTable(results))
    return Page(
        title=f"{results['benchmark']}{f' of {model}' if model else ''}",
        subtitle=f"{data['conversations']:,} conversations, {data['turns']:,} turns",
        parts=[
            *(
                Section(f"{mode} mode", [*_charts(results, found), *own])
                for (mode, found), own in zip(results["modes"].items(), tables, strict=True)
            ),
            Section("To know", [Notes([note.plain for note in notes(results)])]),
        ],
        footer=f"llamarl {llamarl.__version__}, eval. Intervals are 95%, of a bootstrap over conversations.",
    )


def build_comparison_page(comparison: Mapping[str, Any], shown: ConsoleRenderable) -> Page:
    """The page of two evaluations side by side.

    Args:
        comparison: of `evals.comparison.compare`.
        shown: its tables for terminals.
    """
    named = {"language_names": comparison["language_names"]}
    tables = _tables(shown)
    sections = []
    for (mode, found), own in zip(comparison["modes"].items(), tables, strict=True):
        charts = _by_language(named, _differences(found), marks=(0.0,), is_signed=True)
        sections.append(Section(f"{mode} mode", [*charts, *own]))
    differences = "Differences are b minus a; *: the 95% interval, paired by conversation, leaves out 0."
    return Page(
        title=f"{comparison['benchmark']}: two evaluations",
        subtitle="a = {}, b = {}".format(*name_files([comparison["a"], comparison["b"]])),
        subtitle_note=f"a = {comparison['a']}, b = {comparison['b']}",
        parts=[*sections, Section("To know", [Notes([differences, *comparison["notes"]])])],
        footer=f"llamarl {llamarl.__version__}, eval compare.",
    )


def _tables(shown: ConsoleRenderable) -> list[list[Part]]:
    """The tables of the terminal, each mode's with what is said below: empty lines stand between the modes."""
    console = Console(width=WIDE)
    groups: list[list[Part]] = [[]]
    for part in parts_of(shown.__rich_console__(console, console.options)):
        if part == "":
            groups.append([])
        else:
            groups[-1].append(part)
    return [group for group in groups if any(isinstance(part, Table) for part in group)]


def _charts(results: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Part]:
    if len(found["pooled"]["turns"]) == 1 and len(found["languages"]) == 1:
        yield from _by_type(found)
    else:
        yield from _by_language(results, found)


def _by_language(
    results: Mapping[str, Any], found: Mapping[str, Any], marks: Sequence[float] = (), is_signed: bool = False
) -> Iterator[RowChart]:
    """Yields accuracy by turn, and of several turns what was forgotten and recovered; a row per language."""
    groups = list(_groups(results, found))
    turns, pairs = list(found["pooled"]["turns"]), list(found["pooled"].get("transitions", {}))
    names = [f"turn {turn}" for turn in turns]
    rows = [
        _row(name, is_total, [group["turns"][turn]["overall"] for turn in turns], names, "" if not is_signed else "+")
        for name, is_total, group in groups
    ]
    yield RowChart(
        "Accuracy by language and turn",
        rows,
        series=names,
        marks=marks,
        is_signed=is_signed,
        caption=WHOLE_CAPTION,
    )
    between = [f"turn {pair.replace('-', ' to ')}" for pair in pairs]
    for key, title in CHANGES.items() if pairs else ():
        changed = [
            _row(name, is_total, [_share(group["transitions"][pair]["strict"][key]) for pair in pairs], between, "%")
            for name, is_total, group in groups
        ]
        yield RowChart(title, changed, unit="%", series=between, marks=marks, is_signed=is_signed)


def _by_type(found: Mapping[str, Any]) -> Iterator[RowChart]:
    """Yields the four accuracies, and strict accuracy by type of instruction."""
    turn = found["pooled"]["turns"]["1"]
    four = [(f"{kind}, per {level}", turn[kind][level]) for kind in KINDS for level in LEVELS]
    rows = [_row(name, False, [rate], [""]) for name, rate in four]
    yield RowChart("Accuracy", [*rows, _row("mean of the four", True, [turn["overall"]], [""])])
    types = sorted(found["instructions"].items(), key=lambda item: -item[1]["all"]["strict"])
    yield RowChart(
        "Strict accuracy by type of instruction",
        [
            Row(id, [Dot(turns["all"]["strict"], text=f"{turns['all']['strict']:.3f} of {turns['all']['of']}")])
            for id, turns in types
        ],
    )


def _groups(results: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, bool, Mapping[str, Any]]]:
    """Yields name, whether it is a mean, and rates: languages, the best first, then both means of several."""
    languages = found["languages"]
    for code in sorted(languages, key=lambda code: -(languages[code]["mean_over_turns"]["value"] or 0)):
        yield results["language_names"].get(code, code), False, languages[code]
    if len(languages) > 1:
        yield "mean of languages", True, found["macro"]
        yield "all conversations", True, found["pooled"]


def _row(name: str, is_total: bool, rates: Sequence[Rate], series: Sequence[str], form: str = "") -> Row:
    dots = [
        Dot(rate["value"], _ends(rate), text=_say(rate, form), series=label)
        for rate, label in zip(rates, series, strict=True)
    ]
    return Row(name, dots, is_total)


def _ends(rate: Rate) -> tuple[float, float] | None:
    return None if rate["low"] is None else (rate["low"], rate["high"])


def _say(rate: Rate, form: str) -> str:
    if rate["value"] is None:
        return "–"
    if form == "%":
        between = "" if rate["low"] is None else f" ({100 * rate['low']:.1f} to {100 * rate['high']:.1f}%)"
        return f"{100 * rate['value']:.1f}%{between}"
    between = "" if rate["low"] is None else f" ({rate['low']:{form}.3f} to {rate['high']:{form}.3f})"
    return f"{rate['value']:{form}.3f}{between}"


def _share(rate: Rate) -> Rate:
    """A rate in percent as a share."""
    return {name: None if rate[name] is None else rate[name] / 100 for name in ("value", "low", "high")}


def _differences(tree: Any) -> Any:
    """The leaves of a comparison as rates of their own."""
    if not isinstance(tree, Mapping):
        return tree
    if "difference" in tree:
        return {"value": tree["difference"], "low": tree["low"], "high": tree["high"]}
    return {name: _differences(branch) for name, branch in tree.items()}
