"""Rubrics and reward functions written for the package verifiers, unchanged. That package is not imported here.

    import verifiers as vf                                  # in rubric.py
    rubric = vf.load_environment("gsm8k").rubric

    [[judges]]
    function = "rubric.py:rubric"

A function names what it wants of `prompt`, `completion`, `answer`, `info`, `task` and `state`, of the rubric's own
objects such as `parser`, and of the columns in `info`; with `**kwargs` it gets all. As there, prompts and completions
are lists of messages where the data holds messages, and text where it holds text. Functions of a group name plurals
(`completions`, `answers`, ...) and return a list.

    score = sum of weight x value        over the rubric's functions, as it adds them; nothing is divided

A function that raises or returns no finite number fails the verdict; verifiers would score it 0.
"""

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_origin

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.adapters.base import (
    FunctionAdapter,
    Read,
    chosen_keywords,
    function_name,
    is_text,
    keyword_names,
    own_columns,
    prompt_text,
    to_verdict,
)

SINGULAR = {"prompts": "prompt", "completions": "completion", "answers": "answer", "infos": "info", "tasks": "task"}
PLURALS = {**SINGULAR, "states": "state"}
"""Names that a function of a group may have -> what they are lists of."""


@dataclass(frozen=True)
class _Part:
    """One function of a rubric."""

    function: Callable[..., Any]
    weight: float
    objects: Mapping[str, Any] = field(default_factory=dict)
    """The rubric's own, such as `parser`."""

    @property
    def name(self) -> str:
        return function_name(self.function)

    def keywords(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those of the values and of the rubric's objects that the function takes."""
        return chosen_keywords(self.function, {**values, **self.objects})

    @property
    def is_of_group(self) -> bool:
        return bool((keyword_names(self.function) or set()) & PLURALS.keys())


class VerifiersJudge(FunctionAdapter):
    """Scores a completion as a rubric of verifiers does. One reward function counts as a rubric of weight 1."""

    def __init__(self, rubric: Any, name: str | None = None, *, is_inline: bool = False) -> None:
        """Takes the rubric apart.

        Args:
            rubric: with `funcs` and `weights`, or a group with `rubrics`, or a function.
            name: in verdicts and metrics; default: the function's, or `rubric`.
            is_inline: call plain functions on the caller's thread.

        Raises:
            ConfigError: there is no function, or one for several agents.
        """
        self._parts = _parts(rubric)
        if not self._parts:
            raise ConfigError(f"{type(rubric).__name__}: has no functions; give a rubric with 'funcs' and 'weights'")
        for part in self._parts:
            returned = getattr(part.function, "__annotations__", {}).get("return")
            if returned is dict or get_origin(returned) is dict:
                raise ConfigError(f"{part.name}: rewards several agents by name; here a completion has one reward")
        super().__init__(rubric, name or (None if callable(rubric) else "rubric"), is_inline=is_inline)
        self._values: dict[str, list[float]] = {}

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion; its reason lists what each function gave."""
        started = time.perf_counter()
        states = [_state(prompt, completion) for completion in completions]
        columns = [await self._column(part, prompt, states) for part in self._parts]
        seconds = (time.perf_counter() - started) / max(1, len(completions))
        return [self._verdict([column[row] for column in columns], seconds) for row in range(len(completions))]

    def metrics(self) -> dict[str, float]:
        """Returns the mean value of each function since the last call."""
        values, self._values = self._values, {}
        return {name: sum(found) / len(found) for name, found in values.items()}

    async def _column(self, part: _Part, prompt: Prompt, states: Sequence[dict[str, Any]]) -> list[Verdict]:
        """Returns what one function says of each completion."""
        if part.is_of_group:
            lists = {plural: [_name_values(state)[name] for state in states] for plural, name in PLURALS.items()}
            read = await self._call(part, lists, functools.partial(_read_group, count=len(states)))
            return [read] * len(states) if isinstance(read, Verdict) else read
        columns = own_columns(prompt)
        calls = (self._call(part, {**columns, **_name_values(state)}, to_verdict) for state in states)
        return list(await asyncio.gather(*calls))

    async def _call(self, part: _Part, values: Mapping[str, Any], read: Read) -> Any:
        """Returns what `read` makes of the function's value, or a failed verdict."""
        call = functools.partial(part.function, **part.keywords(values))
        [(value, _)] = await self.run(
            part.function, [call], lambda value: value if inspect.isawaitable(value) else read(value)
        )
        if inspect.isawaitable(value):  # of a plain function that calls an async one, which verifiers allows
            [(value, _)] = await self.run(_wait_for, [functools.partial(_wait_for, value)], read)
        return value

    def _verdict(self, verdicts: Sequence[Verdict], seconds: float) -> Verdict:
        pairs = list(zip(self._parts, verdicts, strict=True))
        for part, verdict in pairs:
            if verdict.score is None:
                return Verdict.failed(f"{part.name}: {verdict.reason or 'returned None; return a number'}")
        scores = [(part, verdict.score or 0.0) for part, verdict in pairs]
        for part, score in scores:
            self._values.setdefault(part.name, []).append(score)
        total = sum(part.weight * score for part, score in scores)
        reason, verdict = ", ".join(f"{part.name}={score:g}" for part, score in scores), to_verdict(total)
        return replace(verdict, reason=f"{reason}: {verdict.reason}" if verdict.reason else reason, seconds=seconds)


def is_rubric(target: Any) -> bool:
    """Says whether it looks like a rubric of verifiers, or a group of them; that package is not imported here."""
    return hasattr(target, "rubrics") or (hasattr(target, "funcs") and hasattr(target, "weights"))


def is_reward_function(signature: inspect.Signature) -> bool:
    """Says whether the parameters are those of a verifiers function and cannot be ours, `(prompt, completion)`."""
    names = list(signature.parameters)
    required = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in _VARIADIC
    }
    is_ours = names[:2] == ["prompt", "completion"] and required <= {"prompt", "completion"}
    return "completion" in names and required <= {*PLURALS.values(), "parser"} and not is_ours


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parts(rubric: Any) -> list[_Part]:
    """Functions with weights, of all rubrics in a group."""
    if hasattr(rubric, "rubrics"):
        return [part for each in rubric.rubrics for part in _parts(each)]
    if not is_rubric(rubric):
        return [_Part(rubric, 1.0)]
    objects = dict(getattr(rubric, "class_objects", {}))
    return [_Part(*pair, objects) for pair in zip(rubric.funcs, rubric.weights, strict=True)]


def _state(prompt: Prompt, completion: Completion) -> dict[str, Any]:
    """A fresh state for one completion; functions may keep things in it for one another."""
    as_text = is_text(prompt)
    return {
        "prompt": prompt_text(prompt) if as_text else [dict(message) for message in prompt.messages],
        "completion": completion.text if as_text else [{"role": "assistant", "content": completion.text}],
        "answer": "" if prompt.answer is None else prompt.answer,
        "info": own_columns(prompt),
        "task": prompt.task,
        "example_id": prompt.id,
        "trajectory": [],
    }


def _name_values(state: dict[str, Any]) -> dict[str, Any]:
    """Returns what functions may name of a state, and the state itself."""
    return {**{name: state[name] for name in SINGULAR.values()}, "state": state}


async def _wait_for(value: Awaitable[Any]) -> Any:
    return await value


def _read_group(values: Any, count: int) -> list[Verdict]:
    if not isinstance(values, list | tuple) or len(values) != count:
        size = f"{len(values)} values" if isinstance(values, list | tuple) else type(values).__name__
        return [Verdict.failed(f"returned {size} for {count} completions; return a list of numbers")] * count
    return [to_verdict(value) for value in values]
