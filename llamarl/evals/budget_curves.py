"""The arithmetic of accuracy against budget: voting, best-of-k, gain at equal budget, area under a frontier.

    majority_chances((5, 2), (3,), 10, max_votes=8)    # chance that k votes of 10 samples are right, for k = 1..8
    best_of_chance(10, 7, 4)                           # chance that one of 4 samples is right

Both are exact means over all subsets of k samples, drawn without replacement, and so unbiased estimates for a fresh
draw of k. Budgets and accuracies of a curve are arrays [..., points]: a bootstrap gives a row per resample.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@lru_cache(maxsize=65_536)
def majority_chances(right: tuple[int, ...], wrong: tuple[int, ...], num_samples: int, max_votes: int) -> list[float]:
    """The share of subsets of k samples whose most frequent answer is right, for k = 1, 2, ...

    Of equally frequent answers the one drawn first wins. Over all orders of drawing, each of t of them wins 1/t of the
    time, which is what counts here. A sample without an answer has no vote; where nobody votes the result is wrong.

    Args:
        right: samples of each distinct right answer.
        wrong: samples of each distinct wrong answer.
        num_samples: all samples of the prompt, those without an answer too; at least `max_votes`.
        max_votes: the largest k.

    Returns:
        Chances in [0, 1], `max_votes` of them. With one vote: the share of right samples.

    Raises:
        ValueError: there are fewer samples than votes, or more answers than samples.
    """
    blanks = num_samples - sum(right) - sum(wrong)
    if not 1 <= max_votes <= num_samples or blanks < 0:
        raise ValueError(f"majority_chances: {right=}, {wrong=}, {num_samples=}, {max_votes=}")
    won = [0.0] * (max_votes + 1)
    for index, count in enumerate(right):
        others = (*right[:index], *right[index + 1 :], *wrong)
        for votes in range(1, min(count, max_votes) + 1):
            for (used, tied), ways in _count_ways_to_win(others, blanks, votes, max_votes - votes).items():
                won[votes + used] += comb(count, votes) * ways / (tied + 1)
    return [won[k] / comb(num_samples, k) for k in range(1, max_votes + 1)]


def _count_ways_to_win(counts: Sequence[int], blanks: int, votes: int, room: int) -> dict[tuple[int, int], int]:
    """(samples used, answers that tie) -> ways to draw other samples so that no other answer has more than `votes`."""
    ways = {(used, 0): comb(blanks, used) for used in range(min(blanks, room) + 1)}
    for count in counts:
        more: dict[tuple[int, int], int] = {}
        for (used, tied), number in ways.items():
            for drawn in range(min(count, votes, room - used) + 1):
                place = used + drawn, tied + (drawn == votes)
                more[place] = more.get(place, 0) + number * comb(count, drawn)
        ways = more
    return ways


def best_of_chance(num_samples: int, num_right: int, k: int) -> float:
    """The share of subsets of k samples with at least one that is right.

    1 - C(n - c, k) / C(n, k), the unbiased pass@k of "Evaluating Large Language Models Trained on Code", Chen et al.
    2021, arXiv 2107.03374.

    Raises:
        ValueError: there are fewer samples than k, or more right ones than samples.
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(f"best_of_chance: {num_samples=}, {num_right=}, {k=}")
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)


def interpolate(budget: Any, budgets: Floats, accuracies: Floats) -> Floats:
    """Accuracy of a curve at a budget: straight lines between its points, its end values outside of them.

    A straight line is what a random mixture of its two ends costs and achieves.

    Args:
        budget: [...].
        budgets: [..., points], rising along the last axis.
        accuracies: [..., points].

    Returns:
        [...].
    """
    budget = np.asarray(budget, dtype=np.float64)
    if budgets.shape[-1] == 1:
        return np.broadcast_to(accuracies[..., 0], budget.shape).copy()
    left = np.clip((budgets <= budget[..., None]).sum(-1) - 1, 0, budgets.shape[-1] - 2)[..., None]
    x0, x1 = (np.take_along_axis(budgets, left + side, -1)[..., 0] for side in (0, 1))
    y0, y1 = (np.take_along_axis(accuracies, left + side, -1)[..., 0] for side in (0, 1))
    share = np.clip((budget - x0) / (x1 - x0), 0.0, 1.0)
    return np.asarray(y0 + share * (y1 - y0))


def frontier(budgets: Sequence[float], accuracies: Sequence[float]) -> list[tuple[float, float]]:
    """Corners of the best accuracy that mixtures of the points reach at each budget, the cheapest first.

    The upper concave envelope, up to the highest accuracy: more budget than that may stay unspent.
    """
    corners: list[tuple[float, float]] = []
    for x, y in sorted(zip(budgets, accuracies, strict=True), key=lambda point: (point[0], -point[1])):
        if corners and y <= corners[-1][1]:
            continue
        while len(corners) > 1 and _is_below(corners[-1], corners[-2], (x, y)):
            corners.pop()
        corners.append((x, y))
    return corners


def _is_below(point: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> bool:
    """True where a point lies on or under the line from left to right."""
    (x, y), (x0, y0), (x1, y1) = point, left, right
    return (y - y0) * (x1 - x0) <= (y1 - y0) * (x - x0)


def frontier_area(budgets: Sequence[float], accuracies: Sequence[float], low: float, high: float) -> float:
    """Mean accuracy of the frontier over budgets from `low` to `high`, each alike: the area divided by the width.

    Below the cheapest point its accuracy stands in.

    Raises:
        ValueError: the range is empty.
    """
    if not low < high:
        raise ValueError(f"frontier_area: {low=}, {high=}; the range is empty")
    x, y = (np.array(axis) for axis in zip(*frontier(budgets, accuracies), strict=True))
    grid = np.unique(np.concatenate([x[(x > low) & (x < high)], [low, high]]))
    return float(np.trapezoid(np.interp(grid, x, y), grid) / (high - low))
