"""Rows and functions that a program hands to a run, and which no recipe file can hold.

Rows are written into the run directory, which then goes on by itself. A function is only named there, and whoever
resumes the run gives it again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamarl.controller.recipe import Recipe, TaskConfig
from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError
from llamarl.data import write_jsonl
from llamarl.data.memory import Rows
from llamarl.judges.adapters.base import function_name
from llamarl.judges.config import JudgeConfig, list_judges


def write_rows(recipe: Recipe, directory: Path) -> Recipe:
    """Writes the recipe's rows into the run directory.

    Returns:
        The recipe with files in place of rows. Files of the directory have no folder in their names, so that it may
        be moved.

    Raises:
        DataError: a row is not plain JSON.
    """

    def keep(source: str | Rows | None, name: str) -> str | None:
        if isinstance(source, Rows):
            write_jsonl(directory / name, source.plain())
            return name
        is_here = source is not None and Path(source).parent == directory
        return Path(source).name if source is not None and is_here else source

    def keep_task(task: TaskConfig) -> TaskConfig:
        data = task.data.model_copy(update={"source": keep(task.data.source, f"{task.name}.rows.jsonl")})
        return task.model_copy(update={"data": data, "held_out": keep(task.held_out, f"{task.name}.held_out.jsonl")})

    held_out = keep(recipe.evaluation.source, "held_out.jsonl")
    changes: dict[str, Any] = {
        "evaluation": recipe.evaluation.model_copy(update={"source": held_out}),
        "tasks": tuple(map(keep_task, recipe.tasks)),
    }
    if recipe.data is not None:
        changes["data"] = recipe.data.model_copy(update={"source": keep(recipe.data.source, "rows.jsonl")})
    return recipe.model_copy(update=changes)


def give_judges(recipe: Recipe, judges: Any) -> Recipe:
    """Puts functions in the places of those that the recipe only names; their weights and roles stay.

    Args:
        recipe: of a run that may have begun with judges in memory.
        judges: as they were given to begin with, one or several, or functions by the names that the recipe has for
            them.

    Raises:
        ConfigError: the recipe has no place for one of them.
    """
    given = dict(judges) if isinstance(judges, Mapping) else dict(map(_read_entry, list_judges(judges)))
    configs = [judge for task in recipe.all_tasks for judge in task.judges]
    lost = [judge.lost_name for judge in configs if judge.lost_name is not None]
    for name, function in given.items():
        recorded = JudgeConfig.parse({"function": function}, "judges").function
        if name not in lost and all(judge.function != recorded for judge in configs):
            known = suggest(name, lost) if lost else " It began with none in memory."
            raise ConfigError(f"judges: {name!r} is no judge that the run began with.{known}")

    def fill(judge: JudgeConfig) -> JudgeConfig:
        if judge.lost_name not in given:
            return judge
        return JudgeConfig.parse({**judge.model_dump(), "function": given[judge.lost_name]}, "judges")

    def fill_all(judges: Sequence[JudgeConfig]) -> dict[str, tuple[JudgeConfig, ...]]:
        return {"judges": tuple(map(fill, judges))}

    tasks = tuple(task.model_copy(update=fill_all(task.judges)) for task in recipe.tasks)
    return recipe.model_copy(update={"tasks": tasks, **fill_all(recipe.judges)})


def _read_entry(entry: Any) -> tuple[str, Any]:
    """The name and the function of a judge as `train` takes it."""
    if not isinstance(entry, Mapping):
        return (entry if isinstance(entry, str) else function_name(entry)), entry
    function = entry.get("function")
    return entry.get("name") or _read_entry(function)[0], function
