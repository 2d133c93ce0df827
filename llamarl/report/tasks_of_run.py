"""The tasks, judges and budgets of a run with the numbers that tell how each fares."""

import re
from collections.abc import Sequence
from typing import Any

from llamarl.core import metric_names as names
from llamarl.report.files import Record
from llamarl.report.metrics import column
from llamarl.report.recipe_values import judge_name, tables_in
from llamarl.report.rundir import RunFiles

_USED = re.compile(r"(?P<before>(task/[^/]+/)?algorithm/(budget/[^/]+/)?)used/(?P<group>.+)$")


def describe_tasks(run: RunFiles) -> list[dict[str, Any]]:
    """Every task with its judges and the first and last values of what tells whether it learns."""
    tasks = tables_in(run.recipe, "tasks")
    found = []
    for task in tasks or [run.recipe]:
        prefix = f"task/{task.get('name')}/" if len(tasks) > 1 else ""
        algorithm = task.get("algorithm") or run.recipe.get("algorithm") or {}
        judges = [
            {
                "name": judge_name(judge),
                "role": judge.get("role") or "reward",
                **{
                    what: _last_of(run.metrics, f"{prefix}judge/{judge_name(judge)}/{what}")
                    for what in ("pass_rate", "violation_rate", "error_rate", "abstain_rate", "mean")
                },
            }
            for judge in tables_in(task, "judges")
        ]
        found.append(
            {
                "name": str(task.get("name", "")),
                "weight": task.get("weight"),
                "algorithm": algorithm.get("type", ""),
                "reward": ends_of(run.metrics, prefix + names.REWARD),
                "held_out": ends_of(run.metrics, prefix + names.HELD_OUT_REWARD),
                "violations": ends_of(run.metrics, prefix + names.VIOLATIONS),
                "satisfied": ends_of(run.metrics, prefix + names.SATISFIED),
                "kept": ends_of(run.metrics, prefix + names.KEPT),
                "grad_norm": ends_of(run.metrics, prefix + names.GRAD_NORM),
                "judges": judges,
            }
        )
    return found


def ends_of(metrics: Sequence[Record], key: str, count: int = 5) -> list[float] | None:
    """Means of the first and the last few values; of evaluations, and where there are few, the values themselves."""
    values = column(metrics, key)[1]
    if not values:
        return None
    size = 1 if "eval/" in key else max(1, min(count, len(values) // 4))
    return [sum(values[:size]) / size, sum(values[-size:]) / size]


def _last_of(metrics: Sequence[Record], key: str) -> float | None:
    return next((each for each in reversed(column(metrics, key)[1])), None)


def describe_budgets(run: RunFiles) -> list[dict[str, Any]]:
    """Each budgeted group's share among the sampled and among the trained responses, and what its cap leaves unused."""
    found = []
    for key in sorted({key for record in run.metrics for key in record}):
        if match := _USED.match(key):
            before, group = match["before"], match["group"]
            owner = before.replace("task/", "").replace("algorithm/", "").replace("budget/", "q+ ").strip("/")
            found.append(
                {
                    "name": f"{owner}: {group}" if owner else group,
                    "sampled": ends_of(run.metrics, f"{before}sampled/{group}"),
                    "used": ends_of(run.metrics, key),
                    "slack": ends_of(run.metrics, f"{before}slack/{group}"),
                }
            )
    return found
