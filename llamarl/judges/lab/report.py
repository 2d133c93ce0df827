"""The pages of an audit and of a calibration."""

from collections.abc import Iterator, Sequence

import llamarl
from llamarl.judges.lab.audit import GOOD, AttackResult
from llamarl.judges.lab.calibrate import Calibration
from llamarl.report.figures import Curve, Dot, LineChart, Row, RowChart, Tone
from llamarl.report.page import Notes, Page, Part, Section, Table, Verdict
from llamarl.report.text import format_number, format_seconds

MAX_EXAMPLE = 200
"""Characters of an example in the report."""
AUDIT_COLUMNS = ("attack", "tried", "passed", "rate", "95% bound", "abstained", "failed")
PASSING = Curve("perfect", [(0.0, 0.0), (1.0, 1.0)], style="dashed")


def build_audit_page(
    results: Sequence[AttackResult], totals: Sequence[AttackResult], warnings: Sequence[str], max_rate: float
) -> Page:
    """The page of an audit.

    Args:
        results: of `audit`.
        totals: of `overall`.
        warnings: of `problems`.
        max_rate: the limit of the warnings.
    """
    limit = f"more than {max_rate:.1%} of a kind of attack pass, nor fail more than {max_rate:.1%} of the good replies"
    verdict = (
        Verdict("bad", f"{len(warnings)} problem{'s' * (len(warnings) > 1)}")
        if warnings
        else Verdict("good", "Nothing speaks against these judges", f"None lets {limit}.")
    )
    return Page(
        title="Audit of judges",
        subtitle=", ".join(total.judge for total in totals),
        parts=[
            verdict,
            *([Notes(warnings)] if warnings else []),
            *(Section(total.judge, list(_attacks(total, results, max_rate))) for total in totals),
        ],
        footer=f"llamarl {llamarl.__version__}, judge audit.",
    )


def _attacks(total: AttackResult, results: Sequence[AttackResult], max_rate: float) -> Iterator[Part]:
    mine = [each for each in (*results, total) if each.judge == total.judge]
    yield RowChart(
        "Share that passed, of those judged",
        [Row(each.attack, [_dot(each, max_rate)], is_total=each is total) for each in mine],
        unit="%",
        marks=[0.0, max_rate],
        limits=(0.0, 1.0),
        caption="High is right for good replies, low for all others. Lines go to the 95% bound; dashed: the limit.",
    )
    yield Table(AUDIT_COLUMNS, list(map(_cells, mine)))
    for each in mine:
        if each.examples:
            yield f"Wrongly judged, {each.attack}:"
            yield Notes([_quote(example) for example in each.examples])


def _quote(text: str) -> str:
    """The reply between quotation marks on one line; of a long one, its beginning."""
    shown = text.replace("\n", "⏎")
    return f"“{shown}”" if len(shown) <= MAX_EXAMPLE else f"“{shown[:MAX_EXAMPLE]} …” ({len(text):,} characters)"


def _dot(each: AttackResult, max_rate: float) -> Dot:
    if each.rate is None:
        return Dot(None, text="none judged")
    is_wrong = each.rate < 1.0 - max_rate if each.attack == GOOD else each.rate > max_rate
    tone: Tone = "bad" if is_wrong else "good"
    ends = (None, None) if each.attack == GOOD else (each.rate, each.upper)
    return Dot(each.rate, None if ends[0] is None else ends, f"{each.rate:.1%} of {each.scored}", tone=tone)


def _cells(each: AttackResult) -> list[str]:
    rate, bound = ("–", "–") if each.rate is None else (f"{each.rate:.1%}", f"{each.upper:.1%}")
    return [each.attack, str(each.tried), str(each.passed), rate, bound, str(each.abstained), str(each.failed)]


def build_calibration_page(results: Sequence[Calibration], rows: int) -> Page:
    """The page of judges against labels.

    Args:
        results: of `calibrate`.
        rows: number of labelled rows.
    """
    rates = ("agreement", "precision", "recall")
    compared = RowChart(
        "Verdicts against the labels",
        [
            Row(each.judge, [Dot(value, text=_share(value), series=name) for name, value in _rates(each)])
            for each in results
        ],
        unit="%",
        limits=(0.0, 1.0),
        series=rates,
    )
    return Page(
        title="Judges against labelled completions",
        subtitle=f"{rows:,} rows: {', '.join(each.judge for each in results)}",
        parts=[
            compared,
            Table(["", *(each.judge for each in results)], list(_numbers(results))),
            Section("Do the scores mean what they say?", [*map(_reliability, results)]),
            Section("Right and wrong", list(map(_matrix, results))),
        ],
        footer=f"llamarl {llamarl.__version__}, judge calibrate. Rates are of the scored verdicts.",
    )


def _rates(each: Calibration) -> list[tuple[str, float | None]]:
    counts = each.confusion
    return [("agreement", counts.agreement), ("precision", counts.precision), ("recall", counts.recall)]


def _numbers(results: Sequence[Calibration]) -> Iterator[list[str]]:
    yield ["version", *(each.version or "–" for each in results)]
    for name in ("scored", "abstained", "failed"):
        yield [name, *(f"{getattr(each, name):,}" for each in results)]
    yield ["F1", *(format_number(each.confusion.f1) for each in results)]
    yield ["Cohen's kappa", *(format_number(each.confusion.kappa) for each in results)]
    yield ["AUROC", *(format_number(each.auroc) for each in results)]
    yield ["rank correlation", *(format_number(each.spearman) for each in results)]
    yield ["calibration error", *(format_number(each.calibration_error) for each in results)]
    yield ["cost", *(f"{format_number(each.cost)} ({each.cost_class})" for each in results)]
    yield ["seconds, median", *(format_seconds(each.seconds_p50) for each in results)]
    yield ["seconds, 95th percentile", *(format_seconds(each.seconds_p95) for each in results)]


def _reliability(each: Calibration) -> LineChart:
    error = each.calibration_error
    points = [(found.predicted, found.observed) for found in each.bins]
    return LineChart(
        each.judge,
        [Curve(each.judge, points, style="marked"), PASSING],
        x="score",
        y="share that should pass",
        limits=(0.0, 1.0),
        caption="Scores leave [0, 1]: nothing is drawn." if error is None else f"Calibration error {error:.3f}.",
    )


def _matrix(each: Calibration) -> Table:
    counts = each.confusion
    rows = [
        ["should pass", f"{counts.true_positives:,}", f"{counts.false_negatives:,}"],
        ["should fail", f"{counts.false_positives:,}", f"{counts.true_negatives:,}"],
    ]
    return Table([each.judge, "passes", "fails"], rows)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
