"""Statistics and their uncertainty: proportions, agreement with labels, correlations, calibration, resampling.

    Share.of(flags)                       a proportion with its Wilson interval
    Confusion.of(decisions, labels)       agreement, precision, recall, F1, Cohen's kappa
    clustered_rate, fisher_interval       rates of users with many messages; the interval of a correlation
    auroc, spearman, pearson              do scores order as labels or other scores do?
    calibration_error(reliability(p, y))  are probabilities frequencies?
    percentile_interval(resample_sums(x)) the bootstrap, of quotients of sums

Quantities that are not defined (a precision without positives, the correlation with a constant) are None.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z_95 = 1.959963984540054
"""The standard normal quantile of a two-sided 95 % interval."""
NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
MAX_DRAWN = 2_000_000
"""Rows that a bootstrap draws at a time: bounds memory."""


def wilson_interval(successes: float, total: float, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion; (0, 1) where nothing was counted.

    Args:
        successes: in [0, total].
        total: trials; a fraction where trials that go together count for fewer.
        z: normal quantile; the default gives 95 %.
    """
    if total == 0:
        return 0.0, 1.0
    share, scale = successes / total, 1.0 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1.0 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_rate(
    sums: Sequence[float], design_effect: float | None = None
) -> tuple[float, tuple[float, float], float]:
    """A rate of messages with an interval that allows for users.

        rate p = sum l / sum n        variance = U / (U - 1) * sum (l - p n)^2 / (sum n)^2

    over U users with l loves of n messages each. The interval is Wilson's with p (1 - p) / variance messages. Users of
    one message each give the plain Wilson interval, but for the factor U / (U - 1).

    Args:
        sums: of l, n, 1, l^2, l n, n^2 over users.
        design_effect: used where the variance says nothing: nobody loved anything, everybody everything, or one user.

    Returns:
        The rate, its 95 % interval, and the design effect: how many messages count as much as an independent one.
    """
    loves, shown, users, love_squares, products, shown_squares = sums
    rate = loves / shown
    spread = max(0.0, love_squares - 2.0 * rate * products + rate * rate * shown_squares)
    plain = rate * (1.0 - rate) / shown
    if users > 1 and spread > 0.0 and plain > 0.0:
        design_effect = max(1.0, users / (users - 1.0) * spread / (shown * shown) / plain)
    effect = min(design_effect or 1.0, shown)
    return rate, wilson_interval(loves / effect, shown / effect), effect


def fisher_interval(correlation: float, count: int) -> tuple[float, float]:
    """The 95 % interval of Pearson's r by Fisher's transform; (-1, 1) with fewer than four pairs.

    Args:
        correlation: in [-1, 1].
        count: pairs.
    """
    if count < 4:
        return -1.0, 1.0
    if abs(correlation) >= 1.0:
        return correlation, correlation
    half = Z_95 / math.sqrt(count - 3)
    return math.tanh(math.atanh(correlation) - half), math.tanh(math.atanh(correlation) + half)


@dataclass(frozen=True, slots=True)
class Share:
    """A proportion with its 95 % Wilson interval."""

    count: int
    """Rows it is taken of."""
    value: float | None
    """None of no rows."""
    low: float
    high: float

    @classmethod
    def of(cls, flags: Sequence[bool]) -> "Share":
        """The share of True."""
        low, high = wilson_interval(sum(flags), len(flags))
        return cls(len(flags), sum(flags) / len(flags) if flags else None, low, high)

    def __str__(self) -> str:
        value = "-" if self.value is None else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{value} of {self.count}"


@dataclass(frozen=True)
class Confusion:
    """Counts of decisions against labels; a positive is a pass."""

    true_positives: int = 0
    false_positives: int = 0
    true_negatives: int = 0
    false_negatives: int = 0

    @classmethod
    def of(cls, decisions: Sequence[bool], labels: Sequence[bool]) -> "Confusion":
        """Counts pairs of decision and label."""
        pairs = list(zip(decisions, labels, strict=True))
        return cls(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True))))

    @property
    def total(self) -> int:
        """All pairs."""
        return self.true_positives + self.false_positives + self.true_negatives + self.false_negatives

    @property
    def agreement(self) -> float | None:
        """Share of equal pairs (accuracy)."""
        return _ratio(self.true_positives + self.true_negatives, self.total)

    @property
    def precision(self) -> float | None:
        """Share of passes that should pass."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """Share of those that should pass that do."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond chance, `(p_o - p_e) / (1 - p_e)`; 1 is perfect, 0 is chance.

        Computed from whole numbers, so that chance is 0 without rounding.

        Reference: Cohen, A coefficient of agreement for nominal scales, 1960.
        """
        passes, fails = self.true_positives + self.false_positives, self.true_negatives + self.false_negatives
        should, should_not = self.true_positives + self.false_negatives, self.true_negatives + self.false_positives
        excess = self.true_positives * self.true_negatives - self.false_positives * self.false_negatives
        return _ratio(2 * excess, passes * should_not + fails * should)


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Probability that a positive scores above a negative, ties counted half; None without both kinds.

    Computed from ranks (Mann-Whitney): `(R+ - n+ (n+ + 1) / 2) / (n+ n-)` with R+ the rank sum of the positives.
    """
    positives = sum(labels)
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    rank_sum = sum(rank for rank, label in zip(ranks(scores), labels, strict=True) if label)
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Correlation of the ranks; None where one side does not vary."""
    x, y = ranks(first), ranks(second)
    mean = (len(x) + 1) / 2
    covariance = math.fsum((a - mean) * (b - mean) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(math.fsum((a - mean) ** 2 for a in x) * math.fsum((b - mean) ** 2 for b in y))
    return max(-1.0, min(1.0, covariance / spread)) if spread else None


def pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation; None where one side does not vary."""
    try:
        return correlation(first, second)
    except StatisticsError:
        return None


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share their mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            result[place] = (start + end) / 2 + 1
        start = end + 1
    return result


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of similar probability."""

    count: int
    predicted: float
    """Mean predicted probability."""
    observed: float
    """Share of them that came true."""


def reliability(probabilities: Sequence[float], outcomes: Sequence[float], num_bins: int = 10) -> list[Bin]:
    """Predicted against observed frequency in bins of equal width over [0, 1]; empty bins are left out.

    Args:
        probabilities: each in [0, 1].
        outcomes: 1 where it came true, 0 where not, 0.5 for a tie.
        num_bins: at least 1.
    """
    members: dict[int, list[tuple[float, float]]] = {}
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        place = min(int(probability * num_bins), num_bins - 1)
        members.setdefault(place, []).append((probability, outcome))
    return [
        Bin(len(pairs), sum(p for p, _ in pairs) / len(pairs), sum(o for _, o in pairs) / len(pairs))
        for _, pairs in sorted(members.items())
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean gap between predicted and observed, each bin weighted by its count.

    Guo et al., "On calibration of modern neural networks" (2017), eq. 3. NaN without predictions.
    """
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.predicted - each.observed) for each in bins) / total if total else math.nan


def quantile(values: Collection[float], share: float) -> float | None:
    """Gives the smallest value that at least `share` of the values do not exceed; None of no values."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None


def resample_sums(
    counts: "NDArray[Any]",
    seed: int | Sequence[int] = 0,
    num_resamples: int = NUM_RESAMPLES,
    max_drawn: int = MAX_DRAWN,
) -> "NDArray[Any]":
    """Sums the columns over as many rows, drawn with replacement: a bootstrap.

    Equal seeds draw the same rows, so two sets of columns over the same rows are compared in pairs.

    Args:
        counts: [rows, columns].
        seed: of the draws.
        num_resamples: how many.
        max_drawn: rows drawn at a time; changes memory only.

    Returns:
        [resamples, columns].
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    num_rows = len(counts)
    step = max(1, max_drawn // num_rows)
    sums = np.empty((num_resamples, counts.shape[1]))
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        drawn = generator.integers(num_rows, size=(size, num_rows)) + num_rows * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows)
        sums[start : start + size] = times.astype(np.float64) @ counts  # whole numbers: exact in any order
    return sums


def percentile_interval(drawn: "NDArray[Any]", confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Bounds resampled values by their percentiles, those that are NaN left out; None where no resample has one."""
    import numpy as np

    values = drawn[~np.isnan(drawn)]
    if not values.size:
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
