import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.metrics import roc_curve as oracle_roc_curve

from llamarl.functional.detection import (
    Array,
    RankedPairs,
    balanced_accuracy,
    cluster_interval,
    count_claims,
    count_single,
    coverage_curve,
    decide,
    list_cuts,
    rank_interval,
    roc_curve,
    search_band,
    search_threshold,
    share_unknown,
    sum_clusters,
)
from llamarl.functional.statistics import wilson_interval

grid = st.integers(0, 12).map(lambda number: number / 12)  # with ties
claims = st.lists(st.tuples(grid, st.booleans()), min_size=2, max_size=14).filter(
    lambda pairs: 0 < sum(label for _, label in pairs) < len(pairs)
)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[Array, Array]:
    scores, labels = zip(*pairs, strict=True)
    return np.array(scores), np.array(labels)


def bacc(scores: Array, labels: Array, low: float, high: float | None = None, unknown: str = "ignored") -> float:
    rows = count_single(scores, labels, low) if high is None else count_claims(scores, labels, low, high)
    return float(balanced_accuracy(rows.sum(axis=0), unknown))  # type: ignore[arg-type]


# golden


def test_golden_balanced_accuracy() -> None:
    # four factual claims, three of them right; two hallucinated, one right: (3/4 + 1/2) / 2 = 0.625
    counts = np.array([3.0, 1, 1, 1, 0, 0])
    assert balanced_accuracy(counts) == 0.625
    # one more of each class unknown: as right (4/5 + 2/3) / 2, as wrong (3/5 + 1/3) / 2, share 2 of 8
    counts[4:] = 1
    assert balanced_accuracy(counts) == 0.625
    assert balanced_accuracy(counts, "right") == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert balanced_accuracy(counts, "wrong") == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert share_unknown(counts) == 0.25


def test_golden_thresholds() -> None:
    # sorted: .1 H, .3 F, .4 H, .6 F, .8 F. Midpoints .2 .35 .5 .7: BAcc at .2: (3/3 + 1/2)/2 = .75,
    # at .35: (2/3 + 1/2)/2, at .5: (2/3 + 1)/2 = .833, at .7: (1/3 + 1)/2
    scores, labels = np.array([0.8, 0.1, 0.4, 0.3, 0.6]), np.array([True, False, False, True, True])
    assert list_cuts(scores) == pytest.approx([0.2, 0.35, 0.5, 0.7])
    assert search_threshold(scores, labels) == pytest.approx(0.5)
    # low .2, high .5: the claims at .3 and .4 are unknown, the others right: nothing fewer does
    band = search_band(scores, labels)
    assert band is not None
    assert (band.low, band.high) == pytest.approx((0.2, 0.5))
    assert band.bacc_unknown == 1.0 and band.unknown_share == pytest.approx(0.4)
    # all claims, unknown as wrong: at (.2, .5) (2/3 + 1/2)/2 is too little; (.5, .5) has (2/3 + 1)/2, and
    # (.35, .5) (2/3 + 1/2)/2, (.2, .35) (2/3 + 1/2)/2, (.2, .2) (1 + 1/2)/2 = .75: the best allowed is (.5, .5)
    limited = search_band(scores, labels, constraint="all")
    assert limited is not None and (limited.low, limited.high) == pytest.approx((0.5, 0.5))
    assert limited.bacc_unknown == pytest.approx(5 / 6) and limited.unknown_share == 0.0


def test_ties_go_to_the_threshold_nearest_to_a_half() -> None:
    # .1 H, .2 F, .3 H, .9 F: midpoints .15 (1 + 1/2)/2, .25 (1/2 + 1/2)/2, .6 (1/2 + 1)/2; .6 is nearer to .5
    scores, labels = np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, True, False, True])
    assert search_threshold(scores, labels) == pytest.approx(0.6)


def test_golden_area_and_its_clustered_interval() -> None:
    # positives .9 .4, negatives .4 .1: won 1 + 1, tied .5, won 1 -> 3.5 of 4
    scores, labels = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    found = RankedPairs.of(scores, labels)
    assert found.value == 0.875
    # won: 1, .75; beaten: .75, 1. Less .875, over 2: +-.0625. Clusters {1st, 4th}, {2nd, 3rd}: .125, -.125;
    # variance 2/1 * 2 * .125^2 = .0625, so 1.96 * .25
    low, high = cluster_interval(found.value, found.influence, ["a", "b", "b", "a"]) or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(1.959964 * 0.25, rel=1e-6)
    assert cluster_interval(found.value, found.influence, ["a"] * 4) is None


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_the_score_interval_of_an_area_is_wilsons_for_one_claim_of_each_class(value: float) -> None:
    assert rank_interval(value, 1, 1) == pytest.approx(wilson_interval(value, 1))


def test_the_score_interval_of_an_area_by_hand() -> None:
    # five of each in order: m = 4; at A = .6, (1 - A)^2 = .16 and 3.84 * 0.24 (1 + 4 (.4/1.4 + .6/1.6)) / 25 = 0.134;
    # at .65, 0.1225 and 3.84 * 0.2275 (1 + 4 (.35/1.35 + .65/1.65)) / 25 = 0.126: the end lies between
    low, high = rank_interval(1.0, 5, 5)
    assert 0.6 < low < 0.65 and high == 1.0
    many, _ = rank_interval(1.0, 50, 50)
    assert low < many < 1.0  # as claims are added it closes in
    assert rank_interval(0.3, 7, 4) == pytest.approx([1 - end for end in rank_interval(0.7, 4, 7)][::-1])


def test_golden_coverage() -> None:
    # threshold .5; above: .9 F, .6 H; below: .1 H, .4 F. Half of each side: both right; all: 2 of 4
    scores, labels = np.array([0.9, 0.6, 0.1, 0.4]), np.array([True, False, False, True])
    half, whole = coverage_curve(scores, labels, 0.5)
    assert (half.coverage, half.accuracy, half.bacc) == (0.5, 1.0, 1.0)
    assert (whole.coverage, whole.accuracy, whole.bacc) == (1.0, 0.5, 0.5)


# invariance


@settings(max_examples=100, deadline=None)
@given(claims, grid)
def test_balanced_accuracy_knows_no_positive_class_and_no_class_size(pairs: list, threshold: float) -> None:
    scores, labels = arrays(pairs)
    decisions = scores > threshold
    found = bacc(scores, labels, threshold)
    assert found == pytest.approx(balanced_accuracy_score(labels, decisions))
    assert found == pytest.approx(balanced_accuracy_score(~labels, ~decisions))
    swapped = count_single(scores, labels, threshold).sum(axis=0)[[2, 3, 0, 1, 5, 4]]
    assert balanced_accuracy(swapped) == pytest.approx(found)
    twice = [*pairs, *(pair for pair in pairs if pair[1])]
    assert bacc(*arrays(twice), threshold) == pytest.approx(found)


@settings(max_examples=100, deadline=None)
@given(claims, st.sampled_from([-0.5, 1.0]))
def test_a_constant_decision_is_chance(pairs: list, threshold: float) -> None:
    assert bacc(*arrays(pairs), threshold) == 0.5


@settings(max_examples=100, deadline=None)
@given(claims, st.permutations(range(14)))
def test_order_of_claims_does_not_matter(pairs: list, order: list[int]) -> None:
    shuffled = [pairs[place] for place in order if place < len(pairs)]
    assert search_threshold(*arrays(pairs)) == search_threshold(*arrays(shuffled))
    assert search_band(*arrays(pairs)) == search_band(*arrays(shuffled))
    curves = [coverage_curve(*arrays(each), 0.5) for each in (pairs, shuffled)]
    assert curves[0] == curves[1]


# reduces to


@settings(max_examples=100, deadline=None)
@given(claims, grid)
def test_two_equal_thresholds_are_one(pairs: list, threshold: float) -> None:
    pairs = [pair for pair in pairs if pair[0] != threshold]
    assume(pairs)
    scores, labels = arrays(pairs)
    single, double = count_single(scores, labels, threshold), count_claims(scores, labels, threshold, threshold)
    assert np.array_equal(single, double)
    plain, with_unknown = balanced_accuracy(double.sum(axis=0)), balanced_accuracy(double.sum(axis=0), "right")
    assert plain == with_unknown or (np.isnan(plain) and np.isnan(with_unknown))


@settings(max_examples=100, deadline=None)
@given(claims, st.tuples(grid, grid, grid, grid).map(sorted))
def test_a_wider_band_never_lowers_bacc_unknown(pairs: list, ends: list[float]) -> None:
    scores, labels = arrays(pairs)
    wide_low, low, high, wide_high = ends
    narrow = bacc(scores, labels, low, high, "right")
    assert bacc(scores, labels, wide_low, wide_high, "right") >= narrow
    assert bacc(scores, labels, wide_low, high, "right") >= narrow


@settings(max_examples=100, deadline=None)
@given(claims)
def test_a_score_at_a_threshold_is_unknown(pairs: list) -> None:
    scores, _ = arrays(pairs)
    positive, negative = decide(scores, float(scores.min()), float(scores.max()))
    assert not positive.any() and not negative.any()


@settings(max_examples=100, deadline=None)
@given(claims)
def test_areas_are_those_of_an_oracle(pairs: list) -> None:
    scores, labels = arrays(pairs)
    assert RankedPairs.of(scores, labels).value == pytest.approx(roc_auc_score(labels, scores))
    assert RankedPairs.of(scores, labels).influence.sum() == pytest.approx(0.0, abs=1e-12)
    false, true, _ = oracle_roc_curve(labels, scores, drop_intermediate=False)
    ours = roc_curve(scores, labels)
    assert ours[0] == pytest.approx(false) and ours[1] == pytest.approx(true)


# search by brute force


@settings(max_examples=100, deadline=None)
@given(claims)
def test_no_threshold_beats_the_one_found(pairs: list) -> None:
    scores, labels = arrays(pairs)
    found = search_threshold(scores, labels)
    anywhere = [-0.5, *sorted({*scores, *(scores + 1e-6), *list_cuts(scores)}), 1.5]
    best = max(bacc(scores, labels, threshold) for threshold in anywhere)
    assert bacc(scores, labels, found) == pytest.approx(best)
    ties = [cut for cut in list_cuts(scores) if bacc(scores, labels, cut) == pytest.approx(best)]
    if ties:
        assert abs(found - 0.5) == pytest.approx(min(abs(cut - 0.5) for cut in ties))


@settings(max_examples=100, deadline=None)
@given(claims, st.sampled_from([0.5, 0.7, 0.9]), st.sampled_from(["decided", "all"]))
def test_no_pair_of_thresholds_beats_the_one_found(pairs: list, min_bacc: float, constraint: str) -> None:
    scores, labels = arrays(pairs)
    unknown = "ignored" if constraint == "decided" else "wrong"
    candidates = []
    for low, high in itertools.combinations_with_replacement(list_cuts(scores), 2):
        if bacc(scores, labels, low, high, unknown) > min_bacc + 1e-12:
            sums = count_claims(scores, labels, low, high).sum(axis=0)
            candidates.append((float(balanced_accuracy(sums, "right")), -float(share_unknown(sums))))
    found = search_band(scores, labels, min_bacc, constraint)  # type: ignore[arg-type]
    if not candidates:
        assert found is None
        return
    assert found is not None
    assert found.low <= found.high
    assert bacc(scores, labels, found.low, found.high, unknown) > min_bacc
    best = max(value for value, _ in candidates)
    assert found.bacc_unknown == pytest.approx(best)
    fewest = min(-share for value, share in candidates if value == pytest.approx(best))
    assert found.unknown_share == pytest.approx(fewest)


def test_neighbouring_floats_are_told_apart() -> None:
    low = 0.3
    high = float(np.nextafter(low, 1.0))
    scores, labels = np.array([low, high]), np.array([False, True])
    assert bacc(scores, labels, search_threshold(scores, labels)) == 1.0


def test_scores_that_say_nothing_still_have_a_threshold() -> None:
    labels = np.array([True, False])
    assert search_threshold(np.array([0.3, 0.3]), labels) == 0.5
    worse = np.array([0.2, 0.9]), np.array([True, False])  # every midpoint has balanced accuracy 0
    assert bacc(*worse, search_threshold(*worse)) == 0.5


def test_sums_of_clusters() -> None:
    counts = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert sum_clusters(counts, ["x", "y", "x"]).tolist() == [[6.0, 8.0], [3.0, 4.0]]


# rejects


def test_what_is_rejected() -> None:
    scores, labels = np.array([0.2, 0.7]), np.array([True, True])
    with pytest.raises(ValueError, match=r"low=0\.6 is above high=0\.5"):
        decide(scores, 0.6, 0.5)
    for search in (search_threshold, search_band, RankedPairs.of):
        with pytest.raises(ValueError, match="2 labels of one class"):
            search(scores, labels)  # type: ignore[operator]
