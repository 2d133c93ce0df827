import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.evals.budget_curves import best_of_chance, frontier, frontier_area, interpolate, majority_chances

# golden


def test_a_vote_of_three_by_hand():
    # samples r r w x: of the 4 triples rrw and rrx are right by majority; rwx, twice, ties three ways and is right a
    # third of the time: (1 + 1 + 1/3 + 1/3) / 4 = 2/3
    assert majority_chances((2,), (1, 1), 4, 3) == pytest.approx([1 / 2, 1 / 2, 2 / 3])


def test_samples_without_an_answer_have_no_vote():
    # r w blank: pairs rw (half), r-blank (right), w-blank (wrong) -> (1/2 + 1 + 0) / 3; blank alone is wrong
    assert majority_chances((1,), (1,), 3, 2) == pytest.approx([1 / 3, 1 / 2])
    assert majority_chances((), (), 2, 2) == [0.0, 0.0]


def test_best_of_two_by_hand():
    # 4 samples, 1 right: 3 of the 6 pairs hold it
    assert best_of_chance(4, 1, 2) == pytest.approx(1 / 2)


def test_interpolation_by_hand():
    budgets, accuracies = np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.6, 0.8])
    found = interpolate([0.5, 1.0, 1.5, 3.0, 4.0, 9.0], np.tile(budgets, (6, 1)), np.tile(accuracies, (6, 1)))
    assert found == pytest.approx([0.5, 0.5, 0.55, 0.7, 0.8, 0.8])  # end values outside


def test_interpolation_of_one_point_is_that_point():
    assert interpolate([3.0, 7.0], np.array([[1.0], [1.0]]), np.array([[0.4], [0.5]])) == pytest.approx([0.4, 0.5])


def test_a_frontier_drops_what_mixtures_beat():
    # (2, .5) lies under the line from (1, .5) to (4, .8); (5, .7) costs more than (4, .8) and is worse
    assert frontier([2, 5, 4, 1], [0.5, 0.7, 0.8, 0.5]) == [(1, 0.5), (4, 0.8)]


def test_an_area_by_hand():
    # from 1 to 4 a line from .5 to .8 (mean .65), then .8 up to 7: (3 * .65 + 3 * .8) / 6
    assert frontier_area([1, 4], [0.5, 0.8], 1, 7) == pytest.approx(0.725)
    assert frontier_area([1, 4], [0.5, 0.8], 1, 2.5) == pytest.approx((0.5 + 0.65) / 2)  # it ends between the points
    assert frontier_area([3], [0.9], 1, 5) == pytest.approx(0.9)


# reduces to enumeration


def enumerated(labels, k):
    """Right share of a vote, over all ordered draws of k: the earliest of equally frequent answers wins."""
    total = 0.0
    draws = list(itertools.permutations(labels, k))
    for draw in draws:
        answers = [label for label in draw if label is not None]
        best = max(answers, key=lambda label: (answers.count(label), -answers.index(label)), default="w")
        total += best.startswith("r")
    return total / len(draws)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["r1", "r2", "w1", "w2", "w3", None]), min_size=1, max_size=6))
def test_votes_equal_enumeration(labels):
    counts = {label: labels.count(label) for label in labels if label is not None}
    right, wrong = (tuple(n for label, n in counts.items() if label[0] == side) for side in "rw")
    found = majority_chances(right, wrong, len(labels), len(labels))
    assert found == pytest.approx([enumerated(labels, k) for k in range(1, len(labels) + 1)])
    assert found[0] == pytest.approx(sum(right) / len(labels))


@pytest.mark.parametrize("num_right", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_best_of_equals_enumeration(num_right, k):
    labels = [True] * num_right + [False] * (5 - num_right)
    hits = sum(any(subset) for subset in itertools.combinations(labels, k))
    assert best_of_chance(5, num_right, k) == pytest.approx(hits / comb(5, k))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10)), min_size=1, max_size=6))
def test_a_frontier_is_the_best_mixture_of_two(points):
    xs, ys = [float(x) for x, _ in points], [y / 10 for _, y in points]
    corners = frontier(xs, ys)
    for budget in np.linspace(min(xs), 10, 7):
        reached = [y for x, y in zip(xs, ys, strict=True) if x <= budget]
        for (x0, y0), (x1, y1) in itertools.product(zip(xs, ys, strict=True), repeat=2):
            if x0 <= budget <= x1 and x0 < x1:
                reached.append(y0 + (budget - x0) / (x1 - x0) * (y1 - y0))
        assert np.interp(budget, *zip(*corners, strict=True)) == pytest.approx(max(reached))


# invariance


def test_more_samples_of_the_same_kind_change_little_and_a_sure_answer_nothing():
    assert majority_chances((8,), (), 8, 8) == [1.0] * 8
    small, large = majority_chances((6,), (4,), 10, 3), majority_chances((600,), (400,), 1000, 3)
    assert large[2] == pytest.approx(0.6**3 + 3 * 0.6**2 * 0.4, abs=1e-3)
    assert small[0] == pytest.approx(large[0])


# rejects


@pytest.mark.parametrize(("arguments"), [((1,), (), 1, 2), ((1,), (), 1, 0), ((2,), (1,), 2, 1)])
def test_votes_reject(arguments):
    with pytest.raises(ValueError, match="majority_chances"):
        majority_chances(*arguments)


@pytest.mark.parametrize("arguments", [(2, 1, 3), (2, 3, 1), (2, 1, 0)])
def test_best_of_rejects(arguments):
    with pytest.raises(ValueError, match="best_of_chance"):
        best_of_chance(*arguments)


def test_an_area_over_no_budget_is_rejected():
    with pytest.raises(ValueError, match="empty"):
        frontier_area([1.0], [0.5], 2.0, 2.0)
