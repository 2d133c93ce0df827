"""Probabilities that a person does by chance what a user did: laws of counts, and how many suspicions are wrong."""

from typing import NamedTuple, Self

import numpy as np


def beta_binomial_tail(count: int, trials: int, alpha: float, beta: float) -> float:
    """The probability of at least `count` successes, whose probability is drawn from Beta(alpha, beta) once for all.

    Args:
        count: in [0, trials].
        trials: at least 1.
        alpha: above 0.
        beta: above 0.
    """
    successes = np.arange(count, trials + 1)
    return float(min(1.0, np.exp(_beta_binomial_log(successes, trials, alpha, beta)).sum()))


def fit_beta_binomial(
    successes: np.ndarray, trials: np.ndarray, weights: np.ndarray, *, left_out: float = 0.05, rounds: int = 4
) -> tuple[float, float]:
    """The alpha and beta under which ordinary counts are most likely, by maximum likelihood.

    Counts in the upper tail of the law are left out, and the law of the others is the one below that tail (truncated):
    whoever does not belong may be there, and would stretch the law. Where the tail begins follows from the fit before.

    Args:
        successes: [N] in [0, trials].
        trials: [N] at least 1.
        weights: [N] how often each pair was seen.
        left_out: probability of the upper tail; 0 for the plain maximum.
        rounds: fits after the first, which has all counts.
    """
    place = _fit(successes, trials, weights, _Cut.nowhere(), None)
    for _ in range(rounds if left_out else 0):
        cut = _Cut.at(np.unique(trials), left_out, *_unpack(place))
        kept = successes <= cut.most[np.searchsorted(cut.trials, trials)]
        place = _fit(successes[kept], trials[kept], weights[kept], cut, place)
    return _unpack(place)


class _Cut(NamedTuple):
    """The beginning of the upper tail, for each number of trials."""

    trials: np.ndarray
    """[T] sorted"""
    most: np.ndarray
    """[T] the greatest count below the tail"""
    counts: np.ndarray
    """[K] 0 to `most`, for each number of trials one behind the other"""
    of: np.ndarray
    """[K] place in `trials`"""

    @classmethod
    def nowhere(cls) -> Self:
        return cls(*(np.zeros(0, dtype=np.int64) for _ in range(4)))

    @classmethod
    def at(cls, trials: np.ndarray, tail: float, alpha: float, beta: float) -> Self:
        most = []
        for number in trials.tolist():
            below = np.cumsum(np.exp(_beta_binomial_log(np.arange(number + 1), number, alpha, beta)))
            most.append(min(number, int(np.searchsorted(below, 1.0 - tail))))
        of = np.repeat(np.arange(len(trials)), np.array(most) + 1)
        return cls(trials, np.array(most), np.concatenate([np.arange(each + 1) for each in most]), of)


def _fit(
    successes: np.ndarray, trials: np.ndarray, weights: np.ndarray, cut: _Cut, start: np.ndarray | None
) -> np.ndarray:
    """The log-odds of the mean and of the overdispersion 1 / (alpha + beta + 1) at the greatest likelihood."""
    from scipy.optimize import minimize
    from scipy.special import logit

    of_cut = np.bincount(np.searchsorted(cut.trials, trials), weights, len(cut.trials)) if len(cut.trials) else 0.0

    def loss(place: np.ndarray) -> float:
        law = _unpack(place)
        below = np.exp(_beta_binomial_log(cut.counts, cut.trials[cut.of], *law))
        total = np.log(np.bincount(cut.of, below, len(cut.trials)))
        return float((of_cut * total).sum() - (weights * _beta_binomial_log(successes, trials, *law)).sum())

    if start is None:
        rate = np.clip((weights * successes).sum() / (weights * trials).sum(), 1e-9, 1.0 - 1e-9)
        start = np.array([logit(rate), logit(0.05)])
    # an overdispersion of 0 is the plain binomial law
    found: np.ndarray = minimize(loss, start, method="Nelder-Mead", bounds=[(-21.0, 21.0), (-9.2, 2.2)]).x
    return found


def _unpack(place: np.ndarray) -> tuple[float, float]:
    from scipy.special import expit

    rate, overdispersion = expit(place).tolist()
    size = 1.0 / overdispersion - 1.0
    return rate * size, (1.0 - rate) * size


def _beta_binomial_log(successes: np.ndarray, trials: np.ndarray | int, alpha: float, beta: float) -> np.ndarray:
    from scipy.special import betaln

    choices = -betaln(successes + 1, trials - successes + 1) - np.log(trials + 1)
    logs: np.ndarray = choices + betaln(successes + alpha, trials - successes + beta) - betaln(alpha, beta)
    return logs


def overlap_tail(count: int, loved: int, holding: int, shown: int, odds: float) -> float:
    """The probability that at least `count` of the replies a user loved are among those that hold a phrase.

    Fisher's noncentral hypergeometric law: of `shown` replies `holding` hold the phrase, `loved` are loved, and one
    that holds it has `odds` times the odds of being loved. With odds of 1 it is the law of Fisher's exact test.

    Args:
        count: at least 0.
        loved: in [0, shown].
        holding: in [0, shown].
        shown: at least 1.
        odds: above 0.
    """
    from scipy.special import betaln

    overlaps = np.arange(max(0, loved + holding - shown), min(loved, holding) + 1)
    others = shown - holding
    logs = overlaps * np.log(odds)
    for whole, part in ((holding, overlaps), (others, loved - overlaps)):
        logs = logs - betaln(part + 1, whole - part + 1) - np.log(whole + 1)
    chances = np.exp(logs - logs.max())
    return float(chances[overlaps >= count].sum() / chances.sum())


def find_unlikely(chances: np.ndarray, tests: int, wrong_share: float) -> np.ndarray:
    """The probabilities of some that are too small for chance, by the rule of Benjamini and Hochberg.

    Of those found, at most `wrong_share` are there by chance, on average (Benjamini and Hochberg, "Controlling the
    False Discovery Rate", 1995).

    Args:
        chances: [N] the probability of each under chance.
        tests: how many were looked at, these and those not worth listing; N at least.
        wrong_share: in (0, 1).

    Returns:
        [N] bool
    """
    order = np.argsort(chances, kind="stable")
    passed = np.flatnonzero(
        chances[order] <= wrong_share * np.arange(1, len(chances) + 1) / max(1, len(chances), tests)
    )
    found = np.zeros(len(chances), dtype=bool)
    found[order[: passed[-1] + 1 if len(passed) else 0]] = True
    return found
