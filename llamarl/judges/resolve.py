"""Judges by name: `module:function`, `path/to/file.py:function`, or the bare name of a shipped task judge.

load_judge("my_package.rewards:concise")
load_judge("rewards.py:accuracy_reward")      # functions for TRL, verl and verifiers are known by their parameters
load_judge("format")                          # short for llamarl.tasks.format:judge
load_judge("llm", settings={"base_url": ..., "model": ..., "template": "safety"})

Settings are the keywords of a class, or of a function that builds a judge.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, LlamaRLError, boundary
from llamarl.core.judge import Judge
from llamarl.core.loading import load_object
from llamarl.judges.adapters.base import function_name
from llamarl.judges.adapters.function import FunctionJudge
from llamarl.judges.adapters.trl import TRLJudge
from llamarl.judges.adapters.verifiers import VerifiersJudge, is_reward_function, is_rubric
from llamarl.judges.adapters.verl import VerlJudge

SHIPPED = {
    "classifier": "llamarl.judges.classifier:ClassifierJudge",
    "code": "llamarl.judges.code.judge:CodeJudge",
    "detector": "llamarl.factuality.judge:DetectorJudge",
    "farewell": "llamarl.judges.rules.farewell:FarewellJudge",
    "instructions": "llamarl.judges.rules.judge:InstructionJudge",
    "llm": "llamarl.judges.llm.judge:LLMJudge",
    "math": "llamarl.judges.math.judge:MathJudge",
    "reward_model": "llamarl.judges.reward_model:RewardModel",
}
"""Judges by bare name: each has a page and its settings in the documentation."""
OF_TASKS = {name: f"llamarl.tasks.{name}:judge" for name in ("chain", "format", "trials")}
"""Judges of the synthetic tasks by bare name."""


def load_judge(
    spec: str | Any, name: str | None = None, *, settings: Mapping[str, Any] | None = None, is_inline: bool = False
) -> Judge:
    """Returns the judge that `spec` names; a shipped judge is called by its bare name.

    Args:
        spec: see above; or the function, class or judge itself.
        name: in verdicts and metrics; default: the judge's own.
        settings: what to build it with, if `spec` names a class or a function that builds judges.
        is_inline: call plain functions on the caller's thread (`FunctionJudge`).

    Raises:
        ConfigError: no such file, module or attribute, its signature is that of no judge, or the settings don't fit.
    """
    if isinstance(spec, str):
        target = load_object(spec if ":" in spec else _spec_of(spec))
    else:
        target, spec = spec, function_name(spec)
    if settings is not None or isinstance(target, type):
        return _build(target, settings or {}, name, is_inline, spec)
    if ":" not in spec and not isinstance(target, Judge):
        name = name or spec
    return as_judge(target, name, is_inline=is_inline, source=spec)


def as_judge(target: Any, name: str | None = None, *, is_inline: bool = False, source: str = "judge") -> Judge:
    """Makes a judge of a function of our, TRL's, verl's or verifiers' shape, or of a rubric; a judge stays as it is."""
    if isinstance(target, type):
        raise ConfigError(f"{source} is a class; give an instance of it or a function")
    if isinstance(target, Judge):
        if name is not None and name != target.name:
            raise ConfigError(f"{source} is a judge named {target.name!r}; it cannot be renamed to {name!r}")
        return target
    if is_rubric(target):
        return VerifiersJudge(target, name, is_inline=is_inline)
    if not callable(target):
        raise ConfigError(
            f"{source} is a {type(target).__name__}; name a function of (prompt, completion), or derive the class from "
            "llamarl.judges.Judge"
        )
    return _adapter_of(target, source)(target, name, is_inline=is_inline)


def is_given(spec: str | Any, judge: Judge) -> bool:
    """Says whether the judge is the very object that `spec` is or names, not one that `load_judge` built."""
    if isinstance(spec, str):
        return load_object(spec if ":" in spec else _spec_of(spec)) is judge
    return spec is judge


def _build(factory: Any, settings: Mapping[str, Any], name: str | None, is_inline: bool, source: str) -> Judge:
    """Builds the judge from the settings with a class or function; it takes the name that is wanted."""
    if isinstance(factory, Judge) or not callable(factory):
        raise ConfigError(f"{source}: takes no settings; they are for a class, or a function that builds a judge")
    _check_settings(factory, settings, source)
    with boundary(
        lambda problem: ConfigError(f"{source}: building it from its settings failed: {problem}"), passing=LlamaRLError
    ):
        target = factory(**settings)
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


def _adapter_of(function: Any, source: str) -> Callable[..., Judge]:
    """Chooses the class that takes a function of this signature."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins may have none
        return FunctionJudge
    names = set(signature.parameters)
    if names & {"prompts", "completions", "completion_ids"}:
        return TRLJudge
    if {"solution_str", "ground_truth"} <= names:
        return VerlJudge
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


def _spec_of(name: str) -> str:
    """Returns where the shipped judge called `name` lives."""
    known = {**SHIPPED, **OF_TASKS}
    if name not in known:
        raise ConfigError(
            f"no shipped judge {name!r}.{suggest(name, list(known))} Your own: 'module:function' or 'file.py:function'"
        )
    return known[name]
