"""judge run, judge audit, judge calibrate: judges by themselves, on completions from anywhere.

Exit status: 0 everything was judged, no audit limit was exceeded; 1 some verdicts failed (the output is written all the
same), a judge broke, or an audit found too many attacks that pass or good replies that don't; 2 the input is wrong; 130
interrupted.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field

from llamarl.cli.common import print_json, say, show_progress
from llamarl.cli.options import LiveOutput
from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError
from llamarl.core.paths import FullPath

if TYPE_CHECKING:
    from llamarl.judges.lab.audit import AttackResult
    from llamarl.judges.lab.calibrate import Calibration
    from llamarl.judges.panel import JudgePanel

T = TypeVar("T")


class JudgeSettings(Config):
    """Judges and how they are called."""

    judge: Annotated[tuple[str, ...], Metavar("JUDGE")]
    """A shipped judge's name (math, code, instructions, ...), module:function, file.py:function, or a TOML file with a
    judge's settings or [[judges]] (a recipe too)."""
    max_in_flight: int = Field(default=16, ge=1)
    """Rows judged at the same time."""


class RunSettings(JudgeSettings):
    """Completions to judge."""

    data: Annotated[str, Metavar("FILE")]
    """Prompt rows with a 'completion', a text or a list of texts."""
    out: Annotated[FullPath, Metavar("FILE")]
    """JSON lines, one per completion and judge."""


class AuditSettings(JudgeSettings):
    """Attacks on judges."""

    data: Annotated[str | None, Metavar("FILE")] = None
    """Prompt rows; 'good' holds replies that must pass, 'completion' replies that must not (default: shipped rows)."""
    attack: Annotated[tuple[str, ...], Metavar("KIND")] = ()
    """Kind of attack to try alone (default: all)."""
    max_rate: Annotated[float, Metavar("R")] = Field(default=0.05, ge=0.0, le=1.0)
    """Exit status 1 if a larger share of any kind of attack passes, or of the good replies doesn't."""
    out: Annotated[FullPath | None, Metavar("FILE")] = None
    """Write the report as JSON."""
    report: Annotated[FullPath | None, Metavar("FILE.html")] = None
    """Write the report as a page that opens by double click."""


class CalibrateSettings(JudgeSettings):
    """Labelled completions to compare judges with."""

    data: Annotated[str, Metavar("FILE")]
    """Rows with 'completion' and 'label' (true or false) or 'score' (a number)."""
    label_threshold: Annotated[float, Metavar("S")] = 0.5
    """Labelled scores from S on should pass."""
    out: Annotated[FullPath | None, Metavar("FILE")] = None
    """Write the report as JSON."""
    report: Annotated[FullPath | None, Metavar("FILE.html")] = None
    """Write the report as a page that opens by double click."""
    figure: Annotated[FullPath | None, Metavar("PNG")] = None
    """Draw confusion and reliability."""


def run(settings: RunSettings, output: LiveOutput) -> int:
    """Judge completions from a file.

    Examples:
        llamarl judge run --judge math --data answers.jsonl --out verdicts.jsonl
        llamarl judge run --judge rewards.py:accuracy --judge safety.toml --data answers.jsonl --out verdicts.jsonl
        the same command again goes on where an interrupted one stopped
    """
    from llamarl.judges.lab.runner import job_key, judge_file, summary_of
    from llamarl.judges.rows import read_completions

    out = settings.out
    if out.resolve() == Path(settings.data).resolve():
        raise ConfigError(f"--out {out}: is the data itself; give another file")
    configs = _read_judges(settings)
    rows = read_completions(settings.data)

    async def work(panel: "JudgePanel") -> Any:
        key = job_key(configs)
        with _show_rows(output, len(rows)) as on_done:
            return await judge_file(
                panel,
                rows,
                out,
                key=key,
                max_in_flight=settings.max_in_flight,
                on_done=on_done,
            )

    records = _with_panel(settings, work)
    summary = summary_of(records)
    if output.json:
        print_json({"rows": len(rows), "out": str(out), "judges": summary})
    else:
        _print_table(
            ["judge", "scored/abstained/failed", "mean", "pass rate", "cost", "p50", "p95"],
            [_run_cells(line) for line in summary],
        )
        say(f"{len(records)} verdicts on {len(rows)} rows written to {out}")
        _print_failures(records)
    return int(any(line["failed"] for line in summary))


def audit(settings: AuditSettings, output: LiveOutput) -> int:
    """Try to fool judges with empty, copied, manipulative replies.

    Examples:
        llamarl judge audit --judge math
        llamarl judge audit --judge safety.toml --data harmful.jsonl --attack known_bad --attack known_bad_injected
        llamarl judge audit --judge rubric.toml --max-rate 0.01 --report audit.html
    """
    from llamarl.judges.lab.audit import audit, overall, problems, read_audit_rows, shipped_rows
    from llamarl.judges.lab.report import build_audit_page
    from llamarl.report.files import write_json
    from llamarl.report.page import check_page_path, write_page

    if settings.report:
        check_page_path(settings.report)
    given = None if settings.data is None else read_audit_rows(settings.data)

    async def work(panel: "JudgePanel") -> Any:
        rows = shipped_rows(panel) if given is None else given
        with _show_rows(output, len(rows)) as on_done:
            return await audit(
                panel,
                rows,
                settings.attack,
                max_in_flight=settings.max_in_flight,
                on_done=on_done,
            )

    results = _with_panel(settings, work)
    totals = overall(results)
    warnings = problems(results, settings.max_rate)
    report = {
        "attacks": [each.to_dict() for each in results],
        "overall": [each.to_dict() for each in totals],
        "max_rate": settings.max_rate,
        "problems": warnings,
    }
    if settings.out:
        write_json(settings.out, report)
    if settings.report:
        write_page(settings.report, build_audit_page(results, totals, warnings, settings.max_rate))
    if output.json:
        print_json(report)
    else:
        _print_audit(results, totals)
        for warning in warnings:
            say(f"warning: {warning}")
        if settings.report:
            say(f"page {settings.report}")
    return int(bool(warnings))


def calibrate(settings: CalibrateSettings, output: LiveOutput) -> int:
    """Compare judges with labelled completions.

    Examples:
        llamarl judge calibrate --judge safety.toml --data labelled.jsonl --report calibration.html
        llamarl judge calibrate --judge a.toml --judge b.toml --data labelled.jsonl --out calibration.json
    """
    from llamarl.judges.lab.calibrate import calibrate, plot_calibration
    from llamarl.judges.lab.report import build_calibration_page
    from llamarl.judges.rows import read_completions
    from llamarl.report.files import write_json
    from llamarl.report.page import check_page_path, write_page

    if settings.report:
        check_page_path(settings.report)
    rows = read_completions(settings.data, aside=("label", "score"))

    async def work(panel: "JudgePanel") -> Any:
        with _show_rows(output, len(rows)) as on_done:
            return await calibrate(
                panel,
                rows,
                label_threshold=settings.label_threshold,
                max_in_flight=settings.max_in_flight,
                on_done=on_done,
            )

    results: list[Calibration] = _with_panel(settings, work)
    report = {"rows": len(rows), "judges": [each.to_dict() for each in results]}
    if settings.out:
        write_json(settings.out, report)
    if settings.figure:
        plot_calibration(results, settings.figure)
    if settings.report:
        write_page(settings.report, build_calibration_page(results, len(rows)))
    if output.json:
        print_json(report)
    else:
        _print_calibrations(results)
        if settings.figure:
            say(f"figure {settings.figure}")
        if settings.report:
            say(f"page {settings.report}")
    return int(any(each.failed for each in results))


def _read_judges(settings: JudgeSettings) -> list[Any]:
    from llamarl.judges.config import read_judges

    return [config for spec in settings.judge for config in read_judges(spec)]


def _with_panel(settings: JudgeSettings, work: "Callable[[JudgePanel], Coroutine[Any, Any, T]]") -> T:
    """Runs `work` with the judges that were asked for, and closes them."""
    from llamarl.judges.lab.runner import equal_panel

    panel = equal_panel(_read_judges(settings))

    async def main() -> T:
        try:
            return await work(panel)
        finally:
            await panel.aclose()

    return asyncio.run(main())


@contextmanager
def _show_rows(output: LiveOutput, total: int) -> Iterator[Callable[[int, int], None]]:
    with show_progress("rows", output) as update:
        yield lambda done, failed: update(done, total, failed)


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

    header = ["", "tried", "passed", "rate", "95% bound", "abstained", "failed"]
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
