"""eval multi-if, eval ifeval, eval compare, eval budget: how good a model is."""

from typing import Annotated

from llamarl.cli.common import print_json, say
from llamarl.cli.options import LiveOutput, Output, Positional
from llamarl.core.config import Config, Metavar
from llamarl.evals.benchmarks import Benchmark, IFEval, MultiIF
from llamarl.evals.budget_run import BudgetEvaluation, run_budget


def multi_if(settings: MultiIF, output: LiveOutput) -> int:
    """Instruction following over three turns in eight languages (Multi-IF).

    Examples:
        llamarl eval multi-if --data builtin --model DIR
        llamarl eval multi-if --data multiIF_20241018.csv --endpoint http://127.0.0.1:8000/v1 --model NAME --out OUT
        llamarl eval multi-if --data facebook/Multi-IF --languages en,fr --grade responses.jsonl --out OUT --workers 4
        the same command again goes on where a killed one stopped
    """
    return _run_benchmark(settings, output)


def ifeval(settings: IFEval, output: LiveOutput) -> int:
    """Instruction following in one turn (IFEval), by Google's checkers and the repaired ones.

    Examples:
        llamarl eval ifeval --data input_data.jsonl --model DIR
        llamarl eval ifeval --data google/IFEval --grade input_response_data.jsonl --out OUT
    """
    return _run_benchmark(settings, output)


def _run_benchmark(benchmark: Benchmark, output: LiveOutput) -> int:
    from llamarl.evals.benchmarks import run_benchmark
    from llamarl.evals.tables import ResultsTable
    from llamarl.report.console import SafeConsole
    from llamarl.report.progress import make_progress

    out = benchmark.directory
    results = run_benchmark(
        benchmark,
        make_progress("replies", quiet=output.quiet, plain=output.plain),
        make_progress("gradings", quiet=output.quiet, plain=output.plain),
    )
    if output.json:
        print_json({"out": str(out), **results})
        return 0
    SafeConsole().print(ResultsTable(results))
    if not benchmark.grade and results["failures"]["turns"]:
        say("the same command again asks the failed turns once more")
    say(f"everything is in {out}; the page is {out / 'report.html'}")
    return 0


class CompareSettings(Config):
    """Two evaluations."""

    first: Annotated[Positional[str], Metavar("A")]
    """Directory of an evaluation, its --out."""
    second: Annotated[Positional[str], Metavar("B")]
    """Directory of another one, on the same data."""
    out: Annotated[str | None, Metavar("DIR")] = None
    """Directory for comparison.json, comparison.png and comparison.html."""


def compare(settings: CompareSettings, output: Output) -> int:
    """Put two evaluations side by side, with intervals of their differences.

    Examples:
        llamarl eval compare OUT_A OUT_B
        llamarl eval compare OUT_A OUT_B --out DIFFERENCE
    """
    from llamarl.evals.comparison import ComparisonTable, compare, write_comparison
    from llamarl.report.console import SafeConsole

    comparison = compare(settings.first, settings.second)
    files = write_comparison(settings.out, comparison) if settings.out else []
    if output.json:
        print_json(comparison)
        return 0
    SafeConsole().print(ComparisonTable(comparison))
    for path in files:
        say(f"written {path}")
    return 0


def budget(settings: BudgetEvaluation, output: LiveOutput) -> int:
    """Accuracy against inference budget: models, self-consistency, best-of-k.

    Examples:
        llamarl eval budget --data test.jsonl --model base=DIR --model asv=DIR2 --ask asv=adaptive --out OUT
        llamarl eval budget --data test.jsonl --endpoint http://127.0.0.1:8000/v1 --endpoint-model NAME --out OUT
        llamarl eval budget --data builtin --model short=DIR --model new=DIR2 --ask short=S --temperature 1 --out OUT
        the same command again goes on where a killed one stopped
    """
    from llamarl.evals.budget_report import PAGE_FILE
    from llamarl.evals.budget_table import BudgetTable
    from llamarl.report.console import SafeConsole
    from llamarl.report.progress import make_progress

    results = run_budget(
        settings, lambda model: make_progress(f"replies of {model}", quiet=output.quiet, plain=output.plain)
    )
    if output.json:
        print_json({"out": str(settings.out), **results})
        return 0
    SafeConsole().print(BudgetTable(results))
    say(f"everything is in {settings.out}; the page is {settings.out / PAGE_FILE}")
    return 0
