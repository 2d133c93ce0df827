"""The per-batch integer program of IBPO: which sampled responses to imitate under a cap on the expensive ones.

    pool = Pool(prompts=["a", "a", "b", "b"], groups=["short", "long"] * 2, correct=[True, True, False, True])
    solution = solve(pool, Budget.share(0.5))
    solution.accepted         # (True, False, False, True): a is easy, b needs the long answer

For prompt j, response k of group g_jk and correctness c_jk in {0, 1}:

    V_j^g = mean_k{ c_jk : g_jk = g }                                 value of a group on a prompt (`pool`)
    m_jk  = V_j^{g_jk} - mean_{h != g_jk} V_j^h                       margin of the response's group (`pool`)

    max_z  sum_jk (m_jk + eps 1{g_jk is free}) z_jk                   the program (`program`)
    s.t.   a_j <= sum_k z_jk <= 1          a_j = 1{j has a correct response of a free group}
           sum_jk (cost_jk - bound) z_jk <= 0      per constraint: a group's share of the accepted, or their mean cost
           z_jk <= c_jk,  z_jk in {0, 1}

Solved by SciPy's `milp`; large ones by a Lagrangian relaxation, which says how far from the optimum it may be.
"Think Smarter not Harder: Adaptive Reasoning with Inference Aware Optimization", Yu, Xu et al. 2025, arXiv 2501.17974;
the program printed there may differ in detail. SciPy is imported when the first program is solved.
"""

from llamarl.functional.budget.metrics import Problem, Solved, budget_metrics, find_problems
from llamarl.functional.budget.pool import Budget, GroupValues, Pool, group_values
from llamarl.functional.budget.program import Form, Program, Worth, build_program
from llamarl.functional.budget.solution import Solution, Spending, Status, solve
from llamarl.functional.budget.solvers import Method

__all__ = [
    "Budget",
    "Form",
    "GroupValues",
    "Method",
    "Pool",
    "Problem",
    "Program",
    "Solution",
    "Solved",
    "Spending",
    "Status",
    "Worth",
    "budget_metrics",
    "build_program",
    "find_problems",
    "group_values",
    "solve",
]
