"""Ways to solve a program: exactly, by a Lagrangian relaxation, and by the cheapest choice when nothing else will do.

Shape legend: P prompts, G groups, R constraints, K kinds of prompts.
"""

from typing import Literal, NamedTuple

import numpy as np

from llamarl.functional.budget.pool import Floats, Ints
from llamarl.functional.budget.program import Program

Method = Literal["auto", "milp", "lagrangian"]
"""`milp` is exact; `lagrangian` is fast and says how far from the optimum it may be; `auto` goes by the size."""

RELATIVE_GAP = 1e-6
"""How close to its bound the exact solver may stop."""

MAX_VARIABLES = 4000
"""Above so many integer variables `auto` takes the relaxation. Counts only those left after like prompts are joined."""

MAX_VARIABLES_WITH_COSTS = 300
"""The same where the mean cost is bounded: unlike weights are hard, and the relaxation's gap is small."""

HALVINGS = 50
SWEEPS = 8


class Answer(NamedTuple):
    """What a solver found."""

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
    """The optimum by SciPy's HiGHS: one integer variable per kind and option, how many of the kind take it."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    values, weights = program.values[kinds.first, :-1], program.weights[:, kinds.first, :-1]
    kind, option = np.nonzero(np.isfinite(values))
    if not len(kind):
        return Answer(np.full(len(kinds.kind_of), -1), 0.0)
    variables = np.arange(len(kind))
    members = csr_array((np.ones(len(kind)), (kind, variables)), shape=(len(values), len(kind)))
    least = np.where(program.forced[kinds.first], kinds.sizes, 0)
    scales = program.scales[:, None]
    result = milp(
        -values[kind, option],
        integrality=np.ones(len(kind)),
        bounds=Bounds(0, kinds.sizes[kind]),
        constraints=[
            LinearConstraint(members, least, kinds.sizes),
            LinearConstraint(weights[:, kind, option] / scales, -np.inf, program.ceilings / scales[:, 0]),
        ],
        options={"time_limit": time_limit_seconds, "mip_rel_gap": RELATIVE_GAP},
    )
    bound = np.inf if result.mip_dual_bound is None else 0.0 - result.mip_dual_bound
    if result.x is None:
        return Answer(None, bound, is_infeasible=result.status == 2, is_cut=result.status == 1)
    taken = np.zeros((len(values), values.shape[1]), dtype=np.int64)
    taken[kind, option] = np.rint(result.x)
    return Answer(repaired(program, _dealt(kinds, taken)), bound, is_cut=result.status == 1)


def _dealt(kinds: Kinds, taken: Ints) -> Ints:
    """Gives each kind's prompts its options, earlier prompts the more expensive ones (the later columns)."""
    choice = np.full(len(kinds.kind_of), -1)
    members = np.split(np.argsort(kinds.kind_of, kind="stable"), np.cumsum(kinds.sizes)[:-1])
    columns = np.arange(taken.shape[1])[::-1]
    for prompts, counts in zip(members, taken, strict=True):
        options = np.repeat(columns, counts[::-1])
        choice[prompts[: len(options)]] = options
    return choice


# ---- by relaxation --------------------------------------------------------------------------------------------------


def solve_lagrangian(program: Program) -> Answer:
    """A choice within the limits and a bound on the optimum, in time linear in the prompts.

    With a price per constraint every prompt chooses for itself: max over options of value - price * weight. Prices
    are found by bisection, one constraint after the other; then prompts are upgraded while there is room.
    """
    prices = np.zeros(len(program.limits))
    bound, choice = _at(program, prices)
    for _ in range(SWEEPS):
        if program.keeps(choice):
            break
        for row in range(len(prices)):
            prices[row], best = _price(program, prices, row)
            bound = min(bound, best)
        choice = _at(program, prices)[1]
    feasible = repaired(program, choice)
    if feasible is None:
        choice, num_left_out = cheapest(program)
        feasible = None if num_left_out else choice
    return Answer(None if feasible is None else filled(program, feasible), bound)


def _at(program: Program, prices: Floats) -> tuple[float, Ints]:
    """The relaxation's bound at some prices, and each prompt's own choice."""
    scores = program.values - (program.weights * (prices / program.scales)[:, None, None]).sum(axis=0)
    choice = scores.argmax(axis=1)
    best = scores[np.arange(len(choice)), choice].sum() + float(prices / program.scales @ program.limits)
    return float(best), np.where(choice == scores.shape[1] - 1, -1, choice)


def _price(program: Program, prices: Floats, row: int) -> tuple[float, float]:
    """The lowest price at which one constraint holds, the others' prices as they are, and the lowest bound met."""
    bounds = [np.inf]

    def holds(price: float) -> bool:
        trial = prices.copy()
        trial[row] = price
        bound, choice = _at(program, trial)
        bounds.append(bound)
        return bool(program.used(choice)[row] <= program.ceilings[row])

    if holds(0.0):
        return 0.0, min(bounds)
    low, high = 0.0, 1.0
    while not holds(high) and high < 2.0**HALVINGS:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high, min(bounds)


def filled(program: Program, choice: Ints) -> Ints:
    """A choice within the limits, improved: upgrades by value per weight, as long as they fit; one per prompt."""
    choice = choice.copy()
    rows = np.arange(len(choice))
    gains = program.values[:, :-1] - np.where(choice < 0, 0.0, program.values[rows, choice])[:, None]
    extra = program.weights[:, :, :-1] - program.weights[:, rows, choice][:, :, None]
    prompts, options = np.nonzero(gains > 0)
    gain, extra = gains[prompts, options], extra[:, prompts, options]
    size = (np.maximum(extra, 0) / program.scales[:, None]).sum(axis=0)
    room = program.ceilings - program.used(choice)
    upgraded = np.zeros(len(choice), dtype=bool)
    for move in np.argsort(-gain / np.maximum(size, 1e-15), kind="stable"):
        prompt = prompts[move]
        if not upgraded[prompt] and (extra[:, move] <= room).all():
            upgraded[prompt], choice[prompt] = True, options[move]
            room = room - extra[:, move]
    return choice


# ---- within the limits ----------------------------------------------------------------------------------------------


def repaired(program: Program, choice: Ints, max_moves: int = 1000) -> Ints | None:
    """A choice made to keep the limits, by the moves that lose the least value per weight; None if it can't be."""
    choice, rows = choice.copy(), np.arange(len(choice))
    for _ in range(max_moves):
        excess = (program.used(choice) - program.ceilings) / program.scales
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
    choice = np.where(program.forced, burden.argmin(axis=1), -1)
    order = np.flatnonzero(program.forced)
    order = order[np.argsort(-burden[order, choice[order]], kind="stable")]
    spared = np.cumsum(program.weights[:, order, choice[order]], axis=1)
    left = program.used(choice)[:, None] - np.column_stack([np.zeros(len(program.limits)), spared])
    dropped = int((left <= program.ceilings[:, None]).all(axis=0).argmax())
    choice[order[:dropped]] = -1
    return choice, dropped
