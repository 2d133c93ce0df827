"""Judges by name: `module:function`, `path/to/file.py:function`, or the bare name of a shipped task judge.

load_judge("my_package.rewards:concise")
load_judge("rewards.py:accuracy_reward")      # TRL- and verl-style functions are known by their parameters
load_judge("format")                          # short for llamarl.tasks.format:judge
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError
from llamarl.core.loading import load_object
from llamarl.core.protocols import Judge
from llamarl.judges.function import FunctionJudge
from llamarl.judges.trl import TRLJudge, from_verl

TASKS = "llamarl.tasks"


def load_judge(spec: str, name: str | None = None, *, is_inline: bool = False) -> Judge:
    """The judge that `spec` names; a shipped judge is called by its bare name.

    Raises:
        ConfigError: no such file, module or attribute, or its signature is that of no judge.
    """
    target = load_object(spec if ":" in spec else _spec_of(spec))
    if ":" not in spec and not isinstance(target, Judge):
        name = name or spec
    return as_judge(target, name, is_inline=is_inline, source=spec)


def as_judge(target: Any, name: str | None = None, *, is_inline: bool = False, source: str = "judge") -> Judge:
    """A judge from a judge (returned as it is) or from a function of ours, TRL's or verl's shape."""
    if isinstance(target, type):
        raise ConfigError(f"{source} is a class; name an instance of it or a function")
    if isinstance(target, Judge):
        if name is not None and name != target.name:
            raise ConfigError(f"{source} is a judge named {target.name!r}; it cannot be renamed to {name!r}")
        return target
    if not callable(target):
        raise ConfigError(f"{source} is a {type(target).__name__}; name a function of (prompt, completion)")
    return _wrapper(target, source)(target, name, is_inline=is_inline)


def _wrapper(function: Any, source: str) -> Callable[..., Judge]:
    """Which class takes a function of this signature."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins may have none
        return FunctionJudge
    names = set(signature.parameters)
    if names & {"prompts", "completions", "completion_ids"}:
        return TRLJudge
    if {"solution_str", "ground_truth"} <= names:
        return from_verl
    try:
        signature.bind(None, None)
    except TypeError:
        raise ConfigError(
            f"{source}: {signature} is no judge's signature; take (prompt, completion), or TRL's keywords "
            "(completions, **kwargs), or verl's (data_source, solution_str, ground_truth, extra_info)"
        ) from None
    return FunctionJudge


SHIPPED = {"instructions": "llamarl.judges.rules:follows_instructions"}
"""Judges by bare name that are no task's."""


def _spec_of(name: str) -> str:
    """Where the shipped judge called `name` lives."""
    if name in SHIPPED:
        return SHIPPED[name]
    tasks = importlib.import_module(TASKS)
    names = [module.name for module in pkgutil.iter_modules(tasks.__path__)]
    if name not in names:
        raise ConfigError(
            f"no shipped judge {name!r}.{suggest(name, [*SHIPPED, *names])} Your own: 'module:function' or "
            "'file.py:function'"
        )
    return f"{TASKS}.{name}:judge"
