"""The results of `evaluate` as people read them: a table, a figure, a page of HTML, and the plain values in JSON."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import llamarl
from llamarl.factuality.evaluation_figures import build_calibration, build_coverage, build_roc
from llamarl.report.detection_plots import plot_detection
from llamarl.report.files import write_json
from llamarl.report.page import Notes, Page, Part, Section, Table, write_page

RESULTS_FILE, FIGURE_FILE, PAGE_FILE = "results.json", "detection.png", "report.html"
COLUMNS = ("method", "threshold", "BAcc", "95% interval", "AUC", "ECE")
HYBRID_COLUMNS = ("hybrid", "low", "high", "BAcc-unknown", "95% interval", "unknown")
DIFFERENCE_COLUMNS = ("difference", "claims", "BAcc", "95% interval", "AUC", "95% interval", "")
EXPLANATION = (
    "BAcc is the mean of the shares of factual and of hallucinated claims that one threshold decides rightly. With two "
    "thresholds, a claim between low and high is left to an outside checker: BAcc-unknown counts it as right, and "
    "unknown is the share of such claims. All thresholds were chosen on the validation claims; all else is of the test "
    "claims. Intervals are for prompts drawn at random, with all their claims."
)


def write_evaluation(directory: str | Path, results: Mapping[str, Any]) -> list[Path]:
    """Writes `results.json`, `detection.png` and `report.html`; returns their paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / RESULTS_FILE, results)
    return [
        directory / RESULTS_FILE,
        plot_detection(results["methods"], directory / FIGURE_FILE),
        write_page(directory / PAGE_FILE, build_page(results)),
    ]


def build_page(results: Mapping[str, Any]) -> Page:
    """The report of one page."""
    methods = results["methods"]
    tables = [Table(COLUMNS, list(method_rows(results))), Table(HYBRID_COLUMNS, list(hybrid_rows(results)))]
    parts: list[Part] = [*tables, EXPLANATION]
    if notes := list(list_notes(results)):
        parts.append(Notes(notes))
    sections: list[Part | Section] = [*parts]
    if results["differences"]:
        table = Table(DIFFERENCE_COLUMNS, list(difference_rows(results)))
        text = (
            "b minus a on the claims that both have scored; every resample draws the same prompts for both. A star: "
            "the interval leaves out 0."
        )
        sections.append(Section("Differences", [text, table]))
    figures = [build(methods) for build in (build_roc, build_calibration, build_coverage)]
    sections.append(Section("Figures", figures))
    first = next(iter(methods.values()))
    counts = first["test"]
    subtitle = (
        f"{counts['claims']:,} test claims of {counts['prompts']:,} prompts, {counts['factual']:,} of them factual; "
        f"{first['validation']['claims']:,} validation claims"
    )
    footer = f"llamarl {llamarl.__version__}, detect eval."
    return Page("Hallucination detection: " + ", ".join(methods), sections, subtitle, footer)


def method_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the cells of `COLUMNS`."""
    for name, found in results["methods"].items():
        row = [name, f"{found['threshold']:.3f}", f"{found['bacc']:.3f}", _format_interval(found["bacc_interval"])]
        yield [*row, f"{found['auc']:.3f}", f"{found['calibration']['error']:.3f}"]


def hybrid_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the cells of `HYBRID_COLUMNS`."""
    for name, found in results["methods"].items():
        hybrid = found["hybrid"]
        row = [name, *(_format(hybrid[key]) for key in ("low", "high", "bacc_unknown"))]
        yield [*row, _format_interval(hybrid["bacc_unknown_interval"]), _format(hybrid["unknown_share"], ".1%")]


def difference_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the cells of `DIFFERENCE_COLUMNS`; a star where the interval leaves out 0."""
    for pair in results["differences"]:
        row = [f"{pair['b']} - {pair['a']}", f"{pair['claims']:,}"]
        for key in ("bacc", "auc"):
            interval = pair[f"{key}_interval"]
            star = "*" if interval is not None and (interval[0] > 0 or interval[1] < 0) else ""
            row += [_format(pair[key], "+.3f") + star, _format_interval(interval, "+.3f")]
        yield [*row, pair["problem"] or ""]


def list_notes(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a reader of the numbers should know, once for each group of methods that it is true of."""
    names: dict[str, list[str]] = {}
    for name, found in results["methods"].items():
        for note in found["notes"]:
            names.setdefault(note, []).append(name)
    for note, methods in names.items():
        yield note if len(methods) == len(results["methods"]) else f"{', '.join(methods)}: {note}"
    for pair in results["differences"]:
        if left := [f"{pair[f'only_{side}']} only in {pair[side]}" for side in "ab" if pair[f"only_{side}"]]:
            yield f"{pair['b']} - {pair['a']}: {pair['claims']} claims in common, {', '.join(left)}"


def _format(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _format_interval(interval: tuple[float, float] | None, form: str = ".3f") -> str:
    return "–" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"
