"""Judges by name: `module:function`, `path/to/file.py:function`, or the bare name of a shipped task judge.

load_judge("my_package.rewards:concise")
load_judge("rewards.py:accuracy_reward")      # TRL- and verl-style functions are known by their parameters
load_judge("format")                          # short for llamarl.tasks.format:judge
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, LlamaRLError
from llamarl.core.protocols import Judge
from llamarl.judges.function import FunctionJudge, describe
from llamarl.judges.trl import TRLJudge, from_verl

TASKS = "llamarl.tasks"


def load_judge(spec: str, name: str | None = None, *, is_inline: bool = False) -> Judge:
    """The judge that `spec` names; a shipped judge is called by its bare name.

    Raises:
        ConfigError: no such file, module or attribute, or its signature is that of no judge.
    """
    target = load_object(spec)
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


def load_object(spec: str) -> Any:
    """What `module:attribute` or `file.py:attribute` names."""
    place, separator, attribute = spec.rpartition(":")
    if not separator:
        place, attribute = f"{TASKS}.{spec}", "judge"
        _check_task(spec)
    if not place or not attribute:
        raise ConfigError(f"{spec!r} names no judge; write 'module:function' or 'path/to/file.py:function'")
    module = _from_file(place) if place.endswith(".py") else _from_module(place, spec)
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            names = [n for n, value in vars(target).items() if callable(value) and not n.startswith("_")]
            raise ConfigError(f"{spec}: {place} has no {part!r}.{suggest(part, names) if names else ''}")
        target = getattr(target, part)
    return target


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


def _check_task(name: str) -> None:
    if importlib.util.find_spec(TASKS) is None or importlib.util.find_spec(f"{TASKS}.{name}") is None:
        package = importlib.import_module(TASKS) if importlib.util.find_spec(TASKS) else None
        shipped = [module.name for module in pkgutil.iter_modules(package.__path__)] if package else []
        remedy = suggest(name, shipped) if shipped else ""
        raise ConfigError(f"no shipped judge {name!r}.{remedy} Your own: 'module:function' or 'file.py:function'")


def _from_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(
                f"{spec}: no module {error.name!r}; install it, or name a file: 'path/to/file.py:function'"
            ) from None
        raise ConfigError(f"{spec}: importing {name} failed: {describe(error)}") from error
    except LlamaRLError:
        raise
    except (Exception, SystemExit) as error:  # the border to the user's module
        raise ConfigError(f"{spec}: importing {name} failed: {describe(error)}") from error


def _from_file(path: str) -> ModuleType:
    """Runs the file once a process; its module name is a hash of its path, so same-named files stay apart."""
    file = Path(path).resolve()
    if not file.is_file():
        siblings = [other.name for other in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file.{suggest(file.name, siblings) if siblings else ''}")
    name = f"llamarl_file_{file.stem}_{hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be loaded as Python; check the file's name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the border to the user's file
        del sys.modules[name]
        raise ConfigError(f"{path}: running the file failed: {describe(error)}") from error
    return module
