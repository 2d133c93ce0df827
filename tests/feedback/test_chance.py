import numpy as np
import pytest
from scipy import stats

from llamarl.feedback.chance import beta_binomial_tail, find_unlikely, fit_beta_binomial, overlap_tail

# golden


def test_an_overlap_worked_by_hand():
    # 4 replies, 2 hold the phrase, 2 are loved. Even odds: 6 choices, of which 1 has both. Odds of 3: weights of
    # 0, 1, 2 overlaps are 1, 4 * 3, 1 * 9
    assert overlap_tail(2, 2, 2, 4, 1.0) == pytest.approx(1 / 6)
    assert overlap_tail(2, 2, 2, 4, 3.0) == pytest.approx(9 / 22)
    assert overlap_tail(1, 2, 2, 4, 3.0) == pytest.approx(21 / 22)


def test_the_bar_of_benjamini_and_hochberg():
    # 10 tests at 0.1: the bars are .01, .02, .03; 0.012 is above its bar, 0.029 is not, and takes 0.012 along
    chances = np.array([0.029, 0.005, 0.5, 0.012])
    assert find_unlikely(chances, 10, 0.1).tolist() == [True, True, False, True]
    assert find_unlikely(chances, 100, 0.1).tolist() == [False] * 4
    assert find_unlikely(np.zeros(0), 0, 0.1).tolist() == []


# oracles


@pytest.mark.parametrize(("count", "trials"), [(0, 5), (3, 10), (10, 10), (40, 900)])
def test_the_beta_binomial_tail_is_that_of_scipy(count, trials):
    expected = stats.betabinom.sf(count - 1, trials, 0.6, 25.0)
    assert beta_binomial_tail(count, trials, 0.6, 25.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("count", "loved", "holding", "shown"), [(3, 3, 3, 33), (2, 5, 9, 60), (4, 6, 50, 52), (0, 2, 3, 9)]
)
def test_the_overlap_tail_is_that_of_scipy(count, loved, holding, shown):
    expected = stats.nchypergeom_fisher.sf(count - 1, shown, holding, loved, 3.0)
    assert overlap_tail(count, loved, holding, shown, 3.0) == pytest.approx(expected, rel=1e-6)


def test_wrong_finds_are_as_many_as_allowed():
    rng = np.random.default_rng(0)
    wrong = []
    for _ in range(300):
        chances = np.concatenate([rng.uniform(size=180), rng.uniform(0, 1e-3, size=20)])
        found = find_unlikely(chances, 200, 0.2)
        wrong.append(found[:180].sum() / max(1, found.sum()))
    assert np.mean(wrong) == pytest.approx(0.2 * 0.9, abs=0.02)  # of the tests nine in ten are of people


# the fit


def draw(rng, users, alpha, beta, shown):
    trials = rng.poisson(shown, users) + 1
    return rng.binomial(trials, rng.beta(alpha, beta, users)), trials


@pytest.mark.parametrize("left_out", [0.0, 0.05])
def test_a_law_is_found_again(left_out):
    loves, shown = draw(np.random.default_rng(1), 20_000, 1.0, 40.0, 60)
    alpha, beta = fit_beta_binomial(loves, shown, np.ones(len(loves)), left_out=left_out)
    assert alpha == pytest.approx(1.0, rel=0.1) and beta == pytest.approx(40.0, rel=0.1)


def test_users_who_do_not_belong_hardly_stretch_it():
    rng = np.random.default_rng(2)
    loves, shown = draw(rng, 20_000, 1.0, 40.0, 60)
    more = rng.binomial(60, 0.2, 500)
    loves, shown = np.concatenate([loves, more]), np.concatenate([shown, np.full(500, 60)])
    plain, robust = (fit_beta_binomial(loves, shown, np.ones(len(loves)), left_out=out) for out in (0.0, 0.05))
    assert plain[1] < 30.0 < 36.0 < robust[1] < 48.0


def test_weights_count_pairs():
    loves, shown = draw(np.random.default_rng(3), 2000, 2.0, 20.0, 5)
    pairs, weights = np.unique(np.stack([loves, shown]), axis=1, return_counts=True)
    one = fit_beta_binomial(loves, shown, np.ones(len(loves)))
    assert fit_beta_binomial(*pairs, weights) == pytest.approx(one, rel=1e-3)


def test_counts_without_any_spread_give_the_binomial_law():
    alpha, beta = fit_beta_binomial(np.full(500, 3), np.full(500, 30), np.ones(500), left_out=0.0)
    assert alpha / (alpha + beta) == pytest.approx(0.1, rel=0.01) and alpha + beta > 500
