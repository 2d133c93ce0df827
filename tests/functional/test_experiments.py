import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportions_ztest

from llamarl.functional.experiments import (
    CovariateMoments,
    Estimate,
    Moments,
    Plan,
    activity_spread,
    adjust,
    always_valid_interval,
    bootstrap_interval,
    compare_to_margin,
    design_effect,
    difference_p,
    holm,
    log_change,
    relative,
    resample_moments,
    sample_ratio_p,
    unclustered_p,
    user_correlation,
)
from llamarl.functional.statistics import clustered_rate

SINGLE = np.ones(400)


def draw_users(seed: int, users: int = 500, rate: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Reactions and messages of users who differ in both."""
    rng = np.random.default_rng(seed)
    messages = 1 + rng.poisson(rng.lognormal(1.5, 0.8, users))
    return rng.binomial(messages, np.minimum(0.9, rate * rng.lognormal(-0.5, 1.0, users))), messages


# golden


def test_moments_by_hand():
    """Users of 2 of 4 and 0 of 4: ratio 1/4, residuals 1 and -1, variance 2/1 * 2/64."""
    moments = Moments.of(np.array([2, 0]), np.array([4, 4]))
    assert moments == (2, 8, 2, 4, 8, 32)
    assert (moments.ratio, moments.error) == (0.25, 0.25)


def test_difference_by_hand():
    """2 and 0 of 4 each against 4 and 2 of 4 each: r = 8/16, residuals 0, -2 and 2, 0; variance 4/64 + 4/64;
    z = (3/4 - 1/4) / sqrt(1/8) = sqrt 2."""
    control, treatment = Moments.of(np.array([2, 0]), np.array([4, 4])), Moments.of(np.array([4, 2]), np.array([4, 4]))
    assert difference_p(treatment, control) == pytest.approx(math.erfc(1.0))


def test_log_change_by_hand():
    """Rates 3/4 and 1/4 with errors 1/4 each: log 3, and errors 1/3 and 1 of the rates."""
    control, treatment = Moments.of(np.array([2, 0]), np.array([4, 4])), Moments.of(np.array([4, 2]), np.array([4, 4]))
    assert log_change(treatment, control) == pytest.approx((math.log(3), math.hypot(1 / 3, 1)))


def test_bootstrap_interval_by_hand():
    """Users of 4 and 2 of 4 against 1 and 1 of 4: rates 3/4 with error 1/4, and 1/4 without. The one resample has 4 and
    0 of 4: 1/2 with error 1/2, so half an error off. |3/4 - q/4| <= 1/2 * 1/4 is 5/2 <= q <= 7/2."""
    treatment, control, drawn = (
        Moments.of(np.array(reactions), np.array([4, 4])) for reactions in ([4, 2], [1, 1], [4, 0])
    )
    assert bootstrap_interval(treatment, control, np.array([drawn]), np.array([control])) == pytest.approx((1.5, 2.5))


def test_margin_by_hand():
    """1/4 must not fall to less than half of 3/4: 1/4 - 1/2 * 3/4 = -1/8, error sqrt(1/16 + 1/4 * 1/16)."""
    low, high = Moments.of(np.array([2, 0]), np.array([4, 4])), Moments.of(np.array([4, 2]), np.array([4, 4]))
    assert compare_to_margin(low, high, -0.5) == pytest.approx((-0.125, math.sqrt(5) / 8))


def test_margin_of_a_mean_below_0_is_of_its_size():
    """-1 may fall by a tenth of 1, to -1.1; it is at -1.05."""
    values = [Moments.of(np.array([mean - 0.5, mean + 0.5]), np.ones(2)) for mean in (-1.05, -1.0)]
    assert compare_to_margin(values[0], values[1], -0.1).value == pytest.approx(0.05)
    assert compare_to_margin(values[0], values[1], 0.1).value == pytest.approx(-0.15)


def test_always_valid_by_hand():
    """V = 1, s^2 = 1: sqrt(2 log(2 / 0.0025)) = 3.656."""
    low, high = always_valid_interval(Estimate(1.0, 1.0), 1.0)
    assert (low, high) == pytest.approx((1 - 3.65639, 1 + 3.65639), abs=1e-4)


def test_holm_by_hand():
    """0.01 * 3; then 0.02 * 2; then 0.04 is not less than the one before."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([]) == []


def test_sample_ratio_by_hand():
    """40 and 60 of 100, planned equal: 10^2 / 50 * 2 = 4; P(chi2_1 > 4) = P(|z| > 2)."""
    assert sample_ratio_p([40, 60], [0.5, 0.5]) == pytest.approx(math.erfc(math.sqrt(2)))
    assert sample_ratio_p([10, 90], [1, 9]) == 1.0


def test_design_effect_by_hand():
    """5 messages with spread 1: 5 * 2 - 1 = 9 pairs; each alike by 0.1."""
    assert design_effect(5, 0.1, 1.0) == pytest.approx(1.9)
    assert design_effect(1, 0.5, 0.0) == 1.0


def test_correlation_of_users_who_love_all_or_nothing_is_1():
    moments = Moments.of(np.array([4, 0, 4, 0]), np.array([4, 4, 4, 4]))
    assert user_correlation(moments) == 1.0
    assert activity_spread(moments) == 0.0
    assert user_correlation(Moments.of(np.array([1, 0]), np.ones(2))) == 0.0


# oracles


def test_one_message_each_is_the_two_proportion_test_of_statsmodels():
    treatment, control = (Moments.of(np.arange(400) < count, SINGLE) for count in (52, 31))
    oracle = proportions_ztest([52, 31], [400, 400])[1]
    assert difference_p(treatment, control) == pytest.approx(oracle)
    assert unclustered_p(treatment, control) == pytest.approx(oracle)


def test_errors_are_those_of_clustered_least_squares():
    """Rows of messages, y ~ arm, errors clustered by user; statsmodels without its small-sample factor."""
    arms = [draw_users(seed, 60) for seed in (1, 2)]
    y, x, user = [], [], []
    for arm, (reactions, messages) in enumerate(arms):
        for who, (loved, shown) in enumerate(zip(reactions, messages, strict=True)):
            y += [1.0] * loved + [0.0] * (shown - loved)
            x += [[1.0, arm]] * shown
            user += [1000 * arm + who] * shown
    fit = OLS(y, np.array(x)).fit(cov_type="cluster", cov_kwds={"groups": np.array(user), "use_correction": False})
    control, treatment = (Moments.of(*arm) for arm in arms)
    assert treatment.ratio - control.ratio == pytest.approx(fit.params[1])
    assert math.hypot(treatment.error, control.error) == pytest.approx(fit.bse[1] * math.sqrt(60 / 59))


def test_adjusting_is_analysis_of_covariance():
    """Users' linearised values, y ~ arm + covariate: the coefficient of the arm in arms of one size."""
    rng = np.random.default_rng(3)
    arms, y, x = [], [], []
    for arm in range(2):
        reactions, messages = draw_users(10 + arm)
        covariate = reactions / messages + rng.normal(0, 0.05, 500)
        arms.append(CovariateMoments.of(reactions, messages, covariate))
        ratio = arms[-1].moments.ratio
        y.append(math.log(ratio) + 500 * (reactions - ratio * messages) / reactions.sum())
        x.append(np.stack([np.ones(500), np.full(500, arm), covariate], axis=1))
    fit = OLS(np.concatenate(y), np.concatenate(x)).fit()
    adjusted = adjust(arms[1], arms[0])
    assert adjusted.value == pytest.approx(fit.params[1])
    assert adjusted.error == pytest.approx(fit.bse[1], rel=5e-3)
    assert adjusted.error < 0.9 * log_change(arms[1].moments, arms[0].moments).error


def test_many_tests_as_statsmodels_has_them():
    values = np.random.default_rng(0).random(20) ** 3
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])


def test_sizes_as_scipy_has_them():
    oracle = stats.chisquare([480, 530, 990], [500, 500, 1000]).pvalue
    assert sample_ratio_p([480, 530, 990], [0.25, 0.25, 0.5]) == pytest.approx(oracle)


def test_power_is_near_that_of_statsmodels_which_has_one_variance():
    """Cohen's h stands for equal variances after a transform; with rates near each other the two agree."""
    effect = 2 * (math.asin(math.sqrt(0.315)) - math.asin(math.sqrt(0.3)))
    oracle = NormalIndPower().power(effect, 15_000, 0.05)
    assert Plan(0.3, 0.05, 15_000, 1.0).power() == pytest.approx(oracle, abs=2e-3)


def resample(seed: int, reactions: np.ndarray, messages: np.ndarray, num: int = 4000) -> np.ndarray:
    patterns, counts = np.unique(np.stack([reactions, messages], axis=1), axis=0, return_counts=True)
    return resample_moments(patterns, counts, seed, num)


def test_the_bootstrap_spreads_as_the_delta_method():
    reactions, messages = draw_users(4, 4000)
    drawn, moments = resample(1, reactions, messages), Moments.of(reactions, messages)
    assert drawn.mean(axis=0) == pytest.approx(np.array(moments), rel=0.01)
    assert (drawn[:, 0] / drawn[:, 1]).std() == pytest.approx(moments.error, rel=0.05)


def test_with_many_users_the_bootstrap_interval_is_that_of_the_logarithm():
    users = [draw_users(seed, 20_000) for seed in (1, 2)]
    treatment, control = (Moments.of(*each) for each in users)
    found = bootstrap_interval(treatment, control, *(resample(9, *each) for each in users))
    assert found == pytest.approx(relative(log_change(treatment, control).interval()), abs=3e-3)


# invariance


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 100.0))
def test_neither_order_nor_scale_of_a_metric_matters(seed, scale):
    (reactions, messages), other = draw_users(seed, 50, 0.3), Moments.of(*draw_users(seed + 1, 50, 0.3))
    order = np.random.default_rng(seed).permutation(50)
    moments = Moments.of(reactions, messages)
    again = Moments.of(reactions[order], messages[order])
    assert difference_p(moments, other) == pytest.approx(difference_p(again, other))
    scaled, scaled_other = (
        each._replace(
            total=each.total * scale, total_squares=each.total_squares * scale**2, products=each.products * scale
        )
        for each in (moments, other)
    )
    assert difference_p(scaled, scaled_other) == pytest.approx(difference_p(moments, other))
    assert log_change(scaled, scaled_other) == pytest.approx(log_change(moments, other))


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 1), st.floats(1e-4, 2), st.floats(0.01, 1))
def test_an_always_valid_interval_holds_the_one_for_a_single_look(value, error, spread):
    estimate = Estimate(value, error)
    low, high = always_valid_interval(estimate, spread)
    fixed = estimate.interval()
    assert low < fixed[0] and fixed[1] < high
    assert high - value >= 3.03 * error - 1e-12  # the least factor, at error = spread / 2.8
    assert low + high == pytest.approx(2 * value)


def test_looking_after_every_user_errs_less_than_the_promise_but_not_much_less():
    """Means of n normal numbers, n to 2,000: some interval misses 0 in at most 5 % of 4,000 walks, and in over 2 %."""
    rng, missed = np.random.default_rng(11), 0
    n = np.arange(1, 2001)
    halves = np.array([always_valid_interval(Estimate(0.0, 1 / math.sqrt(each)), 0.3)[1] for each in n])
    for _ in range(8):
        means = rng.normal(size=(500, 2000)).cumsum(axis=1) / n
        missed += int((np.abs(means) > halves).any(axis=1).sum())
    assert 0.02 < missed / 4000 < 0.05


def test_moments_of_two_groups_add_up():
    first, second = draw_users(5), draw_users(6)
    both = Moments.of(*(np.concatenate(each) for each in zip(first, second, strict=True)))
    assert [a + b for a, b in zip(Moments.of(*first), Moments.of(*second), strict=True)] == pytest.approx(both)


def test_equal_seeds_draw_equal_resamples():
    patterns, counts = np.array([[0, 1], [1, 1]]), np.array([90, 10])
    assert (resample_moments(patterns, counts, 7, 100) == resample_moments(patterns, counts, 7, 100)).all()
    assert (resample_moments(patterns, counts, 7, 100) != resample_moments(patterns, counts, 8, 100)).any()


def test_power_grows_with_messages_and_falls_with_likeness():
    plan = Plan(0.02, 0.1, 100_000, 2.0)
    assert plan.power() < replace(plan, messages=200_000).power()
    assert plan.power() < replace(plan, design_effect=1.0).power()
    assert plan.always_valid_power(0.1) < plan.power()
    assert replace(plan, change=1e-9).power() == pytest.approx(0.05)


# reduces to


def test_a_ratios_error_is_that_of_clustered_rates():
    moments = Moments.of(*draw_users(8))
    rate, _, effect = clustered_rate(moments)
    assert moments.ratio == rate
    assert moments.error == pytest.approx(math.sqrt(effect * rate * (1 - rate) / moments.size))


def test_a_covariate_that_never_varies_changes_nothing():
    arms = [(*draw_users(seed), np.full(500, 7.0)) for seed in (1, 2)]
    treatment, control = (CovariateMoments.of(*arm) for arm in arms)
    assert adjust(treatment, control) == pytest.approx(log_change(treatment.moments, control.moments))


# extremes


def test_where_nothing_is_loved_no_quotient_is_known():
    none, some = Moments.of(np.zeros(9), np.ones(9)), Moments.of(np.arange(9) < 3, np.ones(9))
    assert log_change(none, some) is None and log_change(some, none) is None
    assert log_change(some, Moments.of(np.ones(1), np.ones(1))) is None
    assert difference_p(none, none) == 1.0


def test_without_any_upper_bound():
    """A control of two users, one of whom reacted once, may have any rate."""
    few, many = (np.array([1, 0]), np.array([50, 50])), draw_users(1, 200)
    moments = [Moments.of(*each) for each in (many, few)]
    low, high = bootstrap_interval(*moments, resample(0, *many), resample(0, *few))
    assert low >= -1.0 and high is None
    assert relative((-math.inf, math.inf)) == (-1.0, None)
    assert relative((0.0, math.log(2))) == pytest.approx((0.0, 1.0))
