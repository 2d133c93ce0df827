"""Settings of a judge in a recipe, and the judge, seat or panel built from them.

[[judges]]
function = "rewards.py:helpful"

[[judges]]
function = "llm"
name = "safe"
role = "constraint"
settings = {base_url = "http://127.0.0.1:8000/v1", model = "judge", template = "safety"}
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from llamarl.core.config import Config, read_toml
from llamarl.core.errors import ConfigError
from llamarl.core.judge import Judge
from llamarl.core.loading import name_object
from llamarl.core.paths import absolute, absolute_object
from llamarl.judges.adapters.base import function_name
from llamarl.judges.adapters.verifiers import is_rubric
from llamarl.judges.canary import read_canaries
from llamarl.judges.combine import Role
from llamarl.judges.panel import JudgePanel
from llamarl.judges.process.judge import ProcessJudge
from llamarl.judges.resolve import is_given, load_judge
from llamarl.judges.seat import Seat

IN_MEMORY = "in memory: "
"""Mark before the name of a judge that a recipe file can only name, in place of its `function`."""


def _name_importable(function: Any) -> Any:
    if isinstance(function, str):
        return function
    if not (callable(function) or isinstance(function, Judge) or is_rubric(function)):
        raise ValueError("must be a function of (prompt, completion), a judge, a rubric, or the name of one")
    return name_object(function) or function


class JudgeConfig(Config):
    """One judge of a task."""

    function: Annotated[str | Any, BeforeValidator(_name_importable)]
    """`module:function`, `path/to/file.py:function`, or a shipped judge's name, such as `llm` or `format`. In a program
    also the function itself."""
    name: str | None = None
    """Name in verdicts and metrics; default: the judge's or function's own."""
    settings: dict[str, Any] | None = None
    """Keywords for `function`, which is then a class or a function that builds a judge."""
    role: Role = "reward"
    """`reward`: its score counts; `constraint`: it must pass, its score counts nowhere; `watch`: it is only logged."""
    weight: float = Field(default=1.0, ge=0.0)
    """Weight in the mean of the reward judges; a judge of weight 0 only watches."""
    share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the groups that it sees; below 1 for a judge that only watches and costs much."""
    timeout_seconds: float = Field(default=60.0, gt=0.0)
    """Deadline: with threads for a whole group, with processes for one completion. `math`, `code` and `llm` have
    deadlines of their own, in their settings."""
    isolation: Literal["thread", "process"] = "thread"
    """`process` for functions that may hang or crash: they are killed at the deadline."""
    workers: int = Field(default=2, ge=1)
    """Processes, where isolation is `process`."""
    canaries: str | None = None
    """File of rows with `completion` and `label` (true: must pass). A wrong verdict on one ends the run at its start,
    and rings later. None: no canaries."""
    canaries_every: int = Field(default=256, ge=1)
    """Judged groups between two looks at the canaries."""

    @model_validator(mode="before")
    @classmethod
    def _names_files_in_full(cls, values: Any) -> Any:
        """A judge is loaded later, perhaps after another has changed the working directory."""
        return beside(values, Path()) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _is_seen_by_processes(self) -> Self:
        if self.is_in_memory and self.isolation == "process":
            raise ValueError(
                f"isolation='process': another process does not see {self.label!r}, which is in this program's memory; "
                "write it into a file and name it 'file.py:function', or use isolation='thread'"
            )
        return self

    @field_serializer("function")
    def _write_function(self, function: Any) -> str:
        return f"{IN_MEMORY}{self.label}" if self.is_in_memory else function

    @property
    def is_in_memory(self) -> bool:
        """True if the judge is an object of this program that no name leads to, such as a lambda."""
        return not isinstance(self.function, str)

    @property
    def label(self) -> str:
        """The judge's name in the recipe, before it is built."""
        return self.name or (function_name(self.function) if self.is_in_memory else str(self.function))

    @property
    def lost_name(self) -> str | None:
        """The name of a judge that was in the memory of a program that has ended; None for any other."""
        is_lost = isinstance(self.function, str) and self.function.startswith(IN_MEMORY)
        return self.function.removeprefix(IN_MEMORY) if is_lost else None


def read_judges(spec: str) -> list[JudgeConfig]:
    """Reads what a command line names: a judge, `module:function`, `file.py:function`, or a TOML file with judges.

    The file holds one judge's settings, or `[[judges]]` as a recipe does. Files that it names may stand beside it.

    Raises:
        ConfigError: the file cannot be read, or says nothing of judges.
    """
    if not spec.endswith(".toml"):
        return [JudgeConfig(function=spec)]
    values = read_toml(spec)
    tables = values.get("judges", [values])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{spec}: judges: not a list of tables; write [[judges]]")
    folder = Path(spec).parent
    return [JudgeConfig.parse(beside(table, folder), source=spec) for table in tables]


def beside(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A judge's values with full paths in place of the names of files that stand in the folder.

    In its settings also of directories (`model = "rewards/helpful"`), unless they are of a server (`base_url`).
    """
    settings = values.get("settings")
    is_local = isinstance(settings, Mapping) and "base_url" not in settings

    def complete(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name, colon, attribute = value.partition(":")
        path = os.path.abspath(folder / name)
        is_there = os.path.isfile(path) or (is_local and os.sep in name and os.path.isdir(path))
        return f"{path}{colon}{attribute}" if name and is_there else value  # also of long texts

    full = {**values}
    for key, locate in (("function", absolute_object), ("canaries", absolute)):
        if isinstance(values.get(key), str):
            full[key] = locate(values[key], folder)
    if isinstance(settings, Mapping):
        full["settings"] = {key: complete(value) for key, value in settings.items()}
    return full


def build_judge(config: JudgeConfig) -> Judge:
    """Builds the judge. Raises `ConfigError` if its function cannot be loaded or is no judge."""
    if config.lost_name is not None:
        raise ConfigError(
            f"judges: {config.lost_name!r} was a function in the memory of the program that began the run; give it "
            f"again: llamarl.resume(RUN, judges={{{config.lost_name!r}: FUNCTION}})"
        )
    if config.isolation == "process":
        return ProcessJudge(
            config.function,
            num_workers=config.workers,
            timeout_seconds=config.timeout_seconds,
            name=config.name,
            settings=config.settings,
        )
    return load_judge(config.function, config.name, settings=config.settings)


def build_seat(config: JudgeConfig) -> Seat:
    """Builds the judge with its role, weight, deadline and canaries. Raises what `build_judge` and `Seat` raise."""
    judge = build_judge(config)
    return Seat(
        judge,
        role=config.role,
        weight=config.weight,
        share=config.share,
        timeout_seconds=config.timeout_seconds,
        canaries=read_canaries(config.canaries) if config.canaries is not None else (),
        canaries_every=config.canaries_every,
        is_borrowed=is_given(config.function, judge),
    )


def build_panel(configs: Sequence[JudgeConfig], **options: Any) -> JudgePanel:
    """Builds the panel of these judges; `options` go to `JudgePanel`."""
    return JudgePanel([build_seat(config) for config in configs], **options)
