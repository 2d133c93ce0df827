"""Metrics of a step's solved programs, and the problems that kept it from training as the budget means."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from llamarl.functional.budget.pool import Pool
from llamarl.functional.budget.program import Form
from llamarl.functional.budget.solution import Solution

Solved = tuple[Pool, Solution]
"""The responses of one budget, and what its program made of them."""

Problem = Literal["infeasible", "cheapest", "rejected"]
"""Problem of a step: the bound on the mean cost is too low, the time was too short, or nothing trains."""


def find_problems(solved: Sequence[Solved]) -> dict[Problem, str]:
    """Finds what is wrong with a step's programs, by kind; each text goes on from "the budget program"."""
    pools, solutions = [pool for pool, _ in solved], [solution for _, solution in solved]
    prompts, rejected = sum(s.num_prompts for s in solutions), sum(s.num_rejected for s in solutions)
    statuses = {s.status for s in solutions}
    found: dict[Problem, str] = {}
    if "infeasible" in statuses:
        found["infeasible"] = (
            "has too low a bound on the mean cost for a right free answer to every prompt that has one; "
            f"{prompts - rejected} of {prompts} prompts train, on their cheapest"
        )
    if "cheapest" in statuses:
        found["cheapest"] = "found nothing within its time limit; only free answers train"
    if prompts and rejected == prompts:
        malformed, right = sum(pool.groups.count(None) for pool in pools), sum(sum(pool.correct) for pool in pools)
        found["rejected"] = (
            f"rejects all {prompts} prompts, so that nothing trains: of {sum(map(len, pools))} responses {right} are "
            f"right and {malformed} have no group"
        )
    return found


def budget_metrics(solved: Sequence[Solved], form: Form) -> dict[str, float]:
    """Measures what programs spent, on what, and how they were solved; a value that is unknown is left out.

    `used/G` is the share of a capped group among the trained samples (or the prompts, by the form), `slack/G` what its
    cap leaves; `used/mean_cost` and `slack/mean_cost` are tokens. `sampled/G` is a group's share of all judged
    responses, `margin/G` its mean margin over prompts with responses of it and of another group. `rejected_frac` and
    `one_sided_frac` (prompts with fewer than two groups) are over prompts, `malformed_frac` over responses. The
    solver's are `solver_seconds`, `solver_gap` to the optimum, relative to it, and `is_fallback`, 1 where the cheapest
    choice stood in. All are over the prompts of all programs together.
    """
    pools, solutions = [pool for pool, _ in solved], [solution for _, solution in solved]
    prompts, size = max(1, sum(s.num_prompts for s in solutions)), max(1, sum(map(len, pools)))
    bound = sum(abs(s.bound) for s in solutions)
    values = {
        "rejected_frac": sum(s.num_rejected for s in solutions) / prompts,
        "one_sided_frac": sum(s.num_one_sided for s in solutions) / prompts,
        "malformed_frac": sum(pool.groups.count(None) for pool in pools) / size,
        "solver_seconds": sum(s.seconds for s in solutions),
        "solver_gap": sum(s.gap for s in solutions) / max(1.0, bound),
        "is_fallback": float(any(s.is_fallback for s in solutions)),
    }
    counted = [s.num_prompts if form == "prompts" else sum(s.num_accepted.values()) for s in solutions]
    for name in solutions[0].spending if solutions else ():
        values[f"used/{name}"] = _mean([s.spending[name].used for s in solutions], counted)
        values[f"slack/{name}"] = _mean([s.spending[name].slack for s in solutions], counted)
    for group in solutions[0].mean_margins if solutions else ():
        values[f"sampled/{group}"] = sum(pool.groups.count(group) for pool in pools) / size
        values[f"margin/{group}"] = _mean(
            [s.mean_margins[group] for s in solutions], [s.num_compared[group] for s in solutions]
        )
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """Averages by weight, or plainly where nothing weighs."""
    if not any(weights):
        return fmean(values)
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    return fmean([value for value, _ in pairs], [weight for _, weight in pairs])
