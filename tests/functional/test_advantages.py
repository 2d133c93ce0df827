import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.functional.advantages import group_advantages

REWARDS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=16)

# golden


def test_mean_baseline_includes_the_own_sample():
    # group a: 1, 0, 0 -> mean 1/3; group b: 2, 4 -> mean 3
    result = group_advantages([1, 0, 2, 0, 4], ["a", "a", "b", "a", "b"])
    assert result == pytest.approx([2 / 3, -1 / 3, -1, -1 / 3, 1])


def test_leave_one_out_baseline_is_the_mean_of_the_others():
    # 6 - (1 + 2) / 2 = 4.5;  1 - (6 + 2) / 2 = -3;  2 - (6 + 1) / 2 = -1.5
    assert group_advantages([6, 1, 2], [0, 0, 0], center="leave_one_out") == pytest.approx([4.5, -3.0, -1.5])


def test_std_has_divisor_n():
    # mean 1/4, std = sqrt(1/4 * 3/4) = 0.433013: 0.75 / 0.433013 = 1.732051 = sqrt(3) and -0.25 / 0.433013 = -0.577350
    result = group_advantages([1, 0, 0, 0], [0] * 4, scale="group", eps=1e-12)
    assert result == pytest.approx([1.7320508, -0.5773503, -0.5773503, -0.5773503])


def test_one_group_for_all_is_batch_normalisation():
    # mean 2, std = sqrt((4 + 0 + 4) / 3) = 1.632993
    assert group_advantages([0, 2, 4], [0, 0, 0], scale="group", eps=1e-12) == pytest.approx([-1.2247449, 0, 1.2247449])


def test_the_batch_s_std_is_of_all_rewards_around_their_mean():
    # means 1/2 and 3/2; the four rewards 1 0 0 3 have mean 1 and std sqrt((0 + 1 + 1 + 4) / 4) = 1.2247449
    result = group_advantages([1, 0, 0, 3], ["a", "a", "b", "b"], scale="batch", eps=1e-12)
    assert result == pytest.approx([0.4082483, -0.4082483, -1.2247449, 1.2247449])


def test_eps_is_in_the_reward_s_unit():
    assert group_advantages([3, 1], [0, 0], scale="group", eps=1.0) == [0.5, -0.5]  # std 1
    # std of 3 1 0 0 around 1: sqrt((4 + 0 + 1 + 1) / 4) = 1.2247449
    result = group_advantages([3, 1, 0, 0], [0, 0, 1, 1], scale="batch", eps=0.7752551)
    assert result == pytest.approx([0.5, -0.5, 0.0, 0.0])


# invariance


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=16), st.sampled_from([0.5, 4.0, 1024.0]))
@settings(max_examples=50, deadline=None)
def test_scaled_advantages_have_no_unit(rewards, factor):
    groups = [index % 2 for index in range(len(rewards))]
    for scale in ("group", "batch"):
        plain = group_advantages(rewards, groups, scale=scale, eps=1e-30)
        scaled = group_advantages([factor * r for r in rewards], groups, scale=scale, eps=1e-30)
        assert scaled == pytest.approx(plain)


@given(REWARDS, st.floats(-1e3, 1e3))
@settings(max_examples=50, deadline=None)
def test_a_constant_added_to_all_rewards_of_a_group_cancels(rewards, constant):
    groups = [0] * len(rewards)
    shifted = group_advantages([r + constant for r in rewards], groups)
    assert shifted == pytest.approx(group_advantages(rewards, groups), abs=1e-6)


@given(REWARDS, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_and_other_groups_do_not_matter(rewards, random):
    groups = [random.randrange(3) for _ in rewards]
    expected = group_advantages(rewards, groups)
    order = list(range(len(rewards)))
    random.shuffle(order)
    shuffled = group_advantages([rewards[i] for i in order], [groups[i] for i in order])
    assert shuffled == pytest.approx([expected[i] for i in order], abs=1e-6)
    mine = [i for i, group in enumerate(groups) if group == groups[0]]
    assert group_advantages([rewards[i] for i in mine], [7] * len(mine)) == [expected[i] for i in mine]


@given(REWARDS)
@settings(max_examples=100, deadline=None)
def test_any_rewards_give_finite_bounded_centred_values(rewards):
    groups = [0] * len(rewards)
    result = group_advantages(rewards, groups, scale="group")
    assert all(math.isfinite(a) and abs(a) <= math.sqrt(len(rewards)) for a in result)
    assert sum(result) == pytest.approx(0.0, abs=1e-6)
    plain = group_advantages(rewards, groups)
    assert sum(plain) == pytest.approx(0.0, abs=1e-6)


@given(
    st.floats(-1e6, 1e6),
    st.integers(1, 33),
    st.sampled_from([("mean", "none"), ("mean", "group"), ("mean", "batch"), ("leave_one_out", "none")]),
)
@settings(max_examples=100, deadline=None)
def test_equal_rewards_give_exact_zeros(reward, count, kind):
    center, scale = kind
    assert group_advantages([reward] * count, [0] * count, center=center, scale=scale) == [0.0] * count


def test_rewards_equal_but_for_rounding_are_not_blown_up():
    result = group_advantages([0.1 + 0.2, 0.3, 0.3], [0, 0, 0], scale="group")  # 0.1 + 0.2 = 0.30000000000000004
    assert max(map(abs, result)) < 1e-9


# reduces to


@given(REWARDS)
@settings(max_examples=50, deadline=None)
def test_leave_one_out_is_a_rescaled_mean(rewards):  # llamarl P3
    count, groups = len(rewards), [0] * len(rewards)
    factor = count / (count - 1) if count > 1 else 0.0
    expected = [factor * a for a in group_advantages(rewards, groups)]
    assert group_advantages(rewards, groups, center="leave_one_out") == expected


@given(REWARDS)
@settings(max_examples=50, deadline=None)
def test_in_a_batch_of_one_group_both_scales_are_one(rewards):
    groups = [0] * len(rewards)
    assert group_advantages(rewards, groups, scale="batch") == group_advantages(rewards, groups, scale="group")


def test_a_lone_sample_has_nothing_to_be_compared_with():
    for options in ({}, {"scale": "group"}, {"scale": "batch"}, {"center": "leave_one_out"}):
        assert group_advantages([5.0, 1.0, 3.0], [0, 1, 1], **options)[0] == 0.0
    assert group_advantages([], []) == []


# rejects


def test_rejects_lengths_and_meaningless_combinations():
    with pytest.raises(ValueError, match="2 rewards but 1 group labels"):
        group_advantages([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="leave_one_out"):
        group_advantages([1.0], [0], center="leave_one_out", scale="group")
    with pytest.raises(ValueError, match="use center='mean' with scale='batch'"):
        group_advantages([1.0], [0], center="leave_one_out", scale="batch")
