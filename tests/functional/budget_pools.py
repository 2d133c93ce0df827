"""Random pools, and the optimum of small programs by trying everything."""

import itertools
import math
import random

from llamarl.functional.budget import Budget, Pool, build_program, group_values


def random_pool(rng, num_prompts, samples, groups=("short", "long"), malformed=0.1, has_costs=False):
    """Prompts of different difficulty; `samples` responses each, in random groups."""
    prompts, names, correct, costs = [], [], [], []
    for prompt in range(num_prompts):
        rates = {group: rng.random() for group in groups}
        for _ in range(rng.randint(1, samples)):
            group = rng.choice(groups)
            prompts.append(f"p{prompt}")
            names.append(None if rng.random() < malformed else group)
            correct.append(rng.random() < rates[group])
            costs.append(float(rng.randint(1, 9) + 10 * groups.index(group)))
    return Pool(prompts, names, correct, costs if has_costs else None)


def random_budget(rng, groups=("short", "long"), has_costs=False):
    shares = [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.75, 1.0, rng.random(), rng.random()]
    mean_cost = rng.uniform(1.0, 25.0) if has_costs else None
    return Budget({group: rng.choice(shares) for group in groups[1:]}, groups[:1], mean_cost)


def exhaustive(pool, budget, form="accepted"):
    """The largest objective of any choice, or None where no choice keeps the program."""
    program = build_program(pool, group_values(pool, budget.groups), budget, form)
    num_prompts, num_options = program.values.shape
    columns = [[c for c in range(num_options) if math.isfinite(program.values[p, c])] for p in range(num_prompts)]
    best = None
    for choice in itertools.product(*columns):
        used = [sum(w[p][c] for p, c in enumerate(choice)) for w in program.weights]
        if all(u <= limit + 1e-9 for u, limit in zip(used, program.limits, strict=True)):
            value = sum(program.values[p, c] for p, c in enumerate(choice))
            best = value if best is None else max(best, value)
    return best


def greedy(pool, budget, q_plus):
    """Optimum of the two-group program over prompts: floor(q n) largest gains to the long group, the rest short."""
    values = group_values(pool, budget.groups)
    program = build_program(pool, values, budget, "prompts")
    worth = [[max(0.0, v) if math.isfinite(v) else 0.0 for v in row[:2]] for row in program.values]
    gains = sorted((long - short for short, long in worth), reverse=True)
    count = math.floor(q_plus * len(worth) + 1e-9)
    return sum(short for short, _ in worth) + sum(max(0.0, gain) for gain in gains[:count])


def check_solution(pool, budget, solution, form="accepted"):
    """What must hold of every solution (ibpo P1, P3)."""
    chosen = [i for i, z in enumerate(solution.accepted) if z]
    assert all(pool.correct[i] and pool.groups[i] is not None for i in chosen)
    prompts = [pool.prompts[i] for i in chosen]
    assert len(prompts) == len(set(prompts))
    denominator = len(chosen) if form == "accepted" else len(set(pool.prompts))
    for group, cap in budget.caps.items():
        assert sum(pool.groups[i] == group for i in chosen) <= cap * denominator + 1e-9
    if budget.mean_cost is not None:
        assert sum(pool.costs[i] for i in chosen) <= budget.mean_cost * denominator + 1e-6
    if form == "accepted" and solution.status != "infeasible":
        solved = {p for p, g, c in zip(pool.prompts, pool.groups, pool.correct, strict=True) if c and g in budget.free}
        assert solved <= set(prompts)
    assert solution.num_rejected == len(set(pool.prompts)) - len(chosen)


def check_random_program(seed):
    """One random program of random kind: valid, within its budget, and as good as it says."""
    from llamarl.functional.budget import solve

    rng = random.Random(seed)
    groups = rng.choice([("short", "long"), ("short", "long"), ("short", "long", "tool")])
    has_costs = rng.random() < 0.3
    form = rng.choice(["accepted", "accepted", "prompts"])
    pool = random_pool(rng, rng.randint(0, 24), 8, groups, malformed=rng.choice([0, 0.1, 0.6]), has_costs=has_costs)
    budget = random_budget(rng, groups, has_costs)
    exact = solve(pool, budget, form=form, method="milp")
    quick = solve(pool, budget, form=form, method="lagrangian")
    for solution in (exact, quick):
        check_solution(pool, budget, solution, form)
        assert solution.objective <= solution.bound + 1e-6 or solution.is_fallback
    if exact.status == "optimal":
        assert quick.objective <= exact.objective + 1e-6 <= quick.bound + 2e-6
    assert quick.is_fallback == exact.is_fallback
    return exact, quick
