import math

import pytest

from llamarl.functional.statistics import clustered_rate, fisher_interval, wilson_interval

# golden


def test_clustered_rate_by_hand():
    """Two users: 2 of 4, 0 of 4. p = 1/4; sum (l - p n)^2 = 1 + 1; variance = 2/1 * 2/64 = 1/16; plain 3/128."""
    rate, interval, effect = clustered_rate([2, 8, 2, 4, 8, 32])
    assert rate == 0.25
    assert effect == pytest.approx((1 / 16) / (3 / 128))
    assert interval == pytest.approx(wilson_interval(2 / effect, 8 / effect))


def test_fisher_by_hand():
    half = 1.959963984540054 / math.sqrt(100 - 3)
    assert fisher_interval(0.0, 100) == pytest.approx((-math.tanh(half), math.tanh(half)))


# reduces to


def test_users_of_one_message_give_wilson():
    """30 users with a love, 70 without: the design effect is U / (U - 1)."""
    _, interval, effect = clustered_rate([30, 100, 100, 30, 30, 100])
    assert effect == pytest.approx(100 / 99)
    assert interval == pytest.approx(wilson_interval(30, 100), abs=1e-3)


def test_where_nobody_loves_the_effect_of_the_whole_log_holds():
    assert clustered_rate([0, 100, 10, 0, 0, 1000], 4.0)[1] == wilson_interval(0, 25)


# rejects


def test_fewer_than_four_pairs_say_nothing():
    assert fisher_interval(0.9, 3) == (-1.0, 1.0)
