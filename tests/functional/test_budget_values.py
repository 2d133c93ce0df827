import math

import pytest

from llamarl.core.errors import ConfigError, DataError
from llamarl.functional.budget import Budget, Pool, group_values

TWO = ("short", "long")


def values_of(rows, groups=TWO):
    """Rows of (prompt, group, correct)."""
    prompts, names, correct = zip(*rows, strict=True)
    return group_values(Pool(prompts, names, correct), groups)


# golden


def test_values_are_means_of_correctness_and_margins_their_differences():
    # a: short 1 of 2 right, long 3 of 4 right: margins -1/4 and +1/4. b: short 1 of 1, long 0 of 1: +1 and -1.
    rows = [("a", "short", True), ("a", "short", False), *[("a", "long", True)] * 3, ("a", "long", False)]
    found = values_of([*rows, ("b", "short", True), ("b", "long", False)])
    assert found.prompts == ("a", "b")
    assert found.values.tolist() == [[0.5, 0.75], [1.0, 0.0]]
    assert found.margins.tolist() == [[-0.25, 0.25], [1.0, -1.0]]
    assert found.counts.tolist() == [[2, 4], [1, 1]]
    assert found.mean_margin("short") == 0.375  # (-0.25 + 1) / 2


def test_with_three_groups_a_margin_is_against_the_mean_of_the_others():
    # values 1, 0.5, 0: margins 1 - 0.25, 0.5 - 0.5, 0 - 0.75
    rows = [("a", "short", True), ("a", "long", True), ("a", "long", False), ("a", "tool", False)]
    assert values_of(rows, ("short", "long", "tool")).margins.tolist() == [[0.75, 0.0, -0.75]]


def test_with_three_groups_a_prompt_of_two_has_margins_and_is_not_one_sided():
    # a: short 1 and long 0 of 1; tool's value comes from b, 1: margins 1 - 0.5 and 0 - 1
    rows = [("a", "short", True), ("a", "long", False), ("b", "tool", True), ("c", None, True)]
    found = values_of(rows, ("short", "long", "tool"))
    assert found.is_one_sided.tolist() == [False, True, True]
    assert (found.mean_margin("short"), found.mean_margin("long")) == (0.5, -1.0)
    assert math.isnan(found.mean_margin("tool"))  # b has nothing beside it


def test_a_missing_group_has_its_mean_over_the_pool_never_zero():
    # short over the pool: 3 of 4 right. c has no short response: its margin of long is 1 - 0.75.
    rows = [
        ("a", "short", True),
        ("a", "short", True),
        ("b", "short", True),
        ("b", "short", False),
        ("c", "long", True),
    ]
    found = values_of(rows)
    assert found.values[2].tolist() == [0.75, 1.0]
    assert found.margins[2].tolist() == [-0.25, 0.25]
    assert found.is_one_sided.tolist() == [True, True, True]
    assert math.isnan(found.mean_margin("long"))


def test_a_value_known_from_before_comes_ahead_of_the_pools_mean_but_not_of_the_pools_own():
    pool = Pool(["a", "a", "b", "c"], ["short", "long", "long", "long"], [True, False, True, True])
    found = group_values(pool, TWO, {"a": {"short": 0.0, "long": 0.0}, "b": {"short": 0.25}, "c": {}})
    # a keeps what the pool says; b has the known 1/4; c the pool's mean of short, 1
    assert found.values.tolist() == [[1.0, 0.0], [0.25, 1.0], [1.0, 1.0]]
    assert found.margins[:, 1].tolist() == [-1.0, 0.75, 0.0]
    assert found.counts.tolist() == [[1, 1], [0, 1], [0, 1]]


def test_a_group_that_no_prompt_saw_has_no_value_and_the_only_other_no_margin():
    found = values_of([("a", "long", True), ("b", "long", False)])
    assert found.margins[:, 1].tolist() == [0.0, 0.0]
    assert all(math.isnan(v) for v in [*found.values[:, 0], *found.margins[:, 0]])


def test_a_malformed_response_counts_in_no_value():
    found = values_of([("a", "short", False), ("a", None, True), ("a", "long", True)])
    assert found.values.tolist() == [[0.0, 1.0]]
    assert found.group_of.tolist() == [0, -1, 1]


def test_an_empty_pool_has_no_prompts():
    found = group_values(Pool([], [], []), TWO)
    assert found.values.shape == (0, 2) and math.isnan(found.mean_margin("long"))


# invariance


def test_margins_do_not_depend_on_the_order_of_responses():
    rows = [("a", "short", True), ("a", "long", False), ("a", "long", True), ("b", "long", True), ("b", "short", False)]
    forward, backward = values_of(rows), values_of(rows[::-1])
    assert forward.prompts == backward.prompts[::-1]
    assert forward.margins.tolist() == backward.margins[::-1].tolist()


def test_margins_of_thirds_are_exact_opposites():
    rows = [("a", g, c) for g in TWO for c in (True, True, False)] + [("a", "long", True)]
    (row,) = values_of(rows).margins.tolist()
    assert row[0] == -row[1]


# rejects


@pytest.mark.parametrize("cap", [-0.1, 1.3, math.nan, math.inf])
def test_a_cap_is_a_share(cap):
    with pytest.raises(ConfigError, match=r"cap of group 'long' is .*between 0 and 1"):
        Budget.share(cap)


@pytest.mark.parametrize("mean_cost", [0.0, -1.0, math.nan, math.inf])
def test_a_mean_cost_is_positive(mean_cost):
    with pytest.raises(ConfigError, match="mean_cost"):
        Budget({"long": 1.0}, mean_cost=mean_cost)


def test_some_group_is_free_and_none_is_both():
    with pytest.raises(ConfigError, match="no group is free"):
        Budget({"long": 0.5}, free=())
    with pytest.raises(ConfigError, match=r"\['long'\] are free and capped"):
        Budget({"long": 0.5}, free=("long",))


def test_an_unknown_group_is_named_with_what_is_near():
    with pytest.raises(DataError, match=r"response 1: group 'Long' is not in the budget. Did you mean 'long'"):
        values_of([("a", "short", True), ("a", "Long", True)])


def test_columns_of_a_pool_have_equal_lengths_and_costs_are_numbers():
    with pytest.raises(DataError, match=r"Pool.correct has 1 entries, but there are 2"):
        Pool(["a", "a"], ["short", "long"], [True])
    with pytest.raises(DataError, match=r"Pool.costs\[1\] = nan"):
        Pool(["a", "a"], ["short", "long"], [True, True], [1.0, math.nan])
