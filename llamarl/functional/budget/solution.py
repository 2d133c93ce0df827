"""Choice of the responses that train, from a pool and a budget."""

import math
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from llamarl.core.errors import ConfigError
from llamarl.functional.budget.pool import Budget, Ints, Pool, group_values
from llamarl.functional.budget.program import EPS, Form, Program, Worth, build_program
from llamarl.functional.budget.solvers import (
    MAX_VARIABLES,
    MAX_VARIABLES_WITH_COSTS,
    RELATIVE_GAP,
    Answer,
    Kinds,
    Method,
    cheapest,
    kinds_of,
    load_solver,
    solve_lagrangian,
    solve_milp,
)

Status = Literal["optimal", "near_optimal", "time_limit", "cheapest", "infeasible"]
"""Quality of a solution.

`optimal`        proved
`near_optimal`   of the relaxation: at most `gap` below the optimum
`time_limit`     the best that was found in time: at most `gap` below the optimum
`cheapest`       the solver found nothing in time: free groups only
`infeasible`     no choice keeps the mean cost and accepts every prompt that a free group solves: as many as fit. Proved
                 where `gap` is 0; else the time was too short to find one
"""


@dataclass(frozen=True, slots=True)
class Spending:
    """One constraint of the budget, as it came out."""

    used: float
    """A group's share, or the mean cost: of the accepted responses (0 if none) or per prompt, by the form."""
    bound: float

    @property
    def slack(self) -> float:
        """Rest of the bound that was not used."""
        return self.bound - self.used


@dataclass(frozen=True, slots=True)
class Solution:
    """The responses that train, and how good and how expensive this choice is."""

    accepted: tuple[bool, ...] = field(repr=False)
    """`[N]` the program's z."""
    objective: float
    """Sum of the accepted margins, plus eps for each of a free group."""
    bound: float
    """No z that keeps the program has a larger objective; the objective itself where none keeps it."""
    status: Status
    solver: Literal["milp", "lagrangian", "none"]
    seconds: float
    """Time from the pool to the choice, without the import of SciPy."""
    spending: Mapping[str, Spending]
    """Spending of each capped group, and of `mean_cost` if that is bounded."""
    num_prompts: int
    num_accepted: Mapping[str, int]
    """Accepted responses by group."""
    mean_margins: Mapping[str, float]
    """Group -> mean margin over the prompts that have responses of it and of another group; NaN if none has."""
    num_compared: Mapping[str, int]
    """Group -> number of prompts in that mean."""
    num_one_sided: int
    """Prompts whose responses are of fewer than two groups: their margins rest on the pool's means alone."""

    @property
    def gap(self) -> float:
        """Largest amount by which the objective may fall short of the optimum."""
        return max(0.0, self.bound - self.objective)

    @property
    def num_rejected(self) -> int:
        """Prompts of which no response was accepted."""
        return self.num_prompts - sum(self.num_accepted.values())

    @property
    def is_fallback(self) -> bool:
        """True if the cheapest choice stands in for a solution."""
        return self.status in ("cheapest", "infeasible")


def solve(
    pool: Pool,
    budget: Budget,
    *,
    form: Form = "accepted",
    eps: float = EPS,
    time_limit_seconds: float = 5.0,
    method: Method = "auto",
    worth: Worth = "margin",
    known: Mapping[Hashable, Mapping[str, float]] | None = None,
) -> Solution:
    """Chooses the responses to imitate.

    The budget always holds, whatever the pool: with no correct response, one group only, or none at all, fewer
    responses are accepted, if need be none. Prompts with the same options are interchangeable, and of them the earlier
    ones get the more expensive options; among different ones, ties depend on the pool's content, not on its order.

    Args:
        pool: the responses of all prompts of a step.
        budget: groups and bounds.
        form: what the bounds are shares of.
        eps: bonus of free groups; equal margins go to them.
        time_limit_seconds: of the exact solver, > 0.
        method: the solver.
        worth: what is maximised over the accepted responses.
        known: values by prompt and group, for prompts without a response of the group (`group_values`).

    Raises:
        ConfigError: a setting is out of range.
        DataError: the pool does not fit the budget.
    """
    if method not in get_args(Method):
        raise ConfigError(f"method = {method!r}; choose one of: {', '.join(get_args(Method))}")
    if not time_limit_seconds > 0:
        raise ConfigError(f"time_limit_seconds = {time_limit_seconds!r}; give a positive number")
    load_solver()
    started = time.perf_counter()
    values = group_values(pool, budget.groups, known)
    program = build_program(pool, values, budget, form, eps, worth)
    kinds = kinds_of(program)
    solver = _solver(program, kinds, method, budget.mean_cost is not None)
    if solver == "milp":
        answer = solve_milp(program, kinds, time_limit_seconds)
    elif solver == "lagrangian":
        answer = solve_lagrangian(program, kinds, time_limit_seconds)
    else:
        answer = Answer(np.full(len(program.values), -1), 0.0)
    choice, status = _read_answer(program, answer)
    objective = program.worth(choice)
    return Solution(
        accepted=_mark_responses(len(pool), program, choice),
        objective=objective,
        bound=objective if answer.is_infeasible else answer.bound,
        status=status,
        solver=solver,
        seconds=time.perf_counter() - started,
        spending=_spending(pool, budget, program, choice, form),
        num_prompts=len(values.prompts),
        num_accepted={group: int((choice == column).sum()) for column, group in enumerate(budget.groups)},
        mean_margins={group: values.mean_margin(group) for group in budget.groups},
        num_compared={group: int(values.compares(group).sum()) for group in budget.groups},
        num_one_sided=int(values.is_one_sided.sum()),
    )


def _solver(program: Program, kinds: Kinds, method: Method, has_costs: bool) -> Literal["milp", "lagrangian", "none"]:
    num_variables = int(np.isfinite(program.values[kinds.first, :-1]).sum())
    if num_variables == 0:
        return "none"
    if method == "auto":
        limit = MAX_VARIABLES_WITH_COSTS if has_costs else MAX_VARIABLES
        return "milp" if num_variables <= limit else "lagrangian"
    return method


def _read_answer(program: Program, answer: Answer) -> tuple[Ints, Status]:
    """Returns the choice that stands and its status: the cheapest choice where the solver found none."""
    if answer.choice is None:
        choice, num_left_out = cheapest(program)
        return choice, "infeasible" if num_left_out or answer.is_infeasible else "cheapest"
    gap = answer.bound - program.worth(answer.choice)
    if gap <= RELATIVE_GAP * max(1.0, abs(answer.bound)):
        return answer.choice, "optimal"
    return answer.choice, "time_limit" if answer.is_cut else "near_optimal"


def _mark_responses(num_responses: int, program: Program, choice: Ints) -> tuple[bool, ...]:
    accepted = np.zeros(num_responses, dtype=bool)
    rows = np.flatnonzero(choice >= 0)
    accepted[program.responses[rows, choice[rows]]] = True
    return tuple(accepted.tolist())


def _spending(pool: Pool, budget: Budget, program: Program, choice: Ints, form: Form) -> dict[str, Spending]:
    rows = np.flatnonzero(choice >= 0)
    divisor = max(1, len(rows) if form == "accepted" else len(choice))
    columns = {group: index for index, group in enumerate(budget.groups)}
    spending = {g: Spending(float((choice == columns[g]).sum()) / divisor, cap) for g, cap in budget.caps.items()}
    if budget.mean_cost is not None and pool.costs is not None:
        total = math.fsum(pool.costs[index] for index in program.responses[rows, choice[rows]])
        spending["mean_cost"] = Spending(total / divisor, budget.mean_cost)
    return spending
