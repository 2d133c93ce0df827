"""A judge against labelled data: agreement, errors, calibration, cost and time.

results = await calibrate(panel, rows)
results[0].confusion.kappa, results[0].auroc
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.core.judge import Judge
from llamarl.core.records import Status, Verdict
from llamarl.functional.statistics import (
    Bin,
    Confusion,
    auroc,
    calibration_error,
    quantile,
    reliability,
    spearman,
)
from llamarl.judges.lab.runner import MAX_IN_FLIGHT, OnDone, judge_card, judge_rows
from llamarl.judges.panel import JudgePanel
from llamarl.judges.rows import CompletionRow, labels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_THRESHOLD = 0.5
"""A labelled `score` of at least this should pass."""


@dataclass(frozen=True)
class Calibration:
    """One judge against the labels. Metrics are over the scored verdicts; the others are counted."""

    judge: str
    version: str
    cost_class: str
    scored: int
    abstained: int
    failed: int
    confusion: Confusion
    auroc: float | None
    """None where the judge's scores or the labels take one value only."""
    spearman: float | None
    """Rank correlation of the scores with the labels."""
    calibration_error: float | None
    """Expected calibration error over 10 bins; None where scores leave [0, 1]."""
    bins: tuple[Bin, ...]
    cost: float
    seconds_p50: float | None
    seconds_p95: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        confusion = self.confusion
        names = ("agreement", "precision", "recall", "f1", "kappa")
        return {**asdict(self), **{name: getattr(confusion, name) for name in names}}


async def calibrate(
    panel: JudgePanel,
    rows: Sequence[CompletionRow],
    *,
    label_threshold: float = LABEL_THRESHOLD,
    max_in_flight: int = MAX_IN_FLIGHT,
    on_done: OnDone = lambda done, failed: None,
) -> list[Calibration]:
    """Judges labelled completions and compares.

    A reply passes if the verdict says so, or, where it only scores, from the judge's `pass_score` on (0.5 of most).

    Args:
        panel: the judges (`equal_panel`).
        rows: with `label` or `score` set aside in their extras.
        label_threshold: from which labelled score a completion should pass.
        max_in_flight: rows under way.
        on_done: called with the number of rows done.

    Raises:
        DataError: a row without usable labels, or without what a judge needs.
        JudgeError: a judge failed its last 64 samples.
    """
    labels = [label for row in rows for label in labels_of(row)]
    judged = await judge_rows(panel, rows, max_in_flight=max_in_flight, on_done=on_done)
    samples = [sample for group in judged for sample in group]
    return [
        compare(judge, [sample.verdicts[judge.name] for sample in samples], labels, label_threshold)
        for judge in panel.judges
    ]


def compare(
    judge: Judge, verdicts: Sequence[Verdict], labels: Sequence[float], label_threshold: float = LABEL_THRESHOLD
) -> Calibration:
    """The judge's verdicts against the labels, one each."""
    pairs = [(verdict, label) for verdict, label in zip(verdicts, labels, strict=True) if verdict.score is not None]
    scores = [verdict.score for verdict, _ in pairs if verdict.score is not None]
    should = [label >= label_threshold for _, label in pairs]
    varies = len(set(scores)) > 1
    bins = reliability(scores, should) if all(0.0 <= score <= 1.0 for score in scores) else []
    seconds = [verdict.seconds for verdict in verdicts]
    return Calibration(
        **judge_card(judge),
        scored=len(pairs),
        abstained=sum(verdict.status is Status.ABSTAINED for verdict in verdicts),
        failed=sum(verdict.status is Status.FAILED for verdict in verdicts),
        confusion=Confusion.of([judge.info.passes(verdict) is True for verdict, _ in pairs], should),
        auroc=auroc(scores, should) if varies else None,
        spearman=spearman(scores, [label for _, label in pairs]),
        calibration_error=calibration_error(bins) if bins else None,
        bins=tuple(bins),
        cost=sum(verdict.cost for verdict in verdicts),
        seconds_p50=quantile(seconds, 0.5),
        seconds_p95=quantile(seconds, 0.95),
    )


def plot_calibration(results: Sequence[Calibration], path: str | Path) -> None:
    """Draws, for each judge, its confusion matrix and its scores against the share that should pass."""
    from llamarl.report.plots import drawing

    with drawing(path, 9, 3.6 * len(results)) as figure:
        axes = figure.subplots(len(results), 2, squeeze=False)
        for (left, right), result in zip(axes, results, strict=True):
            _matrix(left, result)
            _reliability(right, result)


def _matrix(axes: "Axes", result: Calibration) -> None:
    counts = result.confusion
    table = [
        [counts.true_positives, counts.false_negatives],
        [counts.false_positives, counts.true_negatives],
    ]
    axes.imshow(table, cmap="Blues", vmin=0, vmax=max(1, counts.total))
    for row, line in enumerate(table):
        for column, count in enumerate(line):
            is_dark = count > 0.5 * counts.total
            axes.text(column, row, str(count), ha="center", va="center", color="white" if is_dark else "black", size=14)
    axes.set_xticks([0, 1], ["passes", "fails"])
    axes.set_yticks([0, 1], ["should pass", "should fail"])
    kappa = counts.kappa
    axes.set_title(
        f"{result.judge}: agreement {counts.agreement or 0:.1%}" + (f", kappa {kappa:.2f}" if kappa is not None else "")
    )


def _reliability(axes: "Axes", result: Calibration) -> None:
    from llamarl.report.plots import BLUE, GREY

    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfect")
    if result.bins:
        sizes = [20 + 280 * each.count / result.scored for each in result.bins]
        axes.scatter(
            [each.predicted for each in result.bins],
            [each.observed for each in result.bins],
            sizes,
            color=BLUE,
            alpha=0.8,
        )
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("judge's score; larger dots: more verdicts")
    axes.set_ylabel("share that should pass")
    error = result.calibration_error
    axes.set_title("scores outside [0, 1]" if error is None else f"calibration error {error:.3f}")
    axes.legend(loc="upper left", fontsize=8)
