"""detect eval: hallucinations in long answers, claim by claim."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llamarl.cli.common import print_json, say
from llamarl.cli.options import Output
from llamarl.factuality.settings import Evaluation

if TYPE_CHECKING:
    from rich.table import Table


def evaluate(settings: Evaluation, output: Output) -> int:
    """Judge the scores of hallucination detectors: thresholds by validation, the rest on test claims.

    Several files, methods or columns give a table and paired differences. --out writes results.json, a figure (ROC,
    calibration, accuracy against coverage) and a page of HTML.

    Examples:
        llamarl detect eval --scores scores.jsonl
        llamarl detect eval --scores scores.jsonl --json
        llamarl detect eval --scores prompt.jsonl --scores probe.jsonl --out report
        llamarl detect eval --scores all.parquet --columns prompt_tf,probe --hybrid-constraint all
    """
    from llamarl.factuality import evaluate
    from llamarl.factuality import evaluation_report as report
    from llamarl.report.console import SafeConsole

    results = evaluate(settings)
    files = report.write_evaluation(settings.out, results) if settings.out else []
    if output.json:
        print_json({**results, "files": [str(path) for path in files]} if files else results)
        return 0
    console = SafeConsole()
    for source in dict.fromkeys(found["source"] for found in results["methods"].values()):
        counts = next(found["test"] for found in results["methods"].values() if found["source"] == source)
        say(f"{source}: {counts['claims']:,} test claims of {counts['prompts']:,} prompts")
    console.print(_table(report.COLUMNS, report.method_rows(results)))
    console.print(_table(report.HYBRID_COLUMNS, report.hybrid_rows(results)))
    if results["differences"]:
        console.print(_table(report.DIFFERENCE_COLUMNS, report.difference_rows(results)))
    for note in report.list_notes(results):
        say(f"note: {note}")
    for path in files:
        say(f"written: {path}")
    return 0


def _table(columns: Sequence[str], rows: Iterator[list[str]]) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
