import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.judges.lab.agreement import Confusion, auroc, ranks, spearman

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
