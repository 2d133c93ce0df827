import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.functional.pooling import SHIPPED, Pooling

PROBABILITIES = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("name", "lowest", "expected"),
    [
        ("mean", True, 0.5),
        ("geometric", True, (0.8 * 0.1 * 0.5 * 0.6) ** 0.25),
        ("worst-1", True, 0.1),
        ("worst-3", True, 0.4),
        ("worst-1", False, 0.8),
        ("worst-3", False, 1.9 / 3),
        ("worst-25%", True, 0.1),
        ("worst-26%", True, 0.3),  # rounded up: two of four
        ("worst-5%", True, 0.1),
        ("worst-100%", True, 0.5),
    ],
)
def test_pools_by_hand(name, lowest, expected):
    assert Pooling.parse(name)([0.8, 0.1, 0.5, 0.6], lowest=lowest) == pytest.approx(expected, abs=1e-12)


@given(PROBABILITIES)
def test_the_geometric_mean_is_the_inverse_of_perplexity(values):
    perplexity = math.exp(-sum(math.log(value) for value in values) / len(values))
    assert Pooling.parse("geometric")(values, lowest=True) == pytest.approx(1 / perplexity)


@given(PROBABILITIES, st.integers(0, 5), st.booleans())
def test_the_worst_of_no_more_tokens_than_there_are_is_the_mean(values, more, lowest):
    assert Pooling.parse(f"worst-{len(values) + more}")(values, lowest=lowest) == pytest.approx(
        Pooling.parse("mean")(values, lowest=lowest)
    )


@given(PROBABILITIES, st.sampled_from(SHIPPED), st.randoms())
def test_order_does_not_count_and_the_worst_bound_the_mean(values, name, random):
    shuffled = random.sample(values, len(values))
    pool, mean = Pooling.parse(name), Pooling.parse("mean")(values, lowest=True)
    assert pool(shuffled, lowest=True) == pytest.approx(pool(values, lowest=True))
    assert pool(values, lowest=True) <= mean + 1e-12
    if name != "geometric":
        assert pool(values, lowest=False) >= mean - 1e-12


def test_a_probability_of_nothing_makes_the_geometric_mean_nothing():
    assert Pooling.parse("geometric")([0.5, 0.0], lowest=True) == 0.0


@pytest.mark.parametrize("name", ["worst", "worst-0", "worst--1", "worst-101%", "median", "worst-3 ", ""])
def test_unknown_ways_are_refused(name):
    with pytest.raises(ValueError, match="none of mean, geometric"):
        Pooling.parse(name)
