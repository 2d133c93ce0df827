"""What a dry run found, for people: what would run, the memory it needs, how long it may take, what was set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llamarl.report.recipe_values import in_words
from llamarl.report.text import format_seconds, one_line

_WIDEST_VALUE = 70


def render_dry_run(recipe: Mapping[str, Any], plan: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> Group:
    """Renders the check of a recipe.

    Args:
        recipe: the resolved recipe.
        plan: what would run, with `memory` and `estimate`.
        changes: the settings that differ from their defaults: `name`, and `default` where there is one.
    """
    estimate = plan["estimate"]
    sides = ", ".join(f"{side} {format_seconds(estimate[f'{side}_seconds'])}" for side in ("generate", "train"))
    times = {
        "a step": f"{format_seconds(estimate['step_seconds'])} ({sides})",
        "the run": format_seconds(estimate["run_seconds"]),
        "assumed": estimate["assumed"],
    }
    return Group(
        *_section("would run", [("model", recipe["model"]), *_work(plan)]),
        *_section("memory", plan["memory"].items()),
        *_section("time, estimated", times.items()),
        *_section("set by you", [(change["name"], _setting(recipe, change)) for change in changes]),
        Text("Nothing is wrong, and nothing was run. The whole recipe as JSON: --json", style="dim"),
    )


def _work(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    tasks = plan.get("tasks", {"": plan})
    yield "steps", f"{plan['steps']}; max_staleness {plan['max_staleness']}"
    for name, task in tasks.items():
        yield (
            f"task {name}".strip(),
            f"{task['completions_per_step']} completions a step, by {task['algorithm']}"
            + (f", weight {task['weight']:g}" if name else ""),
        )
        yield (
            "  prompts",
            (
                f"{task['prompts']:,} to train on ({task['epochs']:g} epochs), {task['held_out']:,} held out, "
                f"{task['skipped_rows']:,} rows skipped"
            ),
        )
        yield "  judges", ", ".join(task["judges"])
        if "coverage" in task:
            yield "  coverage", ", ".join(f"{variant} x {count}" for variant, count in task["coverage"].items())
    yield "executors", f"{', '.join(plan['executors'])}; engine {plan['engine']}"
    yield from (("note", note) for note in plan["notes"])


def _setting(recipe: Mapping[str, Any], change: Mapping[str, Any]) -> str:
    value: Any = recipe
    for key in change["name"].split("."):
        value = value[int(key)] if isinstance(value, Sequence) else value[key]
    default = f"  (default {in_words(change['default'])})" if change.get("default") is not None else ""
    return one_line(in_words(value), _WIDEST_VALUE) + default


def _section(title: str, lines: Iterable[tuple[str, str]]) -> Iterator[RenderableType]:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(Text(name), Text(value))
    yield Text(title, style="bold")
    yield Padding(table, (0, 0, 1, 2))
