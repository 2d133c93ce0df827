import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from llamarl.functional.statistics import (
    Bin,
    Confusion,
    auroc,
    calibration_error,
    pearson,
    percentile_interval,
    quantile,
    ranks,
    reliability,
    resample_sums,
    spearman,
    wilson_interval,
)

pairs = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30)


def test_golden_confusion() -> None:
    # decision/label: TT TT TF FF FF FT
    counts = Confusion.of([True, True, True, False, False, False], [True, True, False, False, False, True])
    assert counts == Confusion(true_positives=2, false_positives=1, true_negatives=2, false_negatives=1)
    assert counts.agreement == pytest.approx(4 / 6)
    assert counts.precision == counts.recall == counts.f1 == pytest.approx(2 / 3)
    # half pass, half should: chance 0.5 * 0.5 + 0.5 * 0.5 = 0.5, so (4/6 - 0.5) / 0.5 = 1/3
    assert counts.kappa == pytest.approx(1 / 3)


def test_golden_kappa_with_uneven_margins() -> None:
    # 20 pass-pass, 5 pass-fail, 10 fail-pass, 15 fail-fail: agreement 0.7, chance 0.5*0.6 + 0.5*0.4 = 0.5
    assert Confusion(20, 5, 15, 10).kappa == pytest.approx(0.4)


@given(st.tuples(*[st.integers(0, 9)] * 4))
def test_kappa_of_chance_is_exactly_zero_and_its_formula_holds(counts: tuple[int, int, int, int]) -> None:
    a, b, c, d = counts
    assert Confusion(a * c, a * d, b * d, b * c).kappa in (0.0, None)  # columns in the same proportion
    found = Confusion(a, b, c, d)
    if found.kappa is not None:
        chance = ((a + b) * (a + d) + (c + d) * (b + c)) / found.total**2
        assert found.kappa == pytest.approx((found.agreement - chance) / (1 - chance))  # type: ignore[operator]


def test_undefined_quantities_are_none() -> None:
    nothing, never_passes = Confusion(), Confusion.of([False], [True])
    assert nothing.agreement is nothing.kappa is nothing.precision is None
    assert never_passes.precision is None and never_passes.recall == 0.0
    assert Confusion.of([True, True], [True, True]).kappa is None  # no chance left to beat


def test_golden_auroc() -> None:
    # positives 0.9 and 0.4, negatives 0.4 and 0.1: won 1 + 1, tied 0.5, won 1 -> 3.5 of 4
    assert auroc([0.9, 0.4, 0.4, 0.1], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert auroc([1, 2], [True, True]) is None


@given(pairs)
def test_auroc_is_the_share_of_pairs_won(rows: list[tuple[int, bool]]) -> None:
    scores, labels = [float(score) for score, _ in rows], [label for _, label in rows]
    high = [score for score, label in rows if label]
    low = [score for score, label in rows if not label]
    if not high or not low:
        assert auroc(scores, labels) is None
        return
    won = sum((a > b) + 0.5 * (a == b) for a in high for b in low)
    assert auroc(scores, labels) == pytest.approx(won / (len(high) * len(low)))
    assert auroc([math.exp(score) for score in scores], labels) == auroc(scores, labels)


def test_golden_ranks_and_correlation() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_wilson_interval_by_hand() -> None:
    # 8 of 10, z^2 = 3.84146: centre (0.8 + 0.192073) / 1.384146 = 0.716740,
    # half 1.959964 / 1.384146 * sqrt(0.016 + 0.00960365) = 1.416009 * 0.160011 = 0.226577
    assert wilson_interval(8, 10) == pytest.approx((0.490163, 0.943317), abs=2e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_reliability_and_its_error_by_hand() -> None:
    bins = reliability([0.05, 0.15, 0.95, 1.0, 0.9], [0, 1, 1, 1, 0.5], num_bins=2)
    # under 0.5: mean 0.1, one of two came true; from 0.5: mean 2.85 / 3 = 0.95, 2.5 of 3
    assert [b.count for b in bins] == [2, 3]
    assert [b.predicted for b in bins] == pytest.approx([0.1, 0.95])
    assert [b.observed for b in bins] == pytest.approx([0.5, 2.5 / 3])
    # (2 * 0.4 + 3 * 0.116667) / 5 = 1.15 / 5
    assert calibration_error(bins) == pytest.approx(0.23)
    assert math.isnan(calibration_error([]))
    assert calibration_error([Bin(7, 0.6, 0.6)]) == 0.0


def test_quantile_is_a_value_that_enough_others_do_not_exceed() -> None:
    assert quantile(range(1, 101), 0.95) == 95
    assert quantile([7.0], 0.95) == 7.0
    assert quantile([3.0, 1.0], 0.95) == 3.0
    assert quantile([], 0.95) is None


def test_resamples_are_seeded_and_drawn_in_pairs() -> None:
    counts = np.arange(12.0).reshape(6, 2)
    drawn = resample_sums(counts, 3, 50)
    np.testing.assert_array_equal(drawn, resample_sums(counts, 3, 50))
    assert (drawn != resample_sums(counts, 4, 50)).any()
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 6)  # both columns from the same six rows


def test_resampling_in_pieces_draws_the_same() -> None:
    counts = np.random.default_rng(0).integers(0, 5, (7, 3)).astype(float)
    whole = resample_sums(counts, 0, 40)
    in_sixes = resample_sums(counts, 0, 40, max_drawn=7 * 6)
    np.testing.assert_array_equal(in_sixes, whole)


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    counts = np.array([[1.0]] * 40 + [[0.0]] * 60)
    low, high = percentile_interval(resample_sums(counts)[:, 0] / 100)
    # 0.4 +- 1.96 * sqrt(0.4 * 0.6 / 100) = 0.4 +- 0.096
    assert low == pytest.approx(0.304, abs=0.011)
    assert high == pytest.approx(0.496, abs=0.011)


def test_an_interval_ignores_resamples_without_a_value() -> None:
    assert percentile_interval(np.array([np.nan, 0.5, 0.5])) == (0.5, 0.5)
    assert percentile_interval(np.array([np.nan])) is None


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_mirrors(pair) -> None:
    successes, total = pair
    low, high = wilson_interval(successes, total)
    assert 0.0 <= low <= successes / total + 1e-9 and successes / total - 1e-9 <= high <= 1.0
    assert wilson_interval(total - successes, total) == pytest.approx((1 - high, 1 - low))


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError):
        reliability([0.5], [])


# other implementations


NUMBERS = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=40)


@given(NUMBERS)
def test_correlations_are_those_of_scipy(rows: list[tuple[int, int]]) -> None:
    first, second = [float(a) for a, _ in rows], [float(b) for _, b in rows]
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert pearson(first, second) is None and spearman(first, second) is None
        return
    assert pearson(first, second) == pytest.approx(scipy.stats.pearsonr(first, second).statistic, abs=1e-9)
    assert spearman(first, second) == pytest.approx(scipy.stats.spearmanr(first, second).statistic, abs=1e-9)
    assert ranks(first) == scipy.stats.rankdata(first).tolist()


@given(NUMBERS)
def test_auroc_is_the_mann_whitney_statistic_of_scipy(rows: list[tuple[int, int]]) -> None:
    scores, labels = [float(a) for a, _ in rows], [b > 0 for _, b in rows]
    positive, negative = ([a for a, b in zip(scores, labels, strict=True) if b == side] for side in (True, False))
    if positive and negative:
        won = scipy.stats.mannwhitneyu(positive, negative).statistic
        assert auroc(scores, labels) == pytest.approx(won / (len(positive) * len(negative)))


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_is_that_of_scipy(pair: tuple[int, int]) -> None:
    theirs = scipy.stats.binomtest(*pair).proportion_ci(0.95, method="wilson")
    assert wilson_interval(*pair) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_a_quantile_is_numpy_s_inverted_cdf() -> None:
    values = np.random.default_rng(0).normal(size=37).tolist()
    for share in (0.1, 0.5, 0.95, 1.0):
        assert quantile(values, share) == np.quantile(values, share, method="inverted_cdf")


def test_the_bootstrap_of_a_mean_is_near_that_of_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=(60, 1))
    low, high = percentile_interval(resample_sums(values, seed=2)[:, 0] / 60) or (0.0, 0.0)
    theirs = scipy.stats.bootstrap((values[:, 0],), np.mean, method="percentile", rng=np.random.default_rng(3))
    spread = theirs.standard_error
    assert abs(low - theirs.confidence_interval.low) < 0.1 * spread
    assert abs(high - theirs.confidence_interval.high) < 0.1 * spread
