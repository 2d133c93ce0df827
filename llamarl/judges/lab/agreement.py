"""Does a judge agree with labels? Pure numbers. How far its scores are probabilities: `functional.preference`.

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
