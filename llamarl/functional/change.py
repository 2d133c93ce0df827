"""Factors by which a quantity became larger, with intervals: shares, means and collision probabilities of clusters.

    now, control = estimate_share([(3, 64), (1, 64)]), estimate_share([(0, 64), (1, 64)])
    share_change(now, control, chance=0.01)        # Change(ratio=4.0, low=..., high=...)

A cluster is what was drawn independently of the rest: all responses to one prompt, say. `chance` is the probability, on
each side, that the interval misses the true ratio.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamarl.functional.statistics import clustered_rate


@dataclass(frozen=True, slots=True)
class Estimate:
    """A quantity of a policy's responses, and how well it is known."""

    value: float
    """A share or a collision probability in [0, 1], or a mean; NaN without responses."""
    variance: float
    """Variance of `value` over draws of the clusters."""
    clusters: int
    responses: int
    design_effect: float = 1.0
    """Responses that count as much as an independent one."""


@dataclass(frozen=True, slots=True)
class Change:
    """A quantity divided by the control's."""

    ratio: float
    low: float
    high: float
    """Infinite where the control may be 0."""


def estimate_share(clusters: Sequence[tuple[float, float]]) -> Estimate:
    """The share of responses that show something.

    Args:
        clusters: of each, the responses that show it, and all.
    """
    sums = _sum(clusters)
    if sums[1] == 0:
        return Estimate(math.nan, math.nan, 0, 0)
    share, _, effect = clustered_rate(sums)
    return Estimate(share, effect * share * (1.0 - share) / sums[1], int(sums[2]), int(sums[1]), effect)


def estimate_mean(clusters: Sequence[tuple[float, float]]) -> Estimate:
    """The mean of a number over responses.

        mean m = sum x / sum n        variance = U / (U - 1) * sum (x - m n)^2 / (sum n)^2

    over U clusters; the variance is infinite for one cluster.

    Args:
        clusters: of each, the sum x over its responses, and how many n there are.
    """
    total, count, number, squares, products, count_squares = _sum(clusters)
    if count == 0:
        return Estimate(math.nan, math.nan, 0, 0)
    mean = total / count
    spread = max(0.0, squares - 2.0 * mean * products + mean * mean * count_squares)
    variance = number / (number - 1.0) * spread / (count * count) if number > 1 else math.inf
    return Estimate(mean, variance, int(number), int(count))


def estimate_collision(clusters: Sequence[Mapping[int, float]], responses: int) -> Estimate:
    """The probability that two marks, drawn from two clusters, are the same.

        C = sum over c != d of <w_c, w_d> / (K (K - 1))        variance = 4 / K * Var(h)
        h_c = sum over d != c of <w_c, w_d> / (K - 1)

    over K clusters: a U-statistic, unbiased whatever K is, whose variance is that of its first projection. -ln C is the
    Rényi entropy of order 2.

    Reference: Hoeffding, A class of statistics with asymptotically normal distribution, 1948.

    Args:
        clusters: of each, mark -> weight; the weights of a cluster add up to at most 1.
        responses: behind them.
    """
    number = len(clusters)
    if number < 2:
        return Estimate(math.nan, math.nan, number, responses)
    totals: dict[int, float] = {}
    for weights in clusters:
        for mark, weight in weights.items():
            totals[mark] = totals.get(mark, 0.0) + weight
    projections = [
        math.fsum(weight * (totals[mark] - weight) for mark, weight in weights.items()) / (number - 1)
        for weights in clusters
    ]
    value = math.fsum(projections) / number
    spread = math.fsum((each - value) ** 2 for each in projections) / (number - 1)
    return Estimate(max(0.0, value), 4.0 * spread / number, number, responses)


def share_change(now: Estimate, control: Estimate, chance: float) -> Change:
    """The factor by which a share became larger.

    Given how many hits both have together, those of `now` are binomial where hits are rare, with the chance
    n r / (n r + n_0) of each for the ratio r: the interval is Clopper's and Pearson's of that chance. Where hits are
    not rare it is wider than it need be. Both sides count as many responses as the larger design effect leaves.

    Reference: Przyborowski and Wilenski, Homogeneity of results in testing samples from Poisson series, 1940.

    Args:
        now: a share (`estimate_share`).
        control: the control's.
        chance: in (0, 1), of each side.
    """
    from scipy.special import betaincinv

    if not now.responses or not control.responses:
        return Change(math.nan, 0.0, math.inf)
    effect = max(now.design_effect, control.design_effect)
    count, count_control = now.responses / effect, control.responses / effect
    hits, hits_control = now.value * count, control.value * count_control
    low = float(betaincinv(hits, hits_control + 1.0, chance)) if hits else 0.0
    high = float(betaincinv(hits + 1.0, hits_control, 1.0 - chance)) if hits_control else 1.0
    return Change(
        _divide(now.value, control.value), *(_divide(p * count_control, (1.0 - p) * count) for p in (low, high))
    )


def mean_change(now: Estimate, control: Estimate, chance: float) -> Change:
    """The factor by which a positive quantity became larger.

        ln ratio +- t * sqrt(variance / value^2 + variance_0 / value_0^2)

    with Student's t of one less than the fewer clusters. Anything is possible where a side has fewer than two clusters,
    or is 0.

    Args:
        now: a mean or collision probability.
        control: the control's.
        chance: in (0, 1), of each side.
    """
    from scipy.special import stdtrit

    clusters, values = min(now.clusters, control.clusters), (now.value, control.value)
    if clusters < 2 or not all(value > 0 for value in values):
        return Change(_divide(*values), 0.0, math.inf)
    error = math.sqrt(sum(each.variance / each.value**2 for each in (now, control)))
    half = min(float(stdtrit(clusters - 1, 1.0 - chance)) * error, 700.0)  # exp() overflows soon after
    ratio = now.value / control.value
    return Change(ratio, ratio * math.exp(-half), ratio * math.exp(half))


def _sum(clusters: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Sums of x, n, 1, x^2, x n, n^2 over the clusters that have responses."""
    columns = [(x, n, 1.0, x * x, x * n, n * n) for x, n in clusters if n]
    return tuple(map(math.fsum, zip(*columns, strict=True))) if columns else (0.0,) * 6


def _divide(part: float, whole: float) -> float:
    if math.isnan(part) or math.isnan(whole):
        return math.nan
    return part / whole if whole else (math.inf if part else math.nan)
