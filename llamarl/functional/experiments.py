"""Statistics of randomised experiments: what an arm changed, how sure that is, and how long to run.

A user is the unit: an arm is given to users, whose messages are alike. A metric is a ratio of sums over users, such as
reactions by messages shown, and everything here is computed from `Moments`, the sums over users of one arm.

    difference_p(treatment, control)                 is the ratio another one? allows for users with many messages
    log_change(treatment, control)                   log of the quotient, with its standard error
    always_valid_interval(log_change(...), spread)   an interval that may be looked at every day
    adjust(treatment, control)                       CUPED: less noise by what is known from before
    bootstrap_interval(..., resample_moments(...))   the bootstrap over users
    sample_ratio_p(users, shares), holm(ps)          are the arms as large as they should be? many tests at once
    Plan(...).power()                                the probability to find a change

Standard errors are those of linearised ratios (the delta method) over users; they hold for many users, of which none
has a large part of all messages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from llamarl.functional.statistics import CONFIDENCE, NUM_RESAMPLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

NORMAL = NormalDist()
LEAST_TOTAL = 10
MAX_DRAWN = 4_000_000
"""Numbers that a bootstrap draws at a time: bounds memory."""


class Moments(NamedTuple):
    """Sums over the users of one arm, each with a total l of a size n: reactions to messages, say.

    They add up: the moments of two groups of users are the sums of theirs.
    """

    total: float
    """sum l"""
    size: float
    """sum n, above 0"""
    users: float
    total_squares: float
    """sum l^2"""
    products: float
    """sum l n"""
    size_squares: float
    """sum n^2"""

    @classmethod
    def of(cls, totals: "NDArray[Any]", sizes: "NDArray[Any]") -> "Moments":
        """The moments of users' totals and sizes, [U] each."""
        total, size = totals.astype(float), sizes.astype(float)
        sums = (total.sum(), size.sum(), len(total), total @ total, total @ size, size @ size)
        return cls(*map(float, sums))

    @property
    def ratio(self) -> float:
        """The total by the size."""
        return self.total / self.size

    @property
    def error(self) -> float:
        """The standard error of the ratio for users drawn at random; infinite for one user.

        variance = U / (U - 1) * sum (l - ratio n)^2 / (sum n)^2
        """
        if self.users < 2:
            return math.inf
        return math.sqrt(self.users / (self.users - 1.0) * self.spread(self.ratio)) / self.size

    def spread(self, ratio: float) -> float:
        """Sum over users of (l - ratio n)^2."""
        return max(0.0, self.total_squares - 2.0 * ratio * self.products + ratio * ratio * self.size_squares)


class Estimate(NamedTuple):
    """A number with its standard error; its interval is that of a normal law."""

    value: float
    error: float

    @property
    def p(self) -> float:
        """The two-sided p-value of 0."""
        return two_sided_p(self.value, self.error)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Bounds of the value."""
        half = NORMAL.inv_cdf((1.0 + confidence) / 2.0) * self.error
        return self.value - half, self.value + half


def two_sided_p(value: float, error: float) -> float:
    """Probability of a normal number at least as far from 0; 1 where nothing differs and nothing varies."""
    if error == 0.0:
        return 0.0 if value else 1.0
    return math.erfc(abs(value) / error / math.sqrt(2.0))


def one_sided_p(value: float, error: float) -> float:
    """Probability of a normal number at least as large."""
    if error == 0.0:
        return float(value <= 0.0)
    return 0.5 * math.erfc(value / error / math.sqrt(2.0))


def difference_p(treatment: Moments, control: Moments) -> float:
    """The p-value of equal ratios, a two-proportion test that allows for users with many messages.

        z = (r_t - r_c) / sqrt( sum_arms sum_users (l - r n)^2 / (sum n)^2 ),    r the ratio of both arms together

    The score test of the linear model of messages with errors clustered by user. With one message for each user and
    arms of one size it is the two-proportion z test with pooled variance.
    """
    ratio = (treatment.total + control.total) / (treatment.size + control.size)
    variance = sum(arm.spread(ratio) / arm.size**2 for arm in (treatment, control))
    return two_sided_p(treatment.ratio - control.ratio, math.sqrt(variance))


def unclustered_p(treatment: Moments, control: Moments) -> float:
    """The p-value of the two-proportion z test with pooled variance, as if all messages were independent."""
    share = (treatment.total + control.total) / (treatment.size + control.size)
    variance = share * (1.0 - share) * (1.0 / treatment.size + 1.0 / control.size)
    return two_sided_p(treatment.ratio - control.ratio, math.sqrt(variance))


def log_change(treatment: Moments, control: Moments) -> Estimate | None:
    """The log of the quotient of two ratios; None where one is not above 0, or of a single user.

    variance = (error_t / r_t)^2 + (error_c / r_c)^2
    """
    if min(treatment.total, control.total) <= 0.0 or min(treatment.users, control.users) < 2:
        return None
    error = math.hypot(treatment.error / treatment.ratio, control.error / control.ratio)
    return Estimate(math.log(treatment.ratio / control.ratio), error)


def compare_to_margin(treatment: Moments, control: Moments, margin: float) -> Estimate:
    """The distance of a ratio on the good side of a margin: r_t - (r_c + margin |r_c|), above 0 where it is larger.

    A test of non-inferiority without a quotient, so that it also holds for means near 0 or below.

    Args:
        treatment: of the arm.
        control: of the arm that it is held against.
        margin: relative change, such as -0.02.
    """
    factor = 1.0 + math.copysign(margin, margin * control.ratio)
    return Estimate(treatment.ratio - factor * control.ratio, math.hypot(treatment.error, factor * control.error))


def always_valid_interval(estimate: Estimate, spread: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """A confidence sequence: all intervals, one each day or after each message, hold the truth together.

        value +- sqrt( V (V + s^2) / s^2 * log( (V + s^2) / (V alpha^2) ) )        V = error^2, s = spread

    Robbins' normal mixture as an asymptotic confidence sequence: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
    "Time-uniform central limit theory and asymptotic confidence sequences" (Annals of Statistics, 2024). It is the
    boundary of the mixture sequential probability ratio test with mixture N(0, s^2) of Johari, Koomen, Pekelis and
    Walsh, "Always valid inference: continuous monitoring of A/B tests" (Operations Research, 2022).

    Users who come back make the increments of a sum dependent. Where a user's days go together, as they do if users
    differ in their habits, looks are more alike than the theorem assumes, and alike looks err less often together
    (Slepian's inequality): the interval is then wider than it need be, not too narrow.

    Args:
        estimate: at this look.
        spread: standard deviation of the effects that one thinks possible, above 0, fixed before the first look. The
            interval is tightest where the error is spread / 2.8.
        confidence: that no look ever misses.
    """
    variance, prior = estimate.error**2, spread * spread
    if variance == 0.0:
        return estimate.value, estimate.value
    if math.isinf(variance):
        return -math.inf, math.inf
    growth = math.log1p(prior / variance) - 2.0 * math.log(1.0 - confidence)
    half = math.sqrt(variance * (variance + prior) / prior * growth)
    return estimate.value - half, estimate.value + half


def is_settled(treatment: Moments, control: Moments) -> bool:
    """True if there is enough of a metric in both arms for the normal law to hold: `LEAST_TOTAL` reactions, say."""
    return min(treatment.total, control.total) >= LEAST_TOTAL


def relative(interval: tuple[float, float]) -> tuple[float, float | None]:
    """Bounds of a log quotient as bounds of the relative change; None for no upper bound."""
    low, high = interval
    return math.expm1(low) if low > -math.inf else -1.0, math.expm1(high) if high < 700.0 else None


@dataclass(frozen=True, slots=True)
class CovariateMoments:
    """An arm's moments together with a number x that is known of each user from before the experiment."""

    moments: Moments
    covariate: float
    """sum x; a user of whom it is not known has the mean of all arms."""
    covariate_squares: float
    """sum x^2"""
    total_products: float
    """sum l x"""
    size_products: float
    """sum n x"""

    @classmethod
    def of(cls, totals: "NDArray[Any]", sizes: "NDArray[Any]", covariates: "NDArray[Any]") -> "CovariateMoments":
        """The moments of users' totals, sizes and covariates, [U] each."""
        x = covariates.astype(float)
        return cls(Moments.of(totals, sizes), *map(float, (x.sum(), x @ x, totals @ x, sizes @ x)))

    @property
    def mean(self) -> float:
        """The mean of x over users."""
        return self.covariate / self.moments.users

    @property
    def mean_variance(self) -> float:
        """The variance of the mean of x: U / (U - 1) * sum (x - mean)^2 / U^2."""
        users = self.moments.users
        return max(0.0, self.covariate_squares - users * self.mean**2) / (users * (users - 1.0))

    @property
    def covariance(self) -> float:
        """The covariance of the log of the ratio with the mean of x: U / (U - 1) * sum (l - r n) / (sum l) * x / U."""
        moments = self.moments
        products = self.total_products - moments.ratio * self.size_products
        return products / (moments.total * (moments.users - 1.0))


def adjust(treatment: CovariateMoments, control: CovariateMoments) -> Estimate | None:
    """The log of the quotient of two ratios, less what chance differences of a covariate explain (CUPED).

        log(r_t / r_c) - theta (x_t - x_c),        theta = cov / var, both summed over the arms

    Deng, Xu, Kohavi and Walker, "Improving the sensitivity of online controlled experiments by utilizing
    pre-experiment data" (2013), with linearised ratios. A covariate that says nothing changes nothing.

    Returns:
        The estimate; None where `log_change` is.
    """
    plain = log_change(treatment.moments, control.moments)
    if plain is None:
        return None
    covariance = treatment.covariance + control.covariance
    variance = treatment.mean_variance + control.mean_variance
    theta = covariance / variance if variance > 0.0 else 0.0
    value = plain.value - theta * (treatment.mean - control.mean)
    return Estimate(value, math.sqrt(max(0.0, plain.error**2 - theta * covariance)))


def resample_moments(
    patterns: "NDArray[Any]",
    counts: "NDArray[Any]",
    seed: int | Sequence[int] = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> "NDArray[Any]":
    """Moments of resampled users: each user counts as often as a Poisson number of mean 1 says.

    Users who are alike share a pattern, and k of them count Poisson(k) times together; so the work is that of the
    different patterns, few where totals and counts are small whole numbers. Chamandy, Muralidharan, Najmi and Naidu,
    "Estimating uncertainty for massive data streams" (2012).

    Args:
        patterns: [P, 2], total and size of a user.
        counts: [P], how many users have each.
        seed: of the draws.
        num_resamples: how many.

    Returns:
        [num_resamples, 6], in the order of `Moments`.
    """
    import numpy as np

    totals, messages = patterns.astype(float).T
    columns = (totals, messages, np.ones(len(counts)), totals * totals, totals * messages, messages * messages)
    of_pattern = np.stack(columns, axis=1)
    generator = np.random.default_rng(seed)
    step = max(1, MAX_DRAWN // len(counts))
    sums = np.empty((num_resamples, len(columns)))
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        sums[start : start + size] = generator.poisson(counts, size=(size, len(counts))) @ of_pattern
    return sums


def bootstrap_interval(
    treatment: Moments,
    control: Moments,
    treatment_drawn: "NDArray[Any]",
    control_drawn: "NDArray[Any]",
    confidence: float = CONFIDENCE,
) -> tuple[float, float | None]:
    """The bootstrap interval of the relative change r_t / r_c - 1, from resamples of both arms.

    It holds every change q - 1 with

        |r_t - q r_c| <= c sqrt( V_t + q^2 V_c )        V = error^2

    where c is the quantile of the same distance of resamples from q = r_t / r_c: symmetric and studentized, in
    Fieller's form, so that no logarithm of a rate near 0 is taken and q = 1 is tested as a difference is. Where a few
    users have a large part of all messages, the error of a resample goes with its value; dividing by it makes the
    interval right to higher order than percentiles are. Hwang, "Fieller's problems and resampling techniques" (1995);
    Hall, "On symmetric bootstrap confidence intervals" (1988).

    Args:
        treatment: of the arm.
        control: of the arm that it is held against; it has reactions.
        treatment_drawn: [B, 6] of `resample_moments`.
        control_drawn: likewise.
        confidence: of the interval.

    Returns:
        The bounds; None for no upper one, where the control's rate isn't told from 0.
    """
    import numpy as np

    quotient = treatment.ratio / control.ratio
    (ratio_t, error_t), (ratio_c, error_c) = (_ratios(drawn) for drawn in (treatment_drawn, control_drawn))
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.abs(ratio_t - quotient * ratio_c) / np.hypot(error_t, quotient * error_c)
    distances = distances[np.isfinite(distances)]  # a resample of no reaction, or of one user, has no error
    if not distances.size:
        return -1.0, None
    reach = float(np.quantile(distances, confidence))
    low, high = _solve_fieller(treatment, control, reach)
    return low - 1.0, None if high is None else high - 1.0


def _solve_fieller(treatment: Moments, control: Moments, reach: float) -> tuple[float, float | None]:
    """The quotients q >= 0 with (r_t - q r_c)^2 <= reach^2 (V_t + q^2 V_c), whose bounds solve a quadratic equation."""
    treatment_room, control_room = (each.ratio**2 - (reach * each.error) ** 2 for each in (treatment, control))
    product = treatment.ratio * control.ratio
    root = math.sqrt(max(0.0, product**2 - control_room * treatment_room))
    if control_room <= 0.0:
        return (treatment_room / (product + root) if treatment_room > 0.0 else 0.0), None
    return max(0.0, (product - root) / control_room), (product + root) / control_room


def _ratios(drawn: "NDArray[Any]") -> "tuple[NDArray[Any], NDArray[Any]]":
    """[B] ratios of moments, [B, 6], and their standard errors."""
    import numpy as np

    total, size, users, total_squares, products, size_squares = drawn.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = total / size
        spread = np.maximum(0.0, total_squares - 2.0 * ratio * products + ratio * ratio * size_squares)
        return ratio, np.sqrt(users / (users - 1.0) * spread) / size


def sample_ratio_p(users: Sequence[float], shares: Sequence[float]) -> float:
    """The p-value of arms as large as planned: Pearson's chi-square of users by arm.

    Args:
        users: of each arm.
        shares: of each arm, planned; any positive numbers.
    """
    from scipy.special import gammaincc

    scale = sum(users) / sum(shares)
    distance = sum((count - share * scale) ** 2 / (share * scale) for count, share in zip(users, shares, strict=True))
    return float(gammaincc((len(users) - 1) / 2.0, distance / 2.0))


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for there being many: at most 5 % of families have any false one below 5 %.

    Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, largest = [0.0] * len(values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = largest
    return corrected


def activity_spread(moments: Moments) -> float:
    """The coefficient of variation of users' sizes: standard deviation by mean."""
    return math.sqrt(max(0.0, moments.users * moments.size_squares / moments.size**2 - 1.0))


def user_correlation(moments: Moments) -> float:
    """The likeness of two messages of one user (intraclass correlation), at least 0.

    It solves sum (l - r n)^2 = r (1 - r) sum n (1 + (n - 1) rho) for rho, and is 0 where nobody has two messages.
    """
    plain = moments.ratio * (1.0 - moments.ratio)
    pairs = moments.size_squares - moments.size
    if plain <= 0.0 or pairs <= 0.0:
        return 0.0
    return max(0.0, (moments.spread(moments.ratio) / plain - moments.size) / pairs)


def design_effect(messages_per_user: float, correlation: float, spread: float) -> float:
    """The number of messages that count as much as an independent one.

        1 + rho (m (1 + spread^2) - 1)

    Args:
        messages_per_user: mean m, at least 1.
        correlation: rho in [0, 1] of two messages of one user.
        spread: coefficient of variation of the number of messages.
    """
    return 1.0 + correlation * max(0.0, messages_per_user * (1.0 + spread**2) - 1.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """A control with a base rate, and an arm as large that changes every user's rate by a factor."""

    base_rate: float
    """The rate, in (0, 1)."""
    change: float
    """Relative, not 0; the changed rate is in (0, 1) too."""
    messages: float
    """Messages of each arm."""
    design_effect: float
    """The number of the control's messages that count as one."""

    @property
    def rates(self) -> tuple[float, float]:
        """Rates of the control and of the other arm."""
        return self.base_rate, self.base_rate * (1.0 + self.change)

    @property
    def errors(self) -> tuple[float, float]:
        """The standard errors of the two rates: sqrt( r (1 - r) * design effect / messages ).

        A factor on each user's rate leaves their spread in proportion: rho r (1 - r) grows by its square.
        """
        control, changed = (rate * (1.0 - rate) for rate in self.rates)
        growth = (1.0 + self.change) ** 2 * control / changed
        effect = 1.0 + (self.design_effect - 1.0) * growth
        return math.sqrt(control * self.design_effect / self.messages), math.sqrt(changed * effect / self.messages)

    def power(self, alpha: float = 1.0 - CONFIDENCE) -> float:
        """The probability that `difference_p` is below alpha."""
        error = math.hypot(*self.errors)
        return _probability_beyond(self.rates[1] - self.rates[0], error, NORMAL.inv_cdf(1.0 - alpha / 2.0) * error)

    def always_valid_power(self, spread: float, alpha: float = 1.0 - CONFIDENCE) -> float:
        """The probability that the always-valid interval leaves out 0 now; that it ever did is likelier."""
        error = math.hypot(*(error / rate for error, rate in zip(self.errors, self.rates, strict=True)))
        half = always_valid_interval(Estimate(0.0, error), spread, 1.0 - alpha)[1]
        return _probability_beyond(math.log1p(self.change), error, half)


def _probability_beyond(mean: float, error: float, threshold: float) -> float:
    """The probability that a normal number is farther from 0 than a threshold."""
    return NORMAL.cdf((mean - threshold) / error) + NORMAL.cdf((-mean - threshold) / error)
