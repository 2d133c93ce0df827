"""Does a judge agree with labels? Pure numbers.

Labels are 1 (should pass) and 0. Undefined quantities (a precision without positives, say) are None.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


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

        Reference: Cohen, A coefficient of agreement for nominal scales, 1960.
        """
        if not self.total:
            return None
        passes = (self.true_positives + self.false_positives) / self.total
        should = (self.true_positives + self.false_negatives) / self.total
        by_chance = passes * should + (1 - passes) * (1 - should)
        return _ratio((self.agreement or 0.0) - by_chance, 1 - by_chance)


@dataclass(frozen=True)
class Bin:
    """Scores of one interval."""

    count: int
    mean_score: float
    share_positive: float


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


def reliability_bins(scores: Sequence[float], labels: Sequence[bool], num_bins: int = 10) -> list[Bin]:
    """Scores in [0, 1] against the share of positives, in bins of equal width; empty bins are left out."""
    members: dict[int, list[tuple[float, bool]]] = {}
    for score, label in zip(scores, labels, strict=True):
        members.setdefault(min(int(score * num_bins), num_bins - 1), []).append((score, label))
    return [
        Bin(len(pairs), math.fsum(s for s, _ in pairs) / len(pairs), sum(label for _, label in pairs) / len(pairs))
        for _, pairs in sorted(members.items())
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """Mean over all scores of |mean score - share of positives| of their bin.

    Reference: Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, 2015.
    """
    total = sum(each.count for each in bins)
    gaps = math.fsum(each.count * abs(each.mean_score - each.share_positive) for each in bins)
    return gaps / total if total else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
