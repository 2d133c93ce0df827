"""Results as tables for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from llamarl.evals.conversations import LANGUAGES
from llamarl.evals.scores import KINDS, LEVELS
from llamarl.report.text import one_line

WIDE = 116
"""Columns from which intervals are shown."""
WEAKEST = 5
REASONS = 3
"""Reasons of failures that are shown; all are in `results.json`."""

Rate = Mapping[str, Any]
"""`{"value", "low", "high"}`."""


class ResultsTable:
    """The contents of `results.json` as tables for `Console.print`."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_wide = options.max_width >= WIDE
        yield Text(_headline(self.results), style="bold")
        for mode, found in self.results["modes"].items():
            yield Text()
            yield _by_language(mode, found, is_wide)
            yield _four_accuracies(found, is_wide)
            yield from _weakest(found)
        yield Text()
        yield from notes(self.results)


def fraction(rate: Rate, *, with_interval: bool = False) -> str:
    """`0.843`, or `0.843 ±.021` with half the width of its interval; a dash where there is no value."""
    if rate["value"] is None:
        return "–"
    if not with_interval or rate["low"] is None:
        return f"{rate['value']:.3f}"
    half = f"{(rate['high'] - rate['low']) / 2:.3f}"
    return f"{rate['value']:.3f} ±{half.lstrip('0')}"


def format_count(count: int, noun: str) -> str:
    """Formats a count with its noun: `1 turn`, `2 turns`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def percent(rate: Rate) -> str:
    """`12.3`; a dash where there is no value."""
    return "–" if rate["value"] is None else f"{rate['value']:.1f}"


def notes(results: Mapping[str, Any]) -> Iterator[Text]:
    """Yields the notes that a reader must know beside the numbers."""
    failures, truncation = results["failures"], results["truncation"]
    if failures["turns"]:
        reasons = list(failures["by_reason"].items())
        listed = ", ".join(f"{count}× {one_line(reason, 160)}" for reason, count in reasons[:REASONS])
        more = f", and {format_count(len(reasons) - REASONS, 'more reason')}" if len(reasons) > REASONS else ""
        turns = format_count(failures["turns"], "turn")
        yield Text(f"{turns} without a reply, in no denominator: {listed}{more}", style="yellow")
    if truncation["rate"] is not None:
        style = "yellow" if truncation["rate"] > 0.01 else ""
        yield Text(f"{truncation['rate']:.1%} of replies cut at the token limit", style=style)
    if unused := results["data"]["unused_replies"]:
        yield Text(f"{unused:,} replies belong to no turn that was asked", style="dim")
    if skipped := results["data"]["skipped_rows"]:
        yield Text(f"{len(skipped)} rows of the data skipped, the first: {skipped[0]}", style="yellow")
    for mode, found in results["modes"].items():
        if ungradable := found["ungradable"]:
            verb = "left out" if mode == "fixed" else "counted as not followed"
            first = ungradable[0]
            where = f"{first['key']}, turn {first['turn']}: {one_line(first['reason'], 100)}"
            yield Text(
                f"{mode}: {format_count(len(ungradable), 'ungradable instruction')} {verb}, the first: {where}",
                style="yellow",
            )
    yield Text(_grader_line(results), style="dim")


def _headline(results: Mapping[str, Any]) -> str:
    data, generation = results["data"], results["generation"] or {}
    model = (generation.get("chat") or {}).get("model")
    of = f" of {model}" if model else ""
    return f"{results['benchmark']}{of}: {data['conversations']:,} conversations, {data['turns']:,} turns"


def _by_language(mode: str, found: Mapping[str, Any], is_wide: bool) -> Table:
    """A row per language; accuracy is the mean of the four, forgetting and recovery are strict."""
    turns, pairs = list(found["pooled"]["turns"]), list(found["pooled"].get("transitions", {}))
    padding = (0, 2 if is_wide else 1, 0, 0)
    table = Table(box=None, padding=padding, header_style="bold", title=f"{mode} mode", title_justify="left")
    table.add_column("accuracy", vertical="bottom", no_wrap=True)
    headers = [f"turn {turn}" for turn in turns]
    if len(turns) > 1:
        headers += ["mean", "all\nturns"]
    headers += [f"{word}\n{pair.replace('-', '→')}%" for word in ("forgot", "recov.") for pair in pairs]
    for header in headers:
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for name, group in _groups(found):
        cells = [fraction(group["turns"][turn]["overall"], with_interval=is_wide) for turn in turns]
        if len(turns) > 1:
            cells += [fraction(group["mean_over_turns"], with_interval=is_wide)]
            cells += [fraction(group["all_turns_passed"]["strict"])]
        for rate in ("ifr_percent", "ecr_percent"):
            cells += [percent(group["transitions"][pair]["strict"][rate]) for pair in pairs]
        table.add_row(name, *cells)
    return table


def _groups(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    languages = found["languages"]
    for code, group in languages.items():
        yield LANGUAGES[code], group
    if len(languages) > 1:
        yield "mean of languages", found["macro"]
        yield "all conversations", found["pooled"]


def _four_accuracies(found: Mapping[str, Any], is_wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    turns = found["pooled"]["turns"]
    for kind in KINDS:
        for level in LEVELS:
            rates = (turn[kind][level] for turn in turns.values())
            table.add_row(f"{kind}, per {level}", *(fraction(rate, with_interval=is_wide) for rate in rates))
    return table


def _weakest(found: Mapping[str, Any]) -> Iterator[Text]:
    """The instruction types that fail most, over all turns."""
    rates = ((id, turns["all"]["strict"]) for id, turns in found["instructions"].items())
    types: Sequence[tuple[str, float]] = sorted((item for item in rates if item[1] < 1.0), key=lambda item: item[1])
    if types:
        yield Text("fails most: " + ", ".join(f"{id} {value:.2f}" for id, value in types[:WEAKEST]), style="dim")


def _grader_line(results: Mapping[str, Any]) -> str:
    parts = []
    for mode, found in results["modes"].items():
        grader = found["grader"]
        seed = f" seed {grader['language_seed']}" if grader["language_seed"] else ""
        parts.append(f"{mode}: {grader['language_detector']}{seed}, sentences by {grader['sentence_splitter']}")
    return f"llamarl {results['llamarl']}; " + "; ".join(parts) + f"; data {results['data']['revision'][:19]}"
