"""The integer program, written down: one option per prompt and group, what it is worth, and what it uses up.

Responses of one prompt and group share their margin, so only the cheapest correct one of them can matter. That leaves
each prompt at most one option per group, and a last one: to be skipped.

Shape legend: P prompts, G groups, R constraints. A choice is `[P]` columns of options, -1 to skip the prompt.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from llamarl.core.errors import ConfigError, DataError
from llamarl.functional.budget.pool import Bools, Budget, Floats, GroupValues, Ints, Pool

Form = Literal["accepted", "prompts"]
"""Whole of which a bound is a share. `accepted`: the accepted responses; prompts that a free group solves are always
accepted. `prompts`: all prompts of the pool, and any may be skipped; its optimum is that of a greedy rule."""

Worth = Literal["margin", "correctness"]
"""Value of a correct response: the margin of its group, or 1 like every other."""

EPS = 1e-3
"""Default bonus of a free group, so that equal margins go to it."""

SLACK = 1e-9
"""Excess over a limit that counts as rounding: per prompt, as a share of the largest weight."""


@dataclass(frozen=True, eq=False)
class Program:
    """Choose at most one option per prompt, exactly one where forced, of the largest value within the limits."""

    responses: Ints
    """`[P, G]` the response that an option accepts, -1 where the prompt has no correct one of that group."""
    values: Floats
    """`[P, G + 1]` margin, plus eps for a free group; 0 to skip; -inf where there is no such option."""
    weights: Floats
    """`[R, P, G + 1]` what an option adds to the left side of each constraint; 0 to skip."""
    limits: Floats
    """`[R]` right sides."""

    @property
    def must_accept(self) -> Bools:
        """`[P]` whether the prompt must be accepted."""
        return np.isneginf(self.values[:, -1])

    @cached_property
    def scales(self) -> Floats:
        """`[R]` the largest weight of each constraint, at least 1e-12."""
        return np.asarray(np.abs(self.weights).max(axis=(1, 2), initial=1e-12))

    @cached_property
    def ceilings(self) -> Floats:
        """`[R]` right sides with room for rounding."""
        return np.asarray(self.limits + SLACK * max(1, len(self.values)) * self.scales)

    def usage(self, choice: Ints) -> Floats:
        """`[R]` left sides of the constraints."""
        return np.asarray(self.weights[:, np.arange(len(choice)), choice].sum(axis=1))

    def keeps(self, choice: Ints) -> bool:
        """True if every constraint holds."""
        return bool((self.usage(choice) <= self.ceilings).all())

    def worth(self, choice: Ints) -> float:
        """The objective; a forced prompt that is skipped all the same counts 0."""
        values = self.values[np.arange(len(choice)), choice]
        return math.fsum(values[choice >= 0])


def build_program(
    pool: Pool,
    values: GroupValues,
    budget: Budget,
    form: Form = "accepted",
    eps: float = EPS,
    worth: Worth = "margin",
) -> Program:
    """The program of a pool.

    Args:
        pool: the responses.
        values: of `group_values(pool, budget.groups)`.
        budget: the bounds.
        form: what the bounds are shares of.
        eps: bonus of free groups, in (0, 1) and smaller than any real difference between margins.
        worth: what is maximised.

    Raises:
        ConfigError: an unknown form or worth, or an eps out of range.
        DataError: a bound on the mean cost, but the pool has no costs.
    """
    if form not in get_args(Form):
        raise ConfigError(f"form = {form!r}; choose one of: {', '.join(get_args(Form))}")
    if worth not in get_args(Worth):
        raise ConfigError(f"worth = {worth!r}; choose one of: {', '.join(get_args(Worth))}")
    if not 0 < eps < 1:
        raise ConfigError(f"eps = {eps!r}; give a small positive number such as {EPS}")
    if budget.mean_cost is not None and pool.costs is None:
        raise DataError("the budget bounds the mean cost, but the pool has no costs; give Pool.costs")
    responses = _cheapest_correct(pool, values)
    exists, num_free = responses >= 0, len(budget.free)
    forced: Bools = np.asarray(exists[:, :num_free].any(axis=1)) & (form == "accepted")
    plain = values.margins if worth == "margin" else np.ones_like(values.margins)
    worths = plain + np.where(np.arange(len(budget.groups)) < num_free, eps, 0.0)
    costs, bounds = _costs(pool, budget, responses), np.array(_bounds(budget))
    weights = np.where(exists, costs - bounds[:, None, None] if form == "accepted" else costs, 0.0)
    return Program(
        responses=responses,
        values=np.column_stack([np.where(exists, worths, -np.inf), np.where(forced, -np.inf, 0.0)]),
        weights=np.concatenate([weights, np.zeros((*weights.shape[:2], 1))], axis=2),
        limits=np.zeros(len(bounds)) if form == "accepted" else _totals(budget, len(forced)),
    )


def _cheapest_correct(pool: Pool, values: GroupValues) -> Ints:
    """`[P, G]` per prompt and group its correct response of the lowest cost, the earliest of equals; -1 for none."""
    shape = values.counts.shape
    found = np.full(shape[0] * shape[1], -1)
    indices = np.flatnonzero(np.asarray(pool.correct, dtype=bool) & (values.group_of >= 0))
    costs = np.zeros(len(pool)) if pool.costs is None else np.asarray(pool.costs, dtype=np.float64)
    dearest_first = indices[np.lexsort((indices, costs[indices]))][::-1]
    found[values.prompt_of[dearest_first] * shape[1] + values.group_of[dearest_first]] = dearest_first
    return found.reshape(shape)


def _costs(pool: Pool, budget: Budget, responses: Ints) -> Floats:
    """`[R, P, G]` 1 for the capped group of each share constraint; then, if bounded, the responses' own costs."""
    rows = [np.broadcast_to(np.array(budget.groups) == group, responses.shape) for group in budget.caps]
    if budget.mean_cost is not None:
        own = np.append(np.asarray(pool.costs, dtype=np.float64), 0.0)  # index -1, no response, costs nothing
        rows.append(own[responses])
    return np.array(rows, dtype=np.float64).reshape(len(rows), *responses.shape)


def _bounds(budget: Budget) -> list[float]:
    return [*budget.caps.values(), *([] if budget.mean_cost is None else [budget.mean_cost])]


def _totals(budget: Budget, num_prompts: int) -> Floats:
    """`[R]` bounds times the number of prompts; a share of prompts is a whole number of them."""
    shares = [math.floor(cap * num_prompts + SLACK) for cap in budget.caps.values()]
    return np.array([*shares, *([] if budget.mean_cost is None else [budget.mean_cost * num_prompts])], np.float64)
