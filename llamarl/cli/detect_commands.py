"""detect build, detect train, detect eval: hallucinations in long answers, claim by claim."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from llamarl.cli.common import print_json, say, show_progress
from llamarl.cli.options import LiveOutput, Output, Overrides, Positional
from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError
from llamarl.factuality.settings import Build, Evaluation, Train

if TYPE_CHECKING:
    from rich.table import Table


class BuildSettings(Build):
    """Prompts, and what becomes of them."""

    prompts: Annotated[Positional[tuple[str, ...]], Metavar("PROMPTS")] = Field(min_length=1)
    """Files of {prompt}, LongFact or FActScore rows: JSONL, CSV, Parquet or a glob; or .txt files of names."""


class TrainSettings(Config):
    """Labelled claims, the model, and the detector that they make."""

    data: Annotated[Positional[Path | None], Metavar("DATA")] = None
    """Directory of a detect build, with train.jsonl, validation.jsonl and test.jsonl."""
    model: str | None = None
    """The model whose claims these are: a checkpoint directory, GGUF file or Hub id."""
    method: str = "rate_ft"
    """Way to detect; --list-settings with it prints its own settings."""
    out: Annotated[Path | None, Metavar("DIR")] = None
    """Directory of the detector: new, empty, or one of a training that was killed."""
    device: str = "auto"
    """Device of the model, such as cuda."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of forward and backward passes; weights stay in fp32."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one forward pass that scores claims."""
    list_settings: bool = False
    """Print every setting of the method with its default."""


def build(settings: BuildSettings, output: LiveOutput) -> int:
    """Answer prompts, take the answers apart into claims, and label each claim by evidence.

    Each stage keeps what it finished in a file of its own, so the same command goes on where a killed one stopped.
    Claims that the evidence does not decide are kept aside. With --facts no model but the one under study is needed.
    Exits with 1 where a split that was asked for is empty: give more prompts, or --split 1,0,0.

    Examples:
        llamarl detect build prompts.jsonl --model MODEL --facts facts.csv --relations relations.toml --out claims
        llamarl detect build names.txt --model MODEL --corpus 'pages/*.txt' --claims model --out claims
        llamarl detect build prompts.jsonl --model M --endpoint URL --claims model --search search.toml --out claims
    """
    from llamarl.factuality import build
    from llamarl.factuality.splits import SPLITS
    from llamarl.report.progress import make_progress

    asked = dict(zip(SPLITS, settings.split, strict=True))
    summary = build(
        settings,
        make_progress=lambda name: make_progress(name, quiet=output.quiet or output.json, plain=output.plain),
    )
    if output.json:
        print_json(summary)
    else:
        for line in _describe_build(summary):
            say(line)
    # The claims are on file, but a split that was asked for and is empty is not what was promised.
    return int(any(not counts["factual"] for name, counts in summary["splits"].items() if asked[name]))


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


def train(settings: TrainSettings, output: LiveOutput, overrides: Overrides) -> int:
    """Make a detector from labelled claims: train it, choose its threshold on validation, judge it on test claims.

    Methods: rate_ft (labels with rationales, auxiliary questions mixed in), fine_tuning (labels alone), and those that
    need no training and only get a threshold, such as prompt_tf. The model stays as it is: what is trained is an
    adapter, in PEFT layout. The same command again goes on where a killed one stopped.

    Examples:
        llamarl detect train claims --model MODEL --out detector
        llamarl detect train claims --model MODEL --out detector --num-epochs 2 --lora.rank 8 --precision bf16
        llamarl detect train claims --model MODEL --out ablation --rationale false
        llamarl detect train claims --model MODEL --method prompt_tf --out zero-shot
        llamarl detect train --method rate_ft --list-settings
    """
    from llamarl.controller.overrides import describe_settings, parse_overrides
    from llamarl.factuality.detectors.method import find_method
    from llamarl.factuality.training import train
    from llamarl.models.device import describe_device, resolve_device

    if settings.list_settings:
        say(describe_settings(find_method(settings.method).Settings))
        return 0
    if not (settings.data and settings.model and settings.out):
        raise ConfigError("DATA, --model or --out is missing: use llamarl detect train claims --model M --out detector")
    chosen = Train.parse(settings.model_dump(exclude={"list_settings"}))
    if not output.json:
        say(f"device: {describe_device(resolve_device(chosen.device))}", sys.stderr)
    bars: dict[str, Any] = {}
    with ExitStack() as stack:

        def show(what: str, done: int, total: int, note: str = "") -> None:
            if what not in bars:
                stack.close()  # one bar at a time
                bars[what] = stack.enter_context(show_progress(what, output))
            bars[what](done, total, note=note)

        summary = train(
            chosen,
            parse_overrides(overrides),
            on_step=lambda done, total, metrics: show("steps", done, total, _describe_step(metrics)),
            on_scored=lambda done, total: show("claims", done, total),
            tell=lambda note: say(f"note: {note}", sys.stderr),
        )
    if output.json:
        print_json(summary)
    else:
        say("\n".join(_describe_train(summary)))
    return 0


def _describe_step(metrics: Mapping[str, float | None]) -> str:
    auc = metrics.get("eval/auroc")
    return f"loss {metrics['train/loss']:.4f}" + ("" if auc is None else f", validation AUC {auc:.3f}")


def _describe_train(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a user wants to know of a new detector."""
    claims, test = summary["claims"], summary["test"]
    counts = ", ".join(f"{count:,} {split}" for split, count in claims.items())
    yield f"claims         {counts}"
    if summary["unscored"]:
        yield "without score  " + ", ".join(f"{count:,}: {reason}" for reason, count in summary["unscored"].items())
    if summary["low_mass"]:
        yield f"low mass       {summary['low_mass']:,} scores: the model would mostly say something else than a label"
    yield f"threshold      {summary['threshold']:.4f}, by validation"
    if test is None:
        yield "test           not of both labels, so nothing is measured"
    else:
        for name in ("auc", "bacc"):
            interval = test[f"{name}_interval"]
            area = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
            yield f"{'test ' + name.upper().replace('BACC', 'BAcc'):15}{test[name]:.3f}{area}"
    yield f"the detector is {summary['detector']}; its scores: {summary['scores']}"


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
