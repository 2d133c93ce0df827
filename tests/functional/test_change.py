import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llamarl.functional.change import (
    Estimate,
    estimate_collision,
    estimate_mean,
    estimate_share,
    mean_change,
    share_change,
)


def share(hits: float, count: int) -> Estimate:
    """A share of independent responses, each its own cluster."""
    return Estimate(hits / count, math.nan, count, count)


# golden


def test_the_share_of_clusters_and_its_design_effect() -> None:
    # clusters (2 of 2), (0 of 2): share 1/2; spread (2 - 1)^2 + (0 - 1)^2 = 2; variance 2/1 * 2 / 16 = 1/4;
    # of four independent responses it would be 1/4 / 4 = 1/16
    found = estimate_share([(2.0, 2.0), (0.0, 2.0)])
    assert (found.value, found.responses, found.clusters) == (0.5, 4, 2)
    assert found.design_effect == pytest.approx(4.0)
    assert found.variance == pytest.approx(0.25)


def test_the_mean_of_clusters() -> None:
    # sums 6 and 2 of two responses each: mean 2; spread (6 - 4)^2 + (2 - 4)^2 = 8; variance 2 * 8 / 16 = 1
    assert estimate_mean([(6.0, 2.0), (2.0, 2.0)]) == Estimate(2.0, 1.0, 2, 4)


def test_the_collision_of_clusters() -> None:
    # pairs: a,a and a,b: <a, a> = 1, <a, ab/2> = 1/2 twice: C = (1 + 1/2 + 1/2) / 3; h = 3/4, 3/4, 1/2
    found = estimate_collision([{1: 1.0}, {1: 1.0}, {1: 0.5, 2: 0.5}], 3)
    assert found.value == pytest.approx(2 / 3)
    variance = ((3 / 4 - 2 / 3) ** 2 * 2 + (1 / 2 - 2 / 3) ** 2) / 2
    assert found.variance == pytest.approx(4 / 3 * variance)
    assert estimate_collision([{1: 1.0}, {2: 1.0}], 2).value == 0.0


def test_four_hits_of_a_hundred_against_one() -> None:
    # 5 hits in all, each among ours with chance p: P(at least 4 of 5) = 5 p^4 (1 - p) + p^5 = 0.05 at p = 0.3426
    change = share_change(share(4, 100), share(1, 100), 0.05)
    assert change.ratio == pytest.approx(4.0)
    p = change.low / (1 + change.low)
    assert 5 * p**4 * (1 - p) + p**5 == pytest.approx(0.05)
    q = change.high / (1 + change.high)
    assert sum(math.comb(5, k) * q**k * (1 - q) ** (5 - k) for k in range(5)) == pytest.approx(0.05)


def test_against_no_hits_the_lower_end_is_a_power() -> None:
    # all 3 hits ours with chance p^3 = 0.05; ratio p / (1 - p), unbounded above
    change = share_change(share(3, 100), share(0, 100), 0.05)
    p = 0.05 ** (1 / 3)
    assert change.ratio == math.inf and change.high == math.inf
    assert change.low == pytest.approx(p / (1 - p))
    assert share_change(share(0, 100), share(3, 100), 0.05).low == 0.0


def test_the_change_of_a_mean() -> None:
    now, control = Estimate(2.0, 0.04, 11, 11), Estimate(1.0, 0.01, 30, 30)
    half = float(stats.t.ppf(0.99, 10)) * math.sqrt(0.04 / 4 + 0.01)
    change = mean_change(now, control, 0.01)
    assert (change.ratio, change.low, change.high) == pytest.approx((2.0, 2 * math.exp(-half), 2 * math.exp(half)))


# properties


@given(
    st.integers(1, 30), st.integers(0, 30), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.2, 0.05, 0.001])
)
def test_the_interval_holds_its_ratio_and_widens(
    ours: int, theirs: int, more: int, still_more: int, chance: float
) -> None:
    now, control = share(ours, 100 * more), share(theirs, 100 * still_more)
    change = share_change(now, control, chance)
    assert change.low <= change.ratio <= change.high
    wider = share_change(now, control, chance / 2)
    assert wider.low <= change.low and wider.high >= change.high
    if theirs:
        back = share_change(control, now, chance)
        assert back.low == pytest.approx(1 / change.high)


@given(st.lists(st.tuples(st.integers(0, 8), st.just(8)), min_size=2, max_size=20))
def test_a_share_is_the_mean_of_zeros_and_ones(clusters: list[tuple[int, int]]) -> None:
    found, mean = estimate_share(clusters), estimate_mean(clusters)
    assert found.value == pytest.approx(mean.value)
    assert found.variance >= mean.variance - 1e-12  # at least that of independent responses


def test_the_interval_is_right_as_often_as_it_says() -> None:
    # both 2 %: the lower end is above 1 in at most 5 % of the pairs
    drawn, misses = random.Random(0), 0
    for _ in range(2000):
        ours, theirs = (sum(drawn.random() < 0.02 for _ in range(150)) for _ in range(2))
        misses += share_change(share(ours, 150), share(theirs, 150), 0.05).low > 1.0
    assert misses <= 0.05 * 2000


def test_the_collision_is_unbiased_at_any_size() -> None:
    # marks 0 to 3 with chances 0.4, 0.3, 0.2, 0.1: C = 0.16 + 0.09 + 0.04 + 0.01 = 0.3
    drawn = random.Random(1)
    for size in (5, 50):
        values = [
            estimate_collision([{mark: 1.0} for mark in drawn.choices(range(4), (4, 3, 2, 1), k=size)], size).value
            for _ in range(800)
        ]
        assert sum(values) / len(values) == pytest.approx(0.3, abs=0.012)


# what tells nothing


def test_without_responses_anything_is_possible() -> None:
    nothing = estimate_share([])
    assert math.isnan(nothing.value) and nothing.responses == 0
    for change in (share_change(nothing, share(1, 9), 0.05), share_change(share(1, 9), nothing, 0.05)):
        assert (change.low, change.high) == (0.0, math.inf)
    alone = estimate_mean([(3.0, 1.0)])
    assert mean_change(alone, Estimate(1.0, 0.1, 9, 9), 0.05).low == 0.0
    assert math.isnan(estimate_collision([{1: 1.0}], 1).value)
    assert math.isnan(estimate_mean([]).value)
