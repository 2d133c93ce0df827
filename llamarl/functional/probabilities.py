"""Measures of how well probabilities of a rare event are told, where the rows of one user are alike.

    correct_prior(logit, rate, share)        from the share of positives in training to their rate outside
    clustered_auroc, clustered_pearson       with intervals that count users, not rows
    quantile_bins, brier_score               calibration where nearly all probabilities are small

Intervals are 95 %, for users drawn at random.

Shape legend: N rows.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamarl.functional.statistics import Z_95, Bin, fisher_interval, ranks, wilson_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interval = tuple[float, float]


def correct_prior(logit: float, rate: float, share: float) -> float:
    """The logit of a classifier for a population with another share of positives than its training had.

        logit' = logit + log(rate / (1 - rate)) - log(share / (1 - share))

    It is exact where both differ in how many positives they hold, not in what positives or negatives are like: Saerens,
    Latinne and Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities" (2002), eq. 2.4.

    Args:
        logit: log-odds of a positive.
        rate: of positives in the population, in (0, 1).
        share: of positives in training, in (0, 1).
    """
    return logit + prior_offset(rate, share)


def prior_offset(rate: float, share: float) -> float:
    """The constant that `correct_prior` adds."""
    return math.log(rate / (1.0 - rate)) - math.log(share / (1.0 - share))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    interval: Interval


def clustered_auroc(scores: Sequence[float], labels: Sequence[bool], clusters: Sequence[Hashable]) -> Estimate | None:
    """Probability that a positive scores above a negative, ties counted half; None without both kinds.

    The variance is that of Obuchowski, "Nonparametric analysis of clustered ROC curve data" (1997), which is DeLong's
    where each cluster has one row. The interval is Wilson's with as many independent rows as the variance stands for,
    so that it stays within [0, 1]; where the variance says nothing (perfect order), with the clusters of the rarer
    kind.

    Args:
        scores: `[N]`
        labels: `[N]`
        clusters: `[N]` the user of each row.
    """
    import numpy as np

    score, label = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    cluster = _number(clusters)
    positive, negative = np.sort(score[label]), np.sort(score[~label])
    if not positive.size or not negative.size:
        return None
    beaten, beating = _share_below(negative, score[label]), 1.0 - _share_below(positive, score[~label])
    value = float(beaten.mean())
    size = int(cluster.max()) + 1
    of_positives = np.bincount(cluster[label], beaten - value, size) / positive.size
    of_negatives = np.bincount(cluster[~label], beating - value, size) / negative.size
    num_positive, num_negative = (len(np.unique(cluster[side])) for side in (label, ~label))
    if min(num_positive, num_negative) < 2:
        return Estimate(value, (0.0, 1.0))
    variance = (
        num_positive / (num_positive - 1) * float(of_positives @ of_positives)
        + num_negative / (num_negative - 1) * float(of_negatives @ of_negatives)
        + 2.0 * size / max(1, size - 1) * float(of_positives @ of_negatives)
    )
    plain = value * (1.0 - value)
    count = plain / variance if variance > 1e-15 and plain > 0.0 else min(num_positive, num_negative)
    return Estimate(value, wilson_interval(value * count, count))


def clustered_pearson(first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable]) -> Estimate | None:
    """Pearson's correlation with an interval that allows for users; None where one side does not vary.

    The variance is that of the mean influence of users, and the interval is taken on Fisher's scale:

        influence of a row = z1 z2 - r (z1^2 + z2^2) / 2        z: standardised values

    Args:
        first: `[N]`
        second: `[N]`
        clusters: `[N]` the user of each row.
    """
    import numpy as np

    x, y = (np.asarray(values, dtype=float) for values in (first, second))
    if not len(x) or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return None
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    value = min(1.0, max(-1.0, float((x * y).mean())))
    influence = np.bincount(_number(clusters), x * y - value * (x * x + y * y) / 2.0)
    if len(influence) < 4 or 1.0 - value * value < 1e-12:
        return Estimate(value, fisher_interval(value, len(influence)))
    variance = len(influence) / (len(influence) - 1) * float(influence @ influence) / len(x) ** 2
    half = Z_95 * math.sqrt(variance) / (1.0 - value * value)
    return Estimate(value, (math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)))


def quantile_bins(probabilities: Sequence[float], outcomes: Sequence[float], num_bins: int = 10) -> list[Bin]:
    """Predicted against observed frequency in bins of about equally many rows; equal probabilities share a bin.

    Args:
        probabilities: `[N]` each in [0, 1].
        outcomes: `[N]` 1 where it came true, 0 where not.
        num_bins: at most so many.
    """
    members: dict[int, list[tuple[float, float]]] = {}
    places = ranks(probabilities)
    for place, *pair in zip(places, probabilities, outcomes, strict=True):
        members.setdefault(int((place - 0.5) / len(places) * num_bins), []).append((pair[0], pair[1]))
    return [
        Bin(len(pairs), sum(p for p, _ in pairs) / len(pairs), sum(y for _, y in pairs) / len(pairs))
        for _, pairs in sorted(members.items())
    ]


def brier_score(probabilities: Sequence[float], outcomes: Sequence[float]) -> float:
    """The mean squared gap between probability and outcome: 0 is perfect; lower is better.

    The constant `b`, the frequency itself, has `b (1 - b)`.
    """
    return math.fsum((p - y) ** 2 for p, y in zip(probabilities, outcomes, strict=True)) / len(probabilities)


def _share_below(ordered: "NDArray[Any]", values: "NDArray[Any]") -> "NDArray[Any]":
    """The share of some sorted numbers that each value exceeds, equal ones counted half."""
    import numpy as np

    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2.0 * len(ordered))


def _number(clusters: Sequence[Hashable]) -> "NDArray[Any]":
    """`[N]` numbers from 0, equal where the clusters are."""
    import numpy as np

    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(each, len(numbers)) for each in clusters], dtype=np.int64)
