"""Ways to solve a program: exactly, by a relaxation, and by the cheapest choice when nothing else will do.

Shape legend: P prompts, G groups, R constraints, K kinds of prompts.
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from llamarl.functional.budget.pool import Floats, Ints
from llamarl.functional.budget.program import Program

Method = Literal["auto", "milp", "lagrangian"]
"""`milp` is exact; `lagrangian` is fast and says how far from the optimum it may be; `auto` goes by the size."""

RELATIVE_GAP = 1e-6
"""Relative distance to its bound at which the exact solver may stop."""

MAX_VARIABLES = 4000
"""Largest number of integer variables that `auto` solves exactly; above that it takes the relaxation. It counts the
variables left after like prompts are joined."""

MAX_VARIABLES_WITH_COSTS = 64
"""The same where the mean cost is bounded: unlike weights are hard, and the relaxation's gap is small. On hard programs
HiGHS also prints to the process's standard output, whatever its options are; on ones this small it was not seen to."""


class Answer(NamedTuple):
    """A solver's choice, with a bound on the optimum."""

    choice: Ints | None
    """`[P]` columns, within the limits; None if it found none."""
    bound: float
    """No choice is worth more than this."""
    is_infeasible: bool = False
    """Proved: no choice accepts every forced prompt within the limits."""
    is_cut: bool = False
    """The time limit came first."""


# ---- exactly --------------------------------------------------------------------------------------------------------


class Kinds(NamedTuple):
    """Prompts with the same options are interchangeable: the program counts them instead of listing them."""

    first: Ints
    """`[K]` a prompt of each kind."""
    kind_of: Ints
    """`[P]`"""
    sizes: Ints
    """`[K]` prompts of each kind."""


def kinds_of(program: Program) -> Kinds:
    """Groups prompts by their options. The kinds' order depends on the options only, not on the prompts' order."""
    columns = [program.values, *program.weights]
    features = np.concatenate(columns, axis=1)
    _, first, kind_of, sizes = np.unique(features, axis=0, return_index=True, return_inverse=True, return_counts=True)
    return Kinds(first, kind_of.reshape(-1), sizes)


def load_solver() -> None:
    """Imports SciPy's solver, which takes a while the first time."""
    import scipy.optimize  # noqa: F401


def solve_milp(program: Program, kinds: Kinds, time_limit_seconds: float) -> Answer:
    """The optimum, by whole numbers of each kind's prompts."""
    result, counts = _run_highs(program, kinds, time_limit_seconds, is_integral=True)
    bound = np.inf if result.mip_dual_bound is None else 0.0 - result.mip_dual_bound
    if counts is None:
        return Answer(None, bound, is_infeasible=result.status == 2, is_cut=result.status == 1)
    choice = _deal(kinds, np.rint(counts).astype(np.int64))
    return Answer(repair(program, choice), bound, is_cut=result.status == 1)


def _run_highs(
    program: Program, kinds: Kinds, time_limit_seconds: float, is_integral: bool
) -> tuple[Any, Floats | None]:
    """Solves with SciPy's HiGHS: its result, and `[K, G]` how many of a kind take each option (None: no choice)."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    values, weights = program.values[kinds.first, :-1], program.weights[:, kinds.first, :-1]
    kind, option = np.nonzero(np.isfinite(values))
    variables = np.arange(len(kind))
    members = csr_array((np.ones(len(kind)), (kind, variables)), shape=(len(values), len(kind)))
    least = np.where(program.must_accept[kinds.first], kinds.sizes, 0)
    scales = program.scales[:, None]
    result = milp(
        -values[kind, option],
        integrality=np.full(len(kind), int(is_integral)),
        bounds=Bounds(0, kinds.sizes[kind]),
        constraints=[
            LinearConstraint(members, least, kinds.sizes),
            LinearConstraint(weights[:, kind, option] / scales, -np.inf, program.ceilings / scales[:, 0]),
        ],
        options={"time_limit": time_limit_seconds, "mip_rel_gap": RELATIVE_GAP},
    )
    if result.x is None:
        return result, None
    counts = np.zeros(values.shape)
    counts[kind, option] = result.x
    return result, counts


def _deal(kinds: Kinds, taken: Ints) -> Ints:
    """Gives each kind's prompts its options, earlier prompts the more expensive ones (the later columns)."""
    choice = np.full(len(kinds.kind_of), -1)
    members = np.split(np.argsort(kinds.kind_of, kind="stable"), np.cumsum(kinds.sizes)[:-1])
    columns = np.arange(taken.shape[1])[::-1]
    for prompts, counts in zip(members, taken, strict=True):
        options = np.repeat(columns, counts[::-1])
        choice[prompts[: len(options)]] = options
    return choice


# ---- by relaxation --------------------------------------------------------------------------------------------------


def solve_lagrangian(program: Program, kinds: Kinds, time_limit_seconds: float) -> Answer:
    """A choice within the limits and a bound on the optimum, by one linear program.

    The Lagrangian charges each use of a constraint a price, and every prompt chooses for itself. At the best prices its
    bound is the optimum of the program without whole numbers, which divides at most as many kinds as there are
    constraints: these are rounded, made to fit, and then prompts are upgraded while there is room.
    """
    result, counts = _run_highs(program, kinds, time_limit_seconds, is_integral=False)
    if counts is None:
        return Answer(None, np.inf, is_infeasible=result.status == 2, is_cut=result.status == 1)
    choice = repair(program, _deal(kinds, _round_counts(program, kinds, counts)))
    if choice is None:  # few prompts and tight limits: small enough to be solved exactly
        return solve_milp(program, kinds, time_limit_seconds)
    return Answer(upgrade(program, choice), 0.0 - result.fun)


def _round_counts(program: Program, kinds: Kinds, counts: Floats) -> Ints:
    """`[K, G]` counts without their fractions; forced prompts left over go to the options with the largest ones."""
    whole = np.floor(counts + 1e-6)
    left_over = np.where(program.must_accept[kinds.first], kinds.sizes - whole.sum(axis=1), 0).astype(np.int64)
    for kind in np.flatnonzero(left_over):
        largest_first = np.argsort(whole[kind] - counts[kind], kind="stable")
        whole[kind, largest_first[: left_over[kind]]] += 1
    return np.asarray(whole, dtype=np.int64)


def upgrade(program: Program, choice: Ints) -> Ints:
    """A choice within the limits, improved: upgrades by value per weight, as long as they fit; one per prompt."""
    choice = choice.copy()
    rows = np.arange(len(choice))
    gains = program.values[:, :-1] - np.where(choice < 0, 0.0, program.values[rows, choice])[:, None]
    extra = program.weights[:, :, :-1] - program.weights[:, rows, choice][:, :, None]
    prompts, options = np.nonzero(gains > 0)
    gain, extra = gains[prompts, options], extra[:, prompts, options]
    size = (np.maximum(extra, 0) / program.scales[:, None]).sum(axis=0)
    room = program.ceilings - program.usage(choice)
    upgraded = np.zeros(len(choice), dtype=bool)
    for move in np.argsort(-gain / np.maximum(size, 1e-15), kind="stable"):
        prompt = prompts[move]
        if not upgraded[prompt] and (extra[:, move] <= room).all():
            upgraded[prompt], choice[prompt] = True, options[move]
            room = room - extra[:, move]
    return choice


# ---- within the limits ----------------------------------------------------------------------------------------------


def repair(program: Program, choice: Ints, max_moves: int = 1000) -> Ints | None:
    """A choice made to keep the limits, by the moves that lose the least value per weight; None if it can't be."""
    choice, rows = choice.copy(), np.arange(len(choice))
    for _ in range(max_moves):
        excess = (program.usage(choice) - program.ceilings) / program.scales
        if (excess <= 0).all():
            return choice
        weights = program.weights[excess.argmax()]
        relief = weights[rows, choice][:, None] - weights
        loss = program.values[rows, choice][:, None] - program.values
        rate = np.where((relief > 0) & np.isfinite(loss), loss / np.where(relief > 0, relief, 1.0), np.inf)
        prompt, option = np.unravel_index(rate.argmin(), rate.shape)
        if np.isinf(rate[prompt, option]):
            return None
        choice[prompt] = option if option < rate.shape[1] - 1 else -1
    return None


def cheapest(program: Program) -> tuple[Ints, int]:
    """Every forced prompt with its cheapest option, and no other prompt; and how many forced ones had to be left out.

    Where even this is too much, the dearest forced prompts are left out until the limits hold.
    """
    burden = (program.weights / program.scales[:, None, None]).sum(axis=0)
    burden = np.where(np.isfinite(program.values), burden, np.inf)
    choice = np.where(program.must_accept, burden.argmin(axis=1), -1)
    order = np.flatnonzero(program.must_accept)
    order = order[np.argsort(-burden[order, choice[order]], kind="stable")]
    spared = np.cumsum(program.weights[:, order, choice[order]], axis=1)
    left = program.usage(choice)[:, None] - np.column_stack([np.zeros(len(program.limits)), spared])
    dropped = int((left <= program.ceilings[:, None]).all(axis=0).argmax())
    choice[order[:dropped]] = -1
    return choice, dropped
