"""Decisions from scores: balanced accuracy, one threshold or two, how they are chosen, and their uncertainty.

    threshold = search_threshold(scores, labels)                   # on validation scores
    balanced_accuracy(count_decisions(test, truth, threshold, threshold))
    band = search_band(scores, labels, min_bacc=0.7)               # low and high; what lies between is left undecided

A label is True for the positive class (a factual claim); a score is high for it. A score above `high` is decided
positive, one below `low` negative, any other is unknown. With one threshold t a score is positive iff it is above t.

Reference: Qin et al., Learning Auxiliary Tasks Improves Reference-Free Hallucination Detection in Open-Domain Long-Form
Generation, https://arxiv.org/abs/2505.12265.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamarl.functional.statistics import Z_95

Array = NDArray[Any]
Constraint = Literal["decided", "all"]
ROUNDING = 1e-12
POSITIVE_RIGHT, POSITIVE_WRONG, NEGATIVE_RIGHT, NEGATIVE_WRONG, POSITIVE_UNKNOWN, NEGATIVE_UNKNOWN = range(6)
"""Columns of counts: claims of each class that were decided rightly, wrongly, or not at all."""


@dataclass(frozen=True, slots=True)
class Band:
    """Two thresholds and what they were worth where they were chosen."""

    low: float
    high: float
    bacc_unknown: float
    unknown_share: float


def check_classes(labels: Array) -> None:
    """Raises `ValueError` where one of the two classes is absent: balanced accuracy is not defined."""
    if not labels.any() or labels.all():
        raise ValueError(f"{len(labels)} labels of one class; balanced accuracy needs both")


def decide(scores: Array, low: float, high: float) -> tuple[Array, Array]:
    """Masks of the scores that are decided positive, and of those decided negative.

    Args:
        scores: [N].
        low: at most `high`.
        high: equal to `low` for a single threshold, which a positive score is above and a negative one is not.

    Raises:
        ValueError: low is above high.
    """
    if low > high:
        raise ValueError(f"low={low:g} is above high={high:g}")
    return scores > high, scores < low


def count_claims(scores: Array, labels: Array, low: float, high: float) -> Array:
    """One row of six indicator columns for each claim, which sum to the counts; unknown is a score in [low, high]."""
    positive, negative = decide(scores, low, high)
    unknown = ~(positive | negative)
    parts = (positive & labels, negative & labels, negative & ~labels, positive & ~labels)
    return np.stack([*parts, unknown & labels, unknown & ~labels], axis=1).astype(np.float64)


def count_single(scores: Array, labels: Array, threshold: float) -> Array:
    """`count_claims` of one threshold: positive iff above it, so nothing is unknown."""
    positive, nothing = scores > threshold, np.zeros(len(scores), dtype=bool)
    parts = (positive & labels, ~positive & labels, ~positive & ~labels, positive & ~labels)
    return np.stack([*parts, nothing, nothing], axis=1).astype(np.float64)


def balanced_accuracy(counts: Array, unknown: Literal["ignored", "right", "wrong"] = "ignored") -> Array:
    """Mean over the two classes of the share that is decided rightly.

        BAcc = 1/2 (TP / (TP + FN) + TN / (TN + FP))

    Args:
        counts: [..., 6].
        unknown: `ignored` leaves undecided claims out; `right` counts them as right, since an outside checker would
            decide them (BAcc-unknown); `wrong` counts them as wrong.

    Returns:
        [...]; NaN where a class has no claims.
    """
    halves = []
    for right, wrong, undecided in ((0, 1, 4), (2, 3, 5)):
        good = counts[..., right] + (counts[..., undecided] if unknown == "right" else 0.0)
        total = counts[..., right] + counts[..., wrong] + (0.0 if unknown == "ignored" else counts[..., undecided])
        with np.errstate(invalid="ignore"):
            halves.append(good / total)
    return 0.5 * (halves[0] + halves[1])


def share_unknown(counts: Array) -> Array:
    """The share of claims that is left undecided. NaN of no claims."""
    unknown: Array = counts[..., POSITIVE_UNKNOWN:].sum(axis=-1)
    with np.errstate(invalid="ignore"):
        share: Array = unknown / counts.sum(axis=-1)
    return share


def list_cuts(scores: Array) -> Array:
    """Midpoints of neighbouring unique scores, sorted; empty for fewer than two."""
    unique: Array = np.unique(scores)
    lower, upper = unique[:-1], unique[1:]
    cuts: Array = lower + (upper - lower) / 2
    cuts[cuts >= upper] = lower[cuts >= upper]  # of neighbouring floats the lower one parts them: P > t is strict
    return cuts


def search_threshold(scores: Array, labels: Array) -> float:
    """The threshold of the highest balanced accuracy; of several, the nearest to 0.5.

    Candidates are `list_cuts`. Where none of them does as well as deciding all claims alike (balanced accuracy 0.5),
    the threshold is one that does that, so that no threshold whatsoever is better than the one returned.

    Args:
        scores: [N], of validation claims, in [0, 1].
        labels: [N], both classes.
    """
    check_classes(labels)
    cuts = list_cuts(scores)
    positives, negatives = np.sort(scores[labels]), np.sort(scores[~labels])
    # twice the balanced accuracy times both class sizes: whole numbers, so that ties are ties
    found = np.searchsorted(negatives, cuts, side="right") * len(positives)
    found += (len(positives) - np.searchsorted(positives, cuts, side="right")) * len(negatives)
    if not cuts.size or found.max() < len(positives) * len(negatives):
        return _all_alike(float(scores.min()), float(scores.max()))
    best = cuts[found == found.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _all_alike(least: float, greatest: float) -> float:
    """The threshold nearest to 0.5 that has all scores on one side."""
    if least > 0.5 or greatest <= 0.5:
        return 0.5
    ends = [(1.0 + greatest) / 2] + ([least / 2] if least > 0.0 else [])
    return min(ends, key=lambda end: abs(end - 0.5))


def search_band(scores: Array, labels: Array, min_bacc: float = 0.7, constraint: Constraint = "decided") -> Band | None:
    """The two thresholds of the highest BAcc-unknown among those whose balanced accuracy is above `min_bacc`.

    Of several it is the pair that leaves the fewest claims unknown, and of those the one nearest to 0.5. Candidates are
    all pairs low <= high of `list_cuts`.

    Args:
        scores: [N], of validation claims.
        labels: [N], both classes.
        min_bacc: what the constraint's balanced accuracy must be above.
        constraint: `decided` takes it of the decided claims, which a wide band raises; `all` takes it of all claims
            with the unknown ones as wrong, which limits their number.

    Returns:
        None where no pair meets the constraint.
    """
    check_classes(labels)
    cuts = list_cuts(scores)
    below, above = _count_outside(np.sort(scores[labels]), cuts), _count_outside(np.sort(scores[~labels]), cuts)
    (lost, kept), (caught, passed) = below, above  # positives below and above each cut, negatives likewise
    num_positive, num_negative = int(labels.sum()), int((~labels).sum())
    best: tuple[int, int, float] | None = None
    chosen = (0.0, 0.0)
    for place, low in enumerate(cuts):
        if best is not None and lost[place] * num_negative > best[0]:
            break  # the positives below `low` alone cost more than the best pair does, and they only grow in number
        highs = slice(place, None)
        counts = np.zeros((len(cuts) - place, 6))
        counts[:, POSITIVE_RIGHT], counts[:, POSITIVE_WRONG] = kept[highs], lost[place]
        counts[:, NEGATIVE_RIGHT], counts[:, NEGATIVE_WRONG] = caught[place], passed[highs]
        counts[:, POSITIVE_UNKNOWN] = num_positive - kept[highs] - lost[place]
        counts[:, NEGATIVE_UNKNOWN] = num_negative - caught[place] - passed[highs]
        reached = balanced_accuracy(counts, "ignored" if constraint == "decided" else "wrong")
        # 0.7 with a rounding error is not above 0.7; nor is a NaN, of a class that is never decided
        allowed = np.flatnonzero(reached > min_bacc + ROUNDING)
        if not allowed.size:
            continue
        # the loss of BAcc-unknown, times twice both class sizes
        costs = lost[place] * num_negative + passed[highs][allowed] * num_positive
        unknown = counts[allowed, POSITIVE_UNKNOWN:].sum(axis=1)
        distance = np.abs(cuts[highs][allowed] - 0.5) + abs(low - 0.5)
        first = np.lexsort((distance, unknown, costs))[0]
        value = (int(costs[first]), int(unknown[first]), float(distance[first]))
        if best is None or value < best:
            best, chosen = value, (float(low), float(cuts[highs][allowed[first]]))
    if best is None:
        return None
    counts = count_claims(scores, labels, *chosen).sum(axis=0)
    return Band(*chosen, float(balanced_accuracy(counts, "right")), float(share_unknown(counts)))


def _count_outside(values: Array, cuts: Array) -> tuple[Array, Array]:
    """The numbers of sorted values below each cut, and above it."""
    return np.searchsorted(values, cuts, side="left"), len(values) - np.searchsorted(values, cuts, side="right")


def sum_clusters(counts: Array, clusters: Sequence[Hashable]) -> Array:
    """Sums the rows of each cluster, in the order in which clusters first appear: [clusters, columns]."""
    places: dict[Hashable, int] = {}
    index = [places.setdefault(cluster, len(places)) for cluster in clusters]
    sums = np.zeros((len(places), counts.shape[1]))
    np.add.at(sums, index, counts)
    return sums


@dataclass(frozen=True, slots=True)
class RankedPairs:
    """The area under the ROC curve, and what each claim contributes to its error."""

    value: float
    influence: Array
    """[N]; sums over clusters give the variance."""

    @classmethod
    def of(cls, scores: Array, labels: Array) -> "RankedPairs":
        """Probability that a positive scores above a negative, ties counted half."""
        check_classes(labels)
        positives, negatives = np.sort(scores[labels]), np.sort(scores[~labels])
        won = _share_below(negatives, scores[labels])
        beaten = 1.0 - _share_below(positives, scores[~labels])
        value = float(won.mean())
        influence = np.empty(len(scores))
        influence[labels], influence[~labels] = (won - value) / len(positives), (beaten - value) / len(negatives)
        return cls(value, influence)


def cluster_interval(value: float, influence: Array, clusters: Sequence[Hashable]) -> tuple[float, float] | None:
    """The 95 % normal interval of an estimate whose errors go together in clusters; None of fewer than two clusters.

        variance = C / (C - 1) sum over clusters of (sum of the influence of their claims)^2

    For the area under the ROC curve this is Obuchowski's variance for clustered data (Biometrics 53, 1997), and
    DeLong's where each claim is a cluster. For a difference of two areas over the same claims, give the difference of
    their influences.
    """
    sums = sum_clusters(influence[:, None], clusters)[:, 0]
    if len(sums) < 2:
        return None
    half = Z_95 * math.sqrt(len(sums) / (len(sums) - 1) * float(sums @ sums))
    return value - half, value + half


def rank_interval(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """The 95 % score interval of an area under the ROC curve, for few claims: perfect order leaves it some width.

        the areas A with (value - A)^2 <= z^2 A (1 - A) (1 + m ((1 - A) / (2 - A) + A / (1 + A))) / (P N),
        P positives, N negatives, m = (P + N) / 2 - 1

    With one claim of each class it is the Wilson interval of one trial. Claims are taken for independent.

    Reference: Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
    method 5 (Statistics in Medicine 25, 2006), whose variance is Hanley and McNeil's.

    Args:
        value: the area found, from 0 to 1.
        positives: claims of the one class, at least 1.
        negatives: of the other.
    """
    extra = (positives + negatives) / 2 - 1

    def is_inside(area: float) -> bool:
        spread = 1.0 + extra * ((1.0 - area) / (2.0 - area) + area / (1.0 + area))
        return (value - area) ** 2 <= Z_95**2 * area * (1.0 - area) * spread / (positives * negatives)

    def search(outside: float) -> float:
        inside = value
        for _ in range(60):  # halves the rest each time, down to rounding
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
        return inside

    return search(0.0), search(1.0)


def _share_below(sorted_values: Array, points: Array) -> Array:
    """The share of the values below each point, equal ones counted half."""
    left, right = (np.searchsorted(sorted_values, points, side=side) for side in ("left", "right"))
    return (left + right) / (2 * len(sorted_values))


def roc_curve(scores: Array, labels: Array) -> tuple[Array, Array]:
    """Shares of negatives and of positives from each score on, from (0, 0) to (1, 1), a point for each unique score."""
    thresholds = np.unique(scores)[::-1]
    shares = [
        1.0 - np.searchsorted(np.sort(part), thresholds, side="left") / len(part)
        for part in (scores[~labels], scores[labels])
    ]
    return tuple(np.concatenate([[0.0], share]) for share in shares)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """The claims that are decided, surest first, and how well."""

    coverage: float
    """Share of the claims that are decided."""
    accuracy: float
    bacc: float | None
    """None where only one class is decided."""


def coverage_curve(scores: Array, labels: Array, threshold: float, num_points: int = 50) -> list[CoveragePoint]:
    """Accuracy of the surest claims against their share: equal shares of those above the threshold and of the others.

    Surest is what is farthest from the threshold; claims of equal scores go together.

    Args:
        scores: [N].
        labels: [N].
        threshold: of the decisions.
        num_points: the most points; the last one covers all claims.
    """
    place = np.empty(len(scores))
    for side in (scores > threshold, scores <= threshold):
        distance = np.sort(np.abs(scores[side] - threshold))
        surer = len(distance) - np.searchsorted(distance, np.abs(scores[side] - threshold), side="left")
        place[side] = surer / max(1, len(distance))  # share of the side that is at least as sure
    order = np.argsort(place, kind="stable")
    counts = count_single(scores, labels, threshold)[order].cumsum(axis=0)
    ends = np.flatnonzero(np.append(np.diff(place[order]) != 0, True))
    if len(ends) > num_points:
        wanted = np.arange(1, num_points + 1) * len(scores) / num_points - 1
        ends = ends[np.unique(np.searchsorted(ends, np.ceil(wanted)))]
    points = []
    for end in ends:
        bacc = float(balanced_accuracy(counts[end]))
        right = counts[end, POSITIVE_RIGHT] + counts[end, NEGATIVE_RIGHT]
        points.append(
            CoveragePoint(float((end + 1) / len(scores)), float(right / (end + 1)), None if math.isnan(bacc) else bacc)
        )
    return points
