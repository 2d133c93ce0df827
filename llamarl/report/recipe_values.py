"""A resolved recipe, as plain values, in a few words."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def model_name(recipe: Mapping[str, Any]) -> str:
    """The last part of the model's name or path; empty where the recipe names none."""
    model = recipe.get("model")
    return Path(model).name if isinstance(model, str) else ""


def algorithm_names(recipe: Mapping[str, Any]) -> list[str]:
    """The algorithms of a recipe's tasks, each once."""
    owners = tables_in(recipe, "tasks") or [recipe]
    found = (owner.get("algorithm") or recipe.get("algorithm") for owner in owners)
    return list(dict.fromkeys(each["type"] for each in found if isinstance(each, Mapping) and "type" in each))


def run_title(recipe: Mapping[str, Any]) -> str:
    """Model, algorithm and tasks in one line: `format, crpg + aipo, tasks short and plain`."""
    return ", ".join(title_parts(recipe))


def title_parts(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Model, algorithms and tasks, where the recipe names them."""
    if model := model_name(recipe):
        yield model
    if algorithms := algorithm_names(recipe):
        yield " + ".join(algorithms)
    if tasks := [str(task.get("name")) for task in tables_in(recipe, "tasks")]:
        yield f"tasks {', '.join(tasks)}" if len(tasks) > 1 else f"task {tasks[0]}"


def tables_in(recipe: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The tables of a list in a recipe, such as its `tasks`; none where it has no such list."""
    value = recipe.get(key)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def judge_name(judge: Mapping[str, Any]) -> str:
    """The name under which a judge's metrics stand: its own, or its function's last part."""
    return str(judge.get("name") or str(judge.get("function", "")).rpartition(":")[2])


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and plain values; entries of a list of tables by their number."""
    is_tables = isinstance(value, list) and any(isinstance(each, (Mapping, list)) for each in value)
    if not value or not (is_tables or isinstance(value, Mapping)):
        yield prefix, value
        return
    for key, item in enumerate(value) if isinstance(value, list) else value.items():
        yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))


def in_words(value: Any) -> str:
    """A plain value as a recipe would write it; a text stands without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def fit_items(items: Iterable[str], room: int) -> str:
    """Lists as many whole items as fit into so many characters, and says how many more there are."""
    items = list(items)
    for count in range(len(items), 0, -1):
        rest = f", and {len(items) - count} more" if count < len(items) else ""
        text = ", ".join(items[:count]) + rest
        if len(text) <= room:
            return text
    return f"{len(items)} settings" if items else ""
