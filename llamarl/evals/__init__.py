"""Evaluations of a model: conversations, replies, verdicts, rates. Importable without torch.

    from llamarl.evals.benchmarks import MultiIF, run_benchmark

    results = run_benchmark(MultiIF(data="builtin", model="checkpoints/my-model"))
    results["modes"]["official"]["macro"]["turns"]["3"]["overall"]["value"]

The path of an evaluation, a module each:

    benchmarks: conversations -> runner (chats, thinking, replies) -> verdicts -> scores, groups -> results -> tables
    budget_run: budget_samples -> budget (budget_curves) -> budget_table
"""
