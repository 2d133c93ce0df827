"""detect build, detect eval: hallucinations in long answers, claim by claim."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llamarl.cli.common import print_json, say
from llamarl.cli.options import LiveOutput, Output, Positional
from llamarl.core.config import Metavar
from llamarl.factuality.settings import Build, Evaluation

if TYPE_CHECKING:
    from rich.table import Table


class BuildSettings(Build):
    """Prompts, and what becomes of them."""

    prompts: Annotated[Positional[tuple[str, ...]], Metavar("PROMPTS")] = Field(min_length=1)
    """Files of {prompt}, LongFact or FActScore rows: JSONL, CSV, Parquet or a glob; or .txt files of names."""


def build(settings: BuildSettings, output: LiveOutput) -> int:
    """Answer prompts, take the answers apart into claims, and label each claim by evidence.

    Each stage keeps what it finished in a file of its own, so the same command goes on where a killed one stopped.
    Claims that the evidence does not decide are kept aside. With --facts no model but the one under study is needed.

    Examples:
        llamarl detect build prompts.jsonl --model MODEL --facts facts.csv --relations relations.toml --out claims
        llamarl detect build names.txt --model MODEL --corpus 'pages/*.txt' --claims model --out claims
        llamarl detect build prompts.jsonl --model M --endpoint URL --claims model --search search.toml --out claims
    """
    from llamarl.factuality import build
    from llamarl.report.progress import make_progress

    summary = build(
        settings,
        make_progress=lambda name: make_progress(name, quiet=output.quiet or output.json, plain=output.plain),
    )
    if output.json:
        print_json(summary)
        return 0
    for line in _describe_build(summary):
        say(line)
    return 0


def _describe_build(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields what became of the prompts."""
    answers, claims, labels = summary["answers"], summary["claims"], summary["labels"]
    yield f"answers    {answers['answered']:,} of {summary['prompts']:,} prompts{_count(answers, 'empty', 'cut')}"
    unlisted = {"without a claim": claims["answers_without"], "unreadable lists": claims["unreadable_lists"]}
    yield f"claims     {claims['found']:,}{_count(unlisted, *unlisted)}{_describe_dropped(claims['dropped'])}"
    if "relevance" in summary:
        relevance = summary["relevance"]
        yield f"relevance  {relevance['irrelevant']:,} irrelevant{_count(relevance, 'unreadable')}"
    because = labels["undetermined_because"]
    silent = f" ({', '.join(f'{count:,} {name}' for name, count in because.items())})" if because else ""
    yield (
        f"labels     {labels['supported']:,} supported, {labels['contradicted']:,} contradicted, "
        f"{labels['undetermined']:,} undetermined{silent}"
    )
    if "questions" in summary:
        yield f"questions  {summary['questions']['kept']:,}{_describe_dropped(summary['questions']['dropped'])}"
    for split, counts in summary["splits"].items():
        yield f"{split:10} {counts['factual']:,} factual and {counts['hallucinated']:,} hallucinated claims"
    yield f"left over  {summary['surplus']:,} of the larger class, {summary['kept_aside']:,} undetermined"
    for note in summary["notes"]:
        yield f"note: {note}"
    yield f"written: {', '.join(summary['files'].values())}"


def _count(counts: Mapping[str, int], *names: str) -> str:
    return "".join(f", {counts[name]:,} {name}" for name in names if counts[name])


def _describe_dropped(reasons: Mapping[str, int]) -> str:
    return f"; dropped: {', '.join(f'{count:,} {name}' for name, count in reasons.items())}" if reasons else ""


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
