"""Properties P1 to P5 and P8 of IBPO's integer program, against everything tried, a greedy rule and a relaxation."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from budget_pools import check_random_program, check_solution, exhaustive, greedy, random_budget, random_pool
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from llamarl.core.errors import ConfigError, DataError
from llamarl.functional.budget import Budget, Pool, build_program, group_values, solve

HALF = Budget.share(0.5)


def pool_of(*prompts, costs=None):
    """Prompts as text: `s` and `l` are wrong responses, `S` and `L` right ones, `x` is malformed."""
    letters = [(index, letter) for index, text in enumerate(prompts) for letter in text]
    groups = {"s": "short", "l": "long", "x": None}
    return Pool(
        [i for i, _ in letters], [groups[c.lower()] for _, c in letters], [c in "SLX" for _, c in letters], costs
    )


def chosen(solution):
    return [index for index, z in enumerate(solution.accepted) if z]


# golden


def test_the_long_answer_goes_to_the_prompt_that_needs_it():
    # a: both groups always right, margins 0 and 0. b: long alone is right, margin 1. Budget: half of the accepted.
    solution = solve(pool_of("SL", "sL"), HALF)
    assert chosen(solution) == [0, 3]
    assert solution.objective == pytest.approx(1.001)  # 1 for b, 0 + eps for a
    assert solution.status == "optimal" and solution.gap == pytest.approx(0.0)
    assert solution.spending["long"].used == 0.5 and solution.spending["long"].slack == 0.0
    assert (solution.num_accepted, solution.num_rejected) == ({"short": 1, "long": 1}, 0)


def test_budget_for_one_takes_the_larger_margin():  # P4
    # a is solved by voting only (margin 1); b equally often by both (margin 0); c: short 0 of 2, long 1 of 2 (1/2)
    solution = solve(pool_of("sL", "SL", "ssLl"), HALF)
    assert chosen(solution) == [1, 2]
    assert solution.num_rejected == 1


def test_a_prompt_with_a_right_short_answer_is_accepted_even_at_a_negative_margin():
    # a: short 1 of 2, long 2 of 2: margin of short -1/2. q+ = 0: nothing long, yet a's short answer trains.
    solution = solve(pool_of("sSLL"), Budget.share(0.0))
    assert chosen(solution) == [1]
    assert solution.objective == pytest.approx(-0.5 + 0.001)


def test_accepting_a_short_answer_buys_budget_for_a_long_one():
    # q+ = 1/2: two hard prompts (margin 1 each) and one easy: one long per short, so only one of the hard ones
    solution = solve(pool_of("Sl", "sL", "sL"), HALF)
    assert chosen(solution) == [0, 3]  # of like prompts the earlier


@pytest.mark.parametrize(("q_plus", "longs"), [(0.0, 0), (0.25, 0), (0.49, 0), (0.5, 1), (0.7, 2), (0.75, 3), (1.0, 3)])
def test_the_cap_rounds_down(q_plus, longs):
    # one easy prompt and three hard ones: with l long answers the share is l / (1 + l) = 0, 1/2, 2/3, 3/4
    assert solve(pool_of("Sl", "sL", "sL", "sL"), Budget.share(q_plus)).num_accepted["long"] == longs


def test_costs_bound_the_mean_and_pick_the_cheapest_of_a_group():
    # mean cost at most 6: short 2 (a) and long 10 (b) average 6. Of a's right short answers the one of cost 2 is taken.
    pool = pool_of("SSl", "sL", costs=[4.0, 2.0, 9.0, 2.0, 10.0])
    solution = solve(pool, Budget({"long": 1.0}, mean_cost=6.0))
    assert chosen(solution) == [1, 4]
    assert solution.spending["mean_cost"].used == 6.0
    tighter = solve(pool, Budget({"long": 1.0}, mean_cost=5.9))
    assert chosen(tighter) == [1]


def test_three_groups_have_a_cap_each():
    # tool alone is right on a, long alone on b, short on c, d: at most 1/4 of the accepted may be of each
    pool = Pool(
        [p for p in "abcd" for _ in range(3)],
        ["short", "long", "tool"] * 4,
        [False, False, True, False, True, False, True, False, False, True, False, False],
    )
    assert chosen(solve(pool, Budget({"long": 0.25, "tool": 0.25}))) == [2, 4, 6, 9]
    assert chosen(solve(pool, Budget({"long": 0.25, "tool": 0.0}))) == [6, 9]  # 1 of 3 would exceed a quarter


def test_the_variant_counts_prompts_and_may_skip_a_negative_margin():
    # a: short 1 of 2, long 1 of 1. Over prompts q+ = 0 leaves a out; the default form trains its short answer.
    assert chosen(solve(pool_of("sSL"), Budget.share(0.0), form="prompts")) == []
    # one easy and three hard prompts: floor(0.5 * 4) = 2 long ones; as a share of the accepted this is two thirds
    solution = solve(pool_of("Sl", "sL", "sL", "sL"), HALF, form="prompts")
    assert solution.num_accepted == {"short": 1, "long": 2}
    assert solution.spending["long"].used == 0.5


def test_correctness_alone_counts_right_answers_and_gives_ties_to_the_short():
    # a: short right once in four, long always: margin 3/4. b: long alone is right. All may be long.
    pool = pool_of("SsssLL", "sL")
    assert chosen(solve(pool, Budget.share(1.0))) == [4, 7]
    solution = solve(pool, Budget.share(1.0), worth="correctness")
    assert chosen(solution) == [0, 7] and solution.objective == pytest.approx(2.001)
    assert solution.mean_margins["long"] == pytest.approx(0.875)  # margins are reported all the same


def test_known_values_decide_where_a_group_is_missing():
    pool = pool_of("L", "L", "Ss")
    assert chosen(solve(pool, HALF)) == [0, 2]  # like prompts: the earlier one
    assert chosen(solve(pool, HALF, known={0: {"short": 1.0}, 1: {"short": 0.0}})) == [1, 2]


# defined outcomes


@pytest.mark.parametrize("q_plus", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "prompts", [(), ("sl", "sl"), ("x", "X"), ("X",)], ids=["empty", "no correct answer", "malformed", "malformed X"]
)
def test_nothing_to_accept(prompts, q_plus):  # P1
    solution = solve(pool_of(*prompts), Budget.share(q_plus))
    assert not any(solution.accepted)
    assert (solution.objective, solution.status, solution.solver) == (0.0, "optimal", "none")
    assert solution.num_rejected == len(prompts)


@pytest.mark.parametrize("q_plus", [0.0, 0.5, 1.0])
def test_one_group_only(q_plus):
    """Only short: all right ones train. Only long: there is nothing to compare with, so nothing trains."""
    assert chosen(solve(pool_of("Ss", "sS", "ss"), Budget.share(q_plus))) == [0, 3]
    assert chosen(solve(pool_of("Ll", "lL"), Budget.share(q_plus))) == []


def test_a_malformed_response_is_never_accepted_even_where_it_is_right():  # P3
    assert chosen(solve(pool_of("Xs", "Xl"), Budget.share(1.0))) == []


def test_equal_values_everywhere_are_all_short():  # P4
    solution = solve(pool_of("SL", "SsLl", "sSlL"), Budget.share(1.0))
    assert solution.num_accepted == {"short": 3, "long": 0}


def test_a_budget_below_the_cheapest_answers_keeps_as_many_as_fit_and_says_so():
    # right short answers cost 1, 2 and 9: mean at most 2 allows the first two (1.5), not all three (4)
    pool = pool_of("S", "S", "S", costs=[1.0, 2.0, 9.0])
    for method in ("milp", "lagrangian"):
        solution = solve(pool, Budget({"long": 1.0}, mean_cost=2.0), method=method)
        assert chosen(solution) == [0, 1]
        assert solution.status == "infeasible" and solution.is_fallback
    nothing = solve(pool, Budget({"long": 1.0}, mean_cost=0.5))
    assert chosen(nothing) == [] and nothing.status == "infeasible"


def test_without_time_the_cheapest_choice_stands_in_and_says_so():
    rng = random.Random(0)
    pool = random_pool(rng, 300, 8, malformed=0.0, has_costs=True)
    budget = Budget({"long": 0.3}, mean_cost=18.0)
    solution = solve(pool, budget, method="milp", time_limit_seconds=1e-9)
    assert solution.status in ("cheapest", "time_limit")
    check_solution(pool, budget, solution)
    if solution.status == "cheapest":
        assert solution.num_accepted["long"] == 0 and solution.is_fallback


def test_without_any_cap_every_right_answer_of_the_better_group_trains():
    assert chosen(solve(pool_of("Ss"), Budget({}, free=("short", "long")))) == [0]


# invariance


@pytest.mark.parametrize("seed", range(10))
def test_permuting_prompts_permutes_the_choice(seed):  # P5, and P8: ranks only reorder the pool
    rng = random.Random(seed)
    pool = random_pool(rng, 12, 6)
    budget = random_budget(rng)
    order = list(range(len(pool)))
    rng.shuffle(order)
    shuffled = Pool(*([column[i] for i in order] for column in (pool.prompts, pool.groups, pool.correct)))
    one, other = solve(pool, budget), solve(shuffled, budget)
    assert one.objective == pytest.approx(other.objective)
    assert one.num_accepted == other.num_accepted
    assert kinds(pool, one) == kinds(shuffled, other)


def kinds(pool, solution):
    """How often each kind of prompt was answered by each group: all that is defined up to ties."""
    found = {}
    for prompt in dict.fromkeys(pool.prompts):
        rows = [i for i, p in enumerate(pool.prompts) if p == prompt]
        tally = tuple(sorted((str(pool.groups[i]), pool.correct[i]) for i in rows if pool.groups[i] is not None))
        taken = next((pool.groups[i] for i in rows if solution.accepted[i]), None)
        found.setdefault(tally, []).append(str(taken))
    return {tally: sorted(taken) for tally, taken in found.items()}


def test_equal_pools_give_equal_choices():
    pool = random_pool(random.Random(3), 40, 8)
    assert solve(pool, HALF).accepted == solve(pool, HALF).accepted


def test_like_prompts_get_the_expensive_answer_in_order():
    solution = solve(pool_of("Sl", "sL", "sL", "Sl", "sL"), HALF)
    assert chosen(solution) == [0, 3, 5, 6]  # prompts 1 and 2 of the three like ones


def test_duplicating_a_rejected_response_changes_only_its_group_mean():  # P5
    # a's wrong long response doubled: still margin 1 of short
    assert chosen(solve(pool_of("Sl", "sL"), HALF)) == [0, 3]
    assert chosen(solve(pool_of("Sll", "sL"), HALF)) == [0, 4]


# reduces to


@pytest.mark.parametrize("form", ["accepted", "prompts"])
@pytest.mark.parametrize("seed", range(30))
def test_the_optimum_is_that_of_trying_everything(seed, form):  # P2
    rng = random.Random(seed)
    groups = ("short", "long", "tool") if seed % 3 == 0 else ("short", "long")
    has_costs = seed % 4 == 0
    pool = random_pool(rng, rng.randint(1, 5), 3, groups, has_costs=has_costs)
    budget = random_budget(rng, groups, has_costs)
    best = exhaustive(pool, budget, form)
    solution = solve(pool, budget, form=form)
    if best is None:
        assert solution.status == "infeasible"
    else:
        assert solution.objective == pytest.approx(best, abs=1e-6)
        assert solution.status == "optimal"


@pytest.mark.parametrize("seed", range(20))
def test_the_variant_is_the_greedy_rule_and_its_own_relaxation(seed):  # P2
    rng = random.Random(seed)
    pool, q_plus = random_pool(rng, 20, 6), rng.random()
    budget = Budget.share(q_plus)
    objective = solve(pool, budget, form="prompts").objective
    assert objective == pytest.approx(greedy(pool, budget, q_plus), abs=1e-6)
    program = build_program(pool, group_values(pool, budget.groups), budget, "prompts")
    prompts, options = np.nonzero(program.responses >= 0)
    one_per_prompt = (prompts[None] == np.arange(len(program.values))[:, None]).astype(float)
    relaxed = linprog(
        -program.values[prompts, options],
        A_ub=np.vstack([one_per_prompt, program.weights[:, prompts, options]]),
        b_ub=np.concatenate([np.ones(len(one_per_prompt)), program.limits]),
        bounds=(0, 1),
    )
    assert objective == pytest.approx(-relaxed.fun, abs=1e-6)


def test_the_optimum_grows_with_the_budget():  # P2
    pool = random_pool(random.Random(5), 30, 8)
    objectives = [solve(pool, Budget.share(q / 10)).objective for q in range(11)]
    assert objectives == sorted(objectives)
    free = [max((v for v in row[:2] if math.isfinite(v)), default=0.0) for row in program_values(pool)]
    assert objectives[-1] == pytest.approx(sum(free))  # at q+ = 1 the cap is idle: each prompt takes its best


def program_values(pool):
    values = build_program(pool, group_values(pool, HALF.groups), HALF).values
    return [[v if v > 0 or p[2] < 0 else 0.0 for v in p] for p in values.tolist()]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9))
def test_random_programs_keep_their_budget_and_their_bounds(seed):  # P1, P3
    check_random_program(seed)


def test_a_large_program_goes_to_the_relaxation_and_stays_close():
    rng = random.Random(1)
    pool = random_pool(rng, 6000, 8, has_costs=True)
    pool = replace(pool, costs=[cost + rng.random() for cost in pool.costs])  # no two prompts alike
    budget = Budget({"long": 0.4}, mean_cost=9.0)
    solution = solve(pool, budget)
    assert solution.solver == "lagrangian"
    check_solution(pool, budget, solution)
    assert solution.gap <= 0.002 * solution.bound


@pytest.mark.parametrize(("cap", "mean_cost"), [(0.3, 5.5), (0.3, 7.0), (0.3, 20.0)], ids=["cost", "both", "share"])
@pytest.mark.parametrize("seed", range(3))
def test_the_relaxation_stays_close_whichever_bound_binds(cap, mean_cost, seed):
    rng = random.Random(seed)
    pool = random_pool(rng, 60, 8, malformed=0.0, has_costs=True)
    budget = Budget({"long": cap}, mean_cost=mean_cost)
    exact, quick = (solve(pool, budget, method=method) for method in ("milp", "lagrangian"))
    assert exact.status == "optimal" and quick.solver == "lagrangian"
    assert exact.objective - 0.5 <= quick.objective <= exact.objective + 1e-6 <= quick.bound + 2e-6
    assert quick.bound <= exact.objective + 0.7


# rejects


def test_a_bound_on_costs_needs_costs():
    with pytest.raises(DataError, match="the pool has no costs"):
        solve(pool_of("Sl"), Budget({"long": 1.0}, mean_cost=5.0))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"form": "density"}, "form = 'density'"),
        ({"method": "simplex"}, "method = 'simplex'"),
        ({"worth": "reward"}, "worth = .reward."),
        ({"eps": 0.0}, "eps = 0.0"),
        ({"eps": 1.0}, "eps = 1.0"),
        ({"time_limit_seconds": 0.0}, "time_limit_seconds = 0.0"),
    ],
)
def test_settings_out_of_range(settings_, message):
    with pytest.raises(ConfigError, match=message):
        solve(pool_of("Sl"), HALF, **settings_)
