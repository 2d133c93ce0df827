"""judge run, judge audit, judge calibrate: judges by themselves, on completions from anywhere.

Exit status: 0 everything was judged, no audit limit was exceeded; 1 some verdicts failed (the output is written all the
same), a judge broke, or an audit found too many attacks that pass or good replies that don't; 2 the input is wrong; 130
interrupted.
"""

import argparse
import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llamarl.cli.common import Subparsers, add_command, print_json, say
from llamarl.core.errors import ConfigError
from llamarl.core.paths import full_path

if TYPE_CHECKING:
    from llamarl.judges.lab.audit import AttackResult
    from llamarl.judges.lab.calibrate import Calibration
    from llamarl.judges.panel import JudgePanel

T = TypeVar("T")
JUDGE_HELP = (
    "a shipped judge's name (math, code, instructions, ...), module:function, file.py:function, or a TOML file with a "
    "judge's settings or [[judges]] (a recipe too); repeatable"
)


def add_commands(commands: Subparsers) -> None:
    """Adds this module's commands."""
    text = "Judge completions, try to fool judges, compare judges with labels."
    parser = commands.add_parser("judge", help="judge completions, audit and calibrate judges", description=text)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    run = add_command(
        actions,
        "run",
        run_run,
        help="judge completions from a file",
        examples="""
llamarl judge run --judge math --data answers.jsonl --out verdicts.jsonl
llamarl judge run --judge rewards.py:accuracy --judge safety.toml --data answers.jsonl --out verdicts.jsonl
the same command again goes on where an interrupted one stopped
""",
    )
    _add_common(run, "rows: a prompt row plus 'completion', a text or a list of texts")
    run.add_argument(
        "--out", required=True, type=full_path, metavar="FILE", help="JSON lines, one per completion and judge"
    )

    audit = add_command(
        actions,
        "audit",
        run_audit,
        help="try to fool judges with empty, copied, manipulative replies",
        examples="""
llamarl judge audit --judge math
llamarl judge audit --judge safety.toml --data harmful.jsonl --attack known_bad --attack known_bad_injected
llamarl judge audit --judge rubric.toml --max-rate 0.01 --out audit.json
""",
    )
    _add_common(
        audit,
        "prompt rows; 'good' holds replies that must pass, 'completion' replies that must not (default: shipped rows)",
        is_needed=False,
    )
    audit.add_argument("--attack", action="append", metavar="KIND", help="only this kind of attack; repeatable")
    audit.add_argument(
        "--max-rate",
        type=float,
        default=0.05,
        metavar="R",
        help="exit status 1 if more of any kind of attack pass, or of the good replies don't (0.05)",
    )
    audit.add_argument("--out", type=full_path, metavar="FILE", help="write the report as JSON")

    calibrate = add_command(
        actions,
        "calibrate",
        run_calibrate,
        help="compare judges with labelled completions",
        examples="""
llamarl judge calibrate --judge safety.toml --data labelled.jsonl --figure calibration.png
llamarl judge calibrate --judge a.toml --judge b.toml --data labelled.jsonl --out calibration.json
""",
    )
    _add_common(calibrate, "rows with 'completion' and 'label' (true or false) or 'score' (a number)")
    calibrate.add_argument(
        "--label-threshold", type=float, default=0.5, metavar="S", help="labelled scores from S on should pass (0.5)"
    )
    calibrate.add_argument("--out", type=full_path, metavar="FILE", help="write the report as JSON")
    calibrate.add_argument("--figure", type=full_path, metavar="PNG", help="draw confusion and reliability")


def _add_common(parser: argparse.ArgumentParser, data: str, *, is_needed: bool = True) -> None:
    parser.add_argument("--judge", action="append", required=True, metavar="JUDGE", help=JUDGE_HELP)
    parser.add_argument("--data", required=is_needed, metavar="FILE", help=data)
    parser.add_argument(
        "--max-in-flight", type=int, default=16, metavar="N", help="rows judged at the same time (default 16)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run_run(arguments: argparse.Namespace) -> int:
    """`llamarl judge run`."""
    from llamarl.judges.lab.rows import read_completions
    from llamarl.judges.lab.runner import job_key, judge_file, summary_of

    out: Path = arguments.out
    if out.resolve() == Path(arguments.data).resolve():
        raise ConfigError(f"--out {out}: is the data itself; give another file")
    configs = _configs(arguments)
    rows = read_completions(arguments.data)

    async def work(panel: "JudgePanel") -> Any:
        key = job_key(configs)
        with _progress(arguments, "judging", len(rows)) as on_done:
            return await judge_file(panel, rows, out, key=key, max_in_flight=arguments.max_in_flight, on_done=on_done)

    records = _with_panel(arguments, work)
    summary = summary_of(records)
    if arguments.json:
        print_json({"rows": len(rows), "out": str(out), "judges": summary})
    else:
        _print_table(
            ["judge", "scored/abstained/failed", "mean", "pass rate", "cost", "p50", "p95"],
            [_run_cells(line) for line in summary],
        )
        say(f"{len(records)} verdicts on {len(rows)} rows written to {out}")
        _print_failures(records)
    return int(any(line["failed"] for line in summary))


def run_audit(arguments: argparse.Namespace) -> int:
    """`llamarl judge audit`."""
    from llamarl.judges.lab.audit import audit, overall, problems, read_audit_rows, shipped_rows
    from llamarl.report.files import write_json

    if not 0.0 <= arguments.max_rate <= 1.0:
        raise ConfigError(f"--max-rate {arguments.max_rate:g}: give a share, from 0 to 1")
    given = None if arguments.data is None else read_audit_rows(arguments.data)

    async def work(panel: "JudgePanel") -> Any:
        rows = shipped_rows(panel) if given is None else given
        with _progress(arguments, "attacking", len(rows)) as on_done:
            return await audit(panel, rows, arguments.attack, max_in_flight=arguments.max_in_flight, on_done=on_done)

    results = _with_panel(arguments, work)
    totals = overall(results)
    warnings = problems(results, arguments.max_rate)
    report = {
        "attacks": [each.to_dict() for each in results],
        "overall": [each.to_dict() for each in totals],
        "max_rate": arguments.max_rate,
        "problems": warnings,
    }
    if arguments.out:
        write_json(arguments.out, report)
    if arguments.json:
        print_json(report)
    else:
        _print_audit(results, totals)
        for warning in warnings:
            say(f"warning: {warning}")
    return int(bool(warnings))


def run_calibrate(arguments: argparse.Namespace) -> int:
    """`llamarl judge calibrate`."""
    from llamarl.judges.lab.calibrate import calibrate, plot_calibration
    from llamarl.judges.lab.rows import read_completions
    from llamarl.report.files import write_json

    rows = read_completions(arguments.data, aside=("label", "score"))

    async def work(panel: "JudgePanel") -> Any:
        with _progress(arguments, "judging", len(rows)) as on_done:
            return await calibrate(
                panel,
                rows,
                label_threshold=arguments.label_threshold,
                max_in_flight=arguments.max_in_flight,
                on_done=on_done,
            )

    results: list[Calibration] = _with_panel(arguments, work)
    report = {"rows": len(rows), "judges": [each.to_dict() for each in results]}
    if arguments.out:
        write_json(arguments.out, report)
    if arguments.figure:
        plot_calibration(results, arguments.figure)
    if arguments.json:
        print_json(report)
    else:
        _print_calibrations(results)
        if arguments.figure:
            say(f"figure {arguments.figure}")
    return int(any(each.failed for each in results))


def _configs(arguments: argparse.Namespace) -> list[Any]:
    from llamarl.judges.config import read_judges

    return [config for spec in arguments.judge for config in read_judges(spec)]


def _with_panel(arguments: argparse.Namespace, work: "Callable[[JudgePanel], Coroutine[Any, Any, T]]") -> T:
    """Runs `work` with the judges that were asked for, and closes them."""
    from llamarl.judges.lab.runner import equal_panel

    if arguments.max_in_flight < 1:
        raise ConfigError(f"--max-in-flight {arguments.max_in_flight}: give at least 1")
    panel = equal_panel(_configs(arguments))

    async def main() -> T:
        try:
            return await work(panel)
        finally:
            await panel.aclose()

    return asyncio.run(main())


@contextmanager
def _progress(arguments: argparse.Namespace, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; yields what to call with the rows done and those with failures."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from llamarl.report.console import SafeConsole

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=SafeConsole(stderr=True), disable=arguments.quiet or arguments.json) as progress:
        bar = progress.add_task(what, total=total, failed="", visible=False)  # not before the input is known to be good

        def show(done: int, failed: int) -> None:
            progress.update(bar, visible=True, completed=done, failed=f"{failed} with failures" if failed else "")

        yield show


def _run_cells(line: dict[str, Any]) -> list[str]:
    from llamarl.report.text import format_number, format_seconds

    counts = "/".join(str(line[name]) for name in ("scored", "abstained", "failed"))
    numbers = [format_number(line[name]) for name in ("mean_score", "pass_rate", "cost")]
    return [line["judge"], counts, *numbers, *(format_seconds(line[f"seconds_{name}"]) for name in ("p50", "p95"))]


def _print_failures(records: Sequence[dict[str, Any]]) -> None:
    from collections import Counter

    from llamarl.report.text import one_line

    reasons = Counter((record["judge"], record["reason"]) for record in records if record["status"] == "failed")
    for (judge, reason), count in reasons.most_common(5):
        say(f"failed {count}x, {judge}: {one_line(reason, 160)}")


def _print_audit(results: "Sequence[AttackResult]", totals: "Sequence[AttackResult]") -> None:
    from llamarl.report.text import one_line

    header = ["", "tried", "passed", "rate", "95 % bound", "abstained", "failed"]
    for total in totals:
        mine = [each for each in (*results, total) if each.judge == total.judge]
        _print_table([total.judge, *header[1:]], [_audit_cells(each) for each in mine])
        for each in mine:
            for text in each.examples:
                say(f"wrongly judged, {each.attack}: {one_line(repr(text), 100)}")
        say()
    say("rate: share that passed, of those judged. High is right for 'good' replies, low for all others.")


def _audit_cells(each: "AttackResult") -> list[str]:
    bound = f"{each.upper:.1%}" if each.scored else "–"
    counts = [str(count) for count in (each.abstained, each.failed)]
    return [each.attack, str(each.tried), str(each.passed), _percent(each.rate), bound, *counts]


def _print_calibrations(results: "Sequence[Calibration]") -> None:
    from llamarl.report.text import format_number, format_seconds

    def matrix(each: "Calibration") -> str:
        counts = each.confusion
        return f"{counts.true_positives} {counts.false_positives} {counts.true_negatives} {counts.false_negatives}"

    rows: list[tuple[str, Callable[[Calibration], str]]] = [
        ("version", lambda each: each.version or "–"),
        ("scored / abstained / failed", lambda each: f"{each.scored} / {each.abstained} / {each.failed}"),
        ("agreement", lambda each: _percent(each.confusion.agreement)),
        ("true + / false + / true - / false -", matrix),
        ("precision", lambda each: _percent(each.confusion.precision)),
        ("recall", lambda each: _percent(each.confusion.recall)),
        ("F1", lambda each: format_number(each.confusion.f1)),
        ("Cohen's kappa", lambda each: format_number(each.confusion.kappa)),
        ("AUROC", lambda each: format_number(each.auroc)),
        ("rank correlation", lambda each: format_number(each.spearman)),
        ("calibration error", lambda each: format_number(each.calibration_error)),
        ("cost", lambda each: f"{format_number(each.cost)} ({each.cost_class})"),
        ("seconds p50 / p95", lambda each: f"{format_seconds(each.seconds_p50)} / {format_seconds(each.seconds_p95)}"),
    ]
    _print_table(["", *(each.judge for each in results)], [[name, *map(show, results)] for name, show in rows])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _print_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from llamarl.report.console import SafeConsole

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))
    SafeConsole().print(table)
