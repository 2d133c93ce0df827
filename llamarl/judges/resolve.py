"""Judges by name: `module:function`, `path/to/file.py:function`, or the bare name of a shipped task judge.

load_judge("my_package.rewards:concise")
load_judge("rewards.py:accuracy_reward")      # functions for TRL, verl and verifiers are known by their parameters
load_judge("format")                          # short for llamarl.tasks.format:judge
load_judge("llm", settings={"base_url": ..., "model": ..., "template": "safety"})

Settings are the keywords of a class, or of a function that builds a judge.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, LlamaRLError, describe
from llamarl.core.loading import load_object
from llamarl.core.protocols import Judge
from llamarl.judges.function import FunctionJudge
from llamarl.judges.trl import TRLJudge, from_verl
from llamarl.judges.verifiers import VerifiersJudge, is_reward_function, is_rubric

TASKS = "llamarl.tasks"


def load_judge(
    spec: str, name: str | None = None, *, settings: Mapping[str, Any] | None = None, is_inline: bool = False
) -> Judge:
    """The judge that `spec` names; a shipped judge is called by its bare name.

    Args:
        spec: see above.
        name: in verdicts and metrics; default: the judge's own.
        settings: what to build it with, if `spec` names a class or a function that builds judges.
        is_inline: call plain functions on the caller's thread (`FunctionJudge`).

    Raises:
        ConfigError: no such file, module or attribute, its signature is that of no judge, or the settings don't fit.
    """
    target = load_object(spec if ":" in spec else _spec_of(spec))
    if settings is not None or isinstance(target, type):
        return _built(target, settings or {}, name, is_inline, spec)
    if ":" not in spec and not isinstance(target, Judge):
        name = name or spec
    return as_judge(target, name, is_inline=is_inline, source=spec)


def as_judge(target: Any, name: str | None = None, *, is_inline: bool = False, source: str = "judge") -> Judge:
    """A judge from a judge (returned as it is), a function of ours, TRL's, verl's or verifiers' shape, or a rubric."""
    if isinstance(target, type):
        raise ConfigError(f"{source} is a class; give an instance of it or a function")
    if isinstance(target, Judge):
        if name is not None and name != target.name:
            raise ConfigError(f"{source} is a judge named {target.name!r}; it cannot be renamed to {name!r}")
        return target
    if is_rubric(target):
        return VerifiersJudge(target, name, is_inline=is_inline)
    if not callable(target):
        raise ConfigError(f"{source} is a {type(target).__name__}; name a function of (prompt, completion)")
    return _wrapper(target, source)(target, name, is_inline=is_inline)


def _built(factory: Any, settings: Mapping[str, Any], name: str | None, is_inline: bool, source: str) -> Judge:
    """The judge that a class or function makes of the settings; it takes the name that is wanted."""
    if (isinstance(factory, Judge) and not isinstance(factory, type)) or not callable(factory):
        raise ConfigError(f"{source}: takes no settings; they are for a class, or a function that builds a judge")
    _check_settings(factory, settings, source)
    try:
        target = factory(**settings)
    except LlamaRLError:
        raise
    except (Exception, SystemExit) as error:  # the border to the user's code
        raise ConfigError(f"{source}: building it from its settings failed: {describe(error)}") from error
    judge = as_judge(target, is_inline=is_inline, source=f"what {source} builds")
    if name is not None:
        judge.name = name
    return judge


def _check_settings(factory: Any, settings: Mapping[str, Any], source: str) -> None:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # builtins may have none
        return
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in settings:
        if key not in parameters and not takes_any:
            raise ConfigError(f"{source}: settings.{key}: unknown key.{suggest(key, list(parameters))}")
    for key, parameter in parameters.items():
        is_optional = parameter.default is not parameter.empty or parameter.kind in _VARIADIC
        if key not in settings and not is_optional:
            raise ConfigError(f"{source}: settings.{key}: required, but not given")


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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
    if is_reward_function(signature):
        return VerifiersJudge
    try:
        signature.bind(None, None)
    except TypeError:
        raise ConfigError(
            f"{source}: {signature} is no judge's signature; take (prompt, completion), or TRL's keywords "
            "(completions, **kwargs), or verl's (data_source, solution_str, ground_truth, extra_info), or verifiers' "
            "(completion, answer, state, ...)"
        ) from None
    return FunctionJudge


SHIPPED = {
    "classifier": "llamarl.judges.classifier:ClassifierJudge",
    "code": "llamarl.judges.code.judge:CodeJudge",
    "instructions": "llamarl.judges.rules.judge:InstructionJudge",
    "llm": "llamarl.judges.llm:LLMJudge",
    "math": "llamarl.judges.math.judge:MathJudge",
    "reward_model": "llamarl.judges.reward_model:RewardModel",
}
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
