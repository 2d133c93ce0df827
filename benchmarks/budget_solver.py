"""The budget program of IBPO: seconds from a pool of judged responses to the responses that train.

    python -m benchmarks.budget_solver

Pools of random difficulties, half of the responses long. `share` bounds the share of long ones: prompts with the same
counts are alike, and few kinds remain. `tokens` bounds the mean tokens too: no two prompts are alike, so that this is
the hard case; the relaxation solves it, and `gap` is the largest share of the optimum that it may have lost.
"""

import random
from functools import partial
from typing import Any

from benchmarks.common import Benchmark, spread, take_turns
from llamarl.functional.budget import Budget, Method, Pool, Solution, solve

SAMPLES = 8
SIZES = (1024, 4096, 16384)
BUDGETS = {"share": Budget.share(0.4), "tokens": Budget({"long": 0.5}, mean_cost=300.0)}
CONTENDERS: dict[str, tuple[str, Method]] = {
    "share, auto": ("share", "auto"),
    "share, lagrangian": ("share", "lagrangian"),
    "tokens, auto": ("tokens", "auto"),
}


def random_pool(num_prompts: int, seed: int = 0) -> Pool:
    """Prompts of random difficulty; long responses are right at least as often as short ones, and cost more."""
    rng = random.Random(seed)
    prompts, groups, correct, costs = [], [], [], []
    for prompt in range(num_prompts):
        short = rng.random()
        long = max(short, rng.uniform(0.3, 1.0))
        for index in range(SAMPLES):
            is_long = index >= SAMPLES // 2
            prompts.append(prompt)
            groups.append("long" if is_long else "short")
            correct.append(rng.random() < (long if is_long else short))
            costs.append(float(rng.randint(400, 1200) if is_long else rng.randint(50, 200)))
    return Pool(prompts, groups, correct, costs)


def main() -> None:
    benchmark = Benchmark("budget_solver", __doc__, repeats=15, quick_repeats=3)
    options = benchmark.start()
    rows: list[dict[str, Any]] = []
    headlines = {}
    for size in SIZES:
        pool = random_pool(size)
        solvers = {
            name: partial(solve, pool, BUDGETS[budget], method=method) for name, (budget, method) in CONTENDERS.items()
        }
        for name, solutions in take_turns(solvers, options.repeats).items():
            rows.append(row(size, name, solutions))
            headlines[f"{size} {name} s"] = rows[-1]["seconds"]["median"]
        benchmark.note(f"{size} prompts")
    benchmark.finish(rows, headlines)


def row(size: int, name: str, solutions: list[Solution]) -> dict[str, Any]:
    """One line of the table."""
    last = solutions[-1]
    return {
        "prompts x samples": f"{size} x {SAMPLES}",
        "budget, method": name,
        "solver": last.solver,
        "seconds": spread([solution.seconds for solution in solutions]),
        "status": last.status,
        "gap": round(last.gap / max(1e-9, abs(last.bound)), 6),
    }


if __name__ == "__main__":
    main()
