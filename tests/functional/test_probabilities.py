import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from llamarl.functional.preference import calibrated_reward
from llamarl.functional.probabilities import (
    brier_score,
    clustered_auroc,
    clustered_pearson,
    correct_prior,
    quantile_bins,
)
from llamarl.functional.statistics import auroc, fisher_interval, pearson

# golden


def test_the_correction_by_hand():
    # odds of 1/9 in training stand for odds of 1/99 outside: a logit of 0 falls by log 11
    assert correct_prior(0.0, 0.01, 0.1) == pytest.approx(-math.log(11.0))
    assert correct_prior(1.25, 0.1, 0.1) == 1.25


def test_the_corrected_mean_is_the_base_rate_of_a_calibrated_population():
    # 1,000 messages; warm ones are loved 5 in 100, cold ones 1 in 100: the base rate is 0.03. Training draws loved ones
    # until they are 0.1 of all, and learns the odds of its draws exactly
    rate, share = 0.03, 0.1
    counts = {"warm": (25, 475), "cold": (5, 495)}
    drawn = {kind: (y * share / 30, n * (1 - share) / 970) for kind, (y, n) in counts.items()}
    logits = {kind: math.log(y / n) for kind, (y, n) in drawn.items()}
    corrected = {kind: calibrated_reward(correct_prior(logit, rate, share)) for kind, logit in logits.items()}
    assert corrected == pytest.approx({"warm": 0.05, "cold": 0.01})
    assert sum(500 * p for p in corrected.values()) / 1000 == pytest.approx(rate)


def test_auroc_by_hand():
    # loved: 3 and 1; others: 2 and 0. Of four pairs three are in order
    estimate = clustered_auroc([3.0, 1.0, 2.0, 0.0], [True, True, False, False], "abcd")
    assert estimate.value == 0.75
    assert 0.0 < estimate.interval[0] < 0.75 < estimate.interval[1] < 1.0


def test_a_constant_score_tells_nothing_apart():
    estimate = clustered_auroc([1.0] * 40, [index % 4 == 0 for index in range(40)], range(40))
    assert estimate.value == 0.5
    assert estimate.interval[0] <= 0.5 <= estimate.interval[1]


def test_quantile_bins_by_hand():
    bins = quantile_bins([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], num_bins=2)
    assert [(b.count, b.predicted, b.observed) for b in bins] == [(2, pytest.approx(0.15), 0.5), (2, 0.35, 0.5)]


def test_brier_score_by_hand():
    assert brier_score([0.2, 0.9], [0, 1]) == pytest.approx((0.04 + 0.01) / 2)


# oracles


SCORES = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=60)


@given(SCORES, st.floats(0.001, 0.09))
def test_the_order_is_that_of_scikit_learn_and_the_correction_leaves_it(rows, rate):
    scores, labels = [float(score) for score, _ in rows], [label for _, label in rows]
    estimate = clustered_auroc(scores, labels, range(len(rows)))
    if len(set(labels)) < 2:
        assert estimate is None
        return
    assert estimate.value == pytest.approx(oracle.roc_auc_score(labels, scores))
    assert estimate.value == pytest.approx(auroc(scores, labels))
    shifted = [correct_prior(score, rate, 0.1) for score in scores]
    assert clustered_auroc(shifted, labels, range(len(rows))) == estimate
    assert 0.0 <= estimate.interval[0] <= estimate.value <= estimate.interval[1] <= 1.0


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=50))
def test_the_brier_score_is_that_of_scikit_learn(rows):
    probabilities, labels = [p for p, _ in rows], [float(y) for _, y in rows]
    assert brier_score(probabilities, labels) == pytest.approx(
        oracle.brier_score_loss(labels, probabilities, pos_label=1.0)
    )


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=50), st.integers(1, 12))
def test_bins_hold_every_row_once_and_equal_probabilities_together(rows, num_bins):
    probabilities, labels = [p for p, _ in rows], [y for _, y in rows]
    bins = quantile_bins(probabilities, labels, num_bins)
    assert sum(b.count for b in bins) == len(rows) and len(bins) <= num_bins
    assert sum(b.count * b.observed for b in bins) == pytest.approx(sum(labels))
    assert [b.predicted for b in bins] == sorted(b.predicted for b in bins)
    if len(set(probabilities)) == 1:
        assert len(bins) == 1


# intervals


def simulated_users(rng, users, messages, spread):
    """Score, label and user of messages; what users love, and how their scores lie, differs by `spread`."""
    rows = []
    for user in range(users):
        taste, offset = rng.gauss(0, spread), rng.gauss(0, spread)
        for _ in range(messages):
            score = rng.gauss(0, 1)
            rows.append((score + offset, rng.random() < calibrated_reward(score + taste - 1.5), user))
    return [list(column) for column in zip(*rows, strict=True)]


def test_without_clusters_the_interval_is_that_of_delong():
    # DeLong, DeLong and Clarke-Pearson (1988): var = S10 / m + S01 / n of the structural components
    scores, labels, _ = simulated_users(random.Random(1), 300, 1, 0.0)
    x = np.array([s for s, y in zip(scores, labels, strict=True) if y])
    y = np.array([s for s, y in zip(scores, labels, strict=True) if not y])
    wins = (x[:, None] > y[None, :]).astype(float)
    variance = wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)
    estimate = clustered_auroc(scores, labels, range(len(scores)))
    width = (estimate.interval[1] - estimate.interval[0]) / (2 * 1.96)
    assert width == pytest.approx(math.sqrt(variance), rel=0.05)


def test_the_intervals_cover_when_users_differ():
    rng = random.Random(7)
    big = simulated_users(rng, 20_000, 5, 1.0)
    truth = auroc(big[0], big[1]), pearson(big[0], [float(y) for y in big[1]])
    hits = [0, 0]
    for _ in range(200):
        scores, labels, users = simulated_users(rng, 60, 5, 1.0)
        found = clustered_auroc(scores, labels, users), clustered_pearson(scores, [float(y) for y in labels], users)
        for place, estimate in enumerate(found):
            hits[place] += estimate.interval[0] <= truth[place] <= estimate.interval[1]
    assert all(180 <= count <= 199 for count in hits), hits


def test_messages_repeated_by_their_user_tell_nothing_new():
    scores, labels, _ = simulated_users(random.Random(3), 80, 1, 0.0)
    once = clustered_auroc(scores, labels, range(80)), clustered_pearson(scores, labels, range(80))
    again = [each * 5 for each in (scores, labels, list(range(80)))]
    five_times = clustered_auroc(*again), clustered_pearson(*again)
    for one, other in zip(once, five_times, strict=True):
        assert other.value == pytest.approx(one.value) and other.interval == pytest.approx(one.interval, abs=2e-3)


def test_without_clusters_the_interval_of_r_is_fishers():
    rng = np.random.default_rng(5)
    x = rng.normal(size=4000)
    y = 0.4 * x + rng.normal(size=4000)
    estimate = clustered_pearson(x, y, range(4000))
    assert estimate.interval == pytest.approx(fisher_interval(estimate.value, 4000), abs=3e-3)


@settings(max_examples=30)
@given(st.integers(1, 3))
def test_too_few_users_give_the_whole_range(users):
    rows = [(float(index), index % 2 == 0, "a" if index % 2 == 0 else users) for index in range(10)]
    scores, labels, clusters = zip(*rows, strict=True)
    assert clustered_auroc(scores, labels, clusters).interval == (0.0, 1.0)


def test_what_does_not_vary_has_no_correlation():
    assert clustered_pearson([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "abc") is None
