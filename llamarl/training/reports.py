"""Measures of a reward model or classifier on rows it was not trained on. Plain numbers, no torch.

Shape legend: N rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llamarl.core import metric_names as names
from llamarl.functional.preference import calibrated_reward
from llamarl.functional.statistics import Bin, Share, calibration_error, pearson, reliability


@dataclass(frozen=True, slots=True)
class PairReport:
    """Measures of a reward model on preference pairs."""

    accuracy: Share
    """Pairs whose chosen answer scores higher; equal scores count as wrong."""
    loss: float
    """Mean of -log sigmoid(margin), nats; log 2 = 0.693 is chance."""
    margin_mean: float
    """Mean of r(chosen) - r(rejected)."""
    length_correlation: float | None
    """Pearson, of score and answer tokens over all answers; near 0 is good unless good answers are long."""
    length_gap_correlation: float | None
    """Pearson, of margin and token difference over pairs: the same without differences between prompts."""
    accuracy_where_chosen_is_shorter: Share
    """Low beside a high `..._longer`: the model rewards length."""
    accuracy_where_chosen_is_longer: Share
    calibration_error: float
    """Expected gap between sigmoid(|margin|) and the share of pairs ordered rightly."""
    bins: list[Bin]
    """Bins of the calibration plot."""

    def metrics(self) -> dict[str, float | None]:
        """Scalars for `metrics.jsonl`."""
        return {
            **_share_metrics(self.accuracy),
            names.HELD_OUT_LOSS: self.loss,
            names.HELD_OUT_MARGIN: self.margin_mean,
            names.HELD_OUT_LENGTH_CORRELATION: self.length_correlation,
            names.HELD_OUT_CALIBRATION: self.calibration_error,
        }


@dataclass(frozen=True, slots=True)
class LabelReport:
    """Measures of a classifier on labelled rows."""

    accuracy: Share
    """Rows whose likelier label is the right one."""
    loss: float
    """Mean cross-entropy, nats."""
    recall_of_positive: Share
    """Rows labelled true that are called positive."""
    recall_of_negative: Share
    """Rows labelled false that are called negative."""
    calibration_error: float
    """Expected gap between the probability of `positive` and its frequency."""
    bins: list[Bin]
    """Bins of the calibration plot."""

    def metrics(self) -> dict[str, float | None]:
        """Scalars for `metrics.jsonl`."""
        return {
            **_share_metrics(self.accuracy),
            names.HELD_OUT_LOSS: self.loss,
            names.HELD_OUT_CALIBRATION: self.calibration_error,
        }


def report_pairs(chosen: Sequence[float], rejected: Sequence[float], lengths: Sequence[tuple[int, int]]) -> PairReport:
    """Measures scored pairs.

    Args:
        chosen: `[N]` scores, N at least 1.
        rejected: `[N]` scores.
        lengths: `[N]` answer tokens of chosen and rejected.
    """
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    gaps = [a - b for a, b in lengths]
    is_right = [margin > 0 for margin in margins]
    bins = reliability(
        [calibrated_reward(abs(margin)) for margin in margins],
        [0.5 if margin == 0 else float(margin > 0) for margin in margins],
        num_bins=20,  # ten of them over [0.5, 1], where all confidences lie
    )
    tokens = [a for a, _ in lengths] + [b for _, b in lengths]
    return PairReport(
        accuracy=Share.of(is_right),
        loss=_mean([_softplus(-margin) for margin in margins]),
        margin_mean=_mean(margins),
        length_correlation=pearson([*chosen, *rejected], tokens),
        length_gap_correlation=pearson(margins, gaps),
        accuracy_where_chosen_is_shorter=Share.of([ok for ok, gap in zip(is_right, gaps, strict=True) if gap < 0]),
        accuracy_where_chosen_is_longer=Share.of([ok for ok, gap in zip(is_right, gaps, strict=True) if gap > 0]),
        calibration_error=calibration_error(bins),
        bins=bins,
    )


def report_labels(logits: Sequence[float], labels: Sequence[float]) -> LabelReport:
    """Measures classified rows.

    Args:
        logits: `[N]` of `positive` minus `negative`, N at least 1.
        labels: `[N]` 1 or 0.
    """
    pairs = list(zip(logits, labels, strict=True))
    bins = reliability([calibrated_reward(logit) for logit in logits], labels)
    return LabelReport(
        accuracy=Share.of([(logit > 0) == bool(label) for logit, label in pairs]),
        loss=_mean([_softplus(-logit if label else logit) for logit, label in pairs]),
        recall_of_positive=Share.of([logit > 0 for logit, label in pairs if label]),
        recall_of_negative=Share.of([logit <= 0 for logit, label in pairs if not label]),
        calibration_error=calibration_error(bins),
        bins=bins,
    )


def _share_metrics(share: Share) -> dict[str, float | None]:
    return {
        names.HELD_OUT_ACCURACY: share.value,
        names.HELD_OUT_ACCURACY_LOW: share.low,
        names.HELD_OUT_ACCURACY_HIGH: share.high,
        names.HELD_OUT_ROWS: float(share.count),
    }


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
