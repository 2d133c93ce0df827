"""Measures of P[Love] on messages that it was not trained on. Plain numbers, no torch.

Probabilities are corrected to the rate at which messages are loved outside of training (`correct_prior`); the order of
messages, and so the AUROC, is that of the raw logits. Intervals are 95%, for users drawn at random.

Shape legend: N messages.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llamarl.core import metric_names as names
from llamarl.functional.preference import calibrated_reward
from llamarl.functional.probabilities import (
    Estimate,
    brier_score,
    clustered_auroc,
    clustered_pearson,
    prior_offset,
    quantile_bins,
)
from llamarl.functional.statistics import Bin, calibration_error, clustered_rate

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Prior:
    """Rates at which messages are loved: outside, and among the draws of training."""

    base_rate: float
    """The rate in the log, in (0, 1)."""
    positive_share: float
    """The share among the draws of training, in (0, 1)."""

    @property
    def offset(self) -> float:
        """The number that turns a raw logit into a corrected one when it is added."""
        return prior_offset(self.base_rate, self.positive_share)


@dataclass(frozen=True, slots=True)
class Scored:
    """A message with its score."""

    logit: float
    """Raw, of the training's prior."""
    is_loved: bool
    user: str
    tokens: int
    """Tokens of the response."""
    segments: Mapping[str, str | None]
    """Segments that it belongs to, such as `{"surface": "web"}`."""


@dataclass(frozen=True)
class LoveMeasures:
    """Measures of P[Love] on one set of messages."""

    messages: int
    users: int
    loves: int
    observed_rate: float
    """`loves / messages`."""
    observed_interval: Interval
    mean_probability: float
    """Corrected; near the observed rate where the model is calibrated."""
    auroc: float | None
    """Probability that a loved message scores above another; None where all or none are loved."""
    auroc_interval: Interval | None
    brier: float
    """Mean squared gap between corrected probability and love."""
    length_correlation: float | None
    """Pearson's r of raw logit and response tokens; None where one of them does not vary."""
    length_correlation_interval: Interval | None
    calibration_error: float
    """Expected gap between corrected probability and frequency, over ten bins of equal counts."""
    bins: list[Bin]
    """Bins of the calibration curve."""


@dataclass(frozen=True)
class LoveReport(LoveMeasures):
    """Measures of P[Love] on all held-out messages, and by segment."""

    loss: float
    """Mean cross-entropy of the corrected probability, nats."""
    base_rate: float
    """The rate that probabilities are corrected to: that of the messages before the cut, all users included."""
    positive_share: float
    """Share of loved messages among the draws of training."""
    by: dict[str, dict[str, LoveMeasures]] = field(default_factory=dict)
    """Reports by segment, and by its value; "" where the log does not say."""

    def metrics(self) -> dict[str, float | None]:
        """Scalars for `metrics.jsonl`."""
        low, high = self.auroc_interval or (None, None)
        return {
            names.HELD_OUT_AUROC: self.auroc,
            names.HELD_OUT_AUROC_LOW: low,
            names.HELD_OUT_AUROC_HIGH: high,
            names.HELD_OUT_LOSS: self.loss,
            names.HELD_OUT_LENGTH_CORRELATION: self.length_correlation,
            names.HELD_OUT_CALIBRATION: self.calibration_error,
            names.HELD_OUT_ROWS: float(self.messages),
        }


def report_love(scored: Sequence[Scored], prior: Prior) -> LoveReport:
    """Measures scored messages, at least one, all together and by segment."""
    whole = measure_love(scored, prior)
    offset = prior.offset
    losses = [_softplus(-(each.logit + offset) if each.is_loved else each.logit + offset) for each in scored]
    segments = dict.fromkeys(name for each in scored for name in each.segments)
    return LoveReport(
        **vars(whole),
        loss=math.fsum(losses) / len(losses),
        base_rate=prior.base_rate,
        positive_share=prior.positive_share,
        by={name: _by_value(name, scored, prior) for name in segments},
    )


def measure_love(scored: Sequence[Scored], prior: Prior) -> LoveMeasures:
    """Measures scored messages, at least one."""
    logits, users = [each.logit for each in scored], [each.user for each in scored]
    loved = [each.is_loved for each in scored]
    probabilities = [calibrated_reward(logit + prior.offset) for logit in logits]
    order = clustered_auroc(logits, loved, users)
    length = clustered_pearson(logits, [each.tokens for each in scored], users)
    bins = quantile_bins(probabilities, loved)
    return LoveMeasures(
        messages=len(scored),
        users=len(set(users)),
        loves=sum(loved),
        observed_rate=sum(loved) / len(scored),
        observed_interval=_rate_interval(users, loved),
        mean_probability=math.fsum(probabilities) / len(scored),
        auroc=_value(order),
        auroc_interval=_interval(order),
        brier=brier_score(probabilities, loved),
        length_correlation=_value(length),
        length_correlation_interval=_interval(length),
        calibration_error=calibration_error(bins),
        bins=bins,
    )


def _rate_interval(users: Sequence[str], loved: Sequence[bool]) -> Interval:
    """The interval of the share that is loved, for users drawn at random."""
    shown = Counter(users)
    loves = Counter(user for user, is_loved in zip(users, loved, strict=True) if is_loved)
    counts = [(loves[user], count) for user, count in shown.items()]
    sums = [sum(values) for values in zip(*((y, n, 1, y * y, y * n, n * n) for y, n in counts), strict=True)]
    return clustered_rate(sums)[1]


def _by_value(segment: str, scored: Sequence[Scored], prior: Prior) -> dict[str, LoveMeasures]:
    members: dict[str, list[Scored]] = {}
    for each in scored:
        members.setdefault(each.segments.get(segment) or "", []).append(each)
    return {value: measure_love(those, prior) for value, those in sorted(members.items())}


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _interval(estimate: Estimate | None) -> Interval | None:
    return None if estimate is None else estimate.interval


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
