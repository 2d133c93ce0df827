"""Base of the judges that call a user's functions: `FunctionJudge`, `TRLJudge`, `VerlJudge`, `VerifiersJudge`.

An adapter says with which arguments a function is called and how what it returns is read. The base calls it, on a
helper thread if it is a plain function, takes the time, and makes a failed verdict of whatever it raises. `JudgeError`
alone is passed on, so that the panel tries again.
"""

import asyncio
import dataclasses
import functools
import inspect
import numbers
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from llamarl.core.errors import ConfigError, JudgeError, boundary
from llamarl.core.judge import Judge
from llamarl.core.records import MAX_SCORE, Prompt, Verdict
from llamarl.data.rows import TEXT_PROMPT
from llamarl.judges.threads import run_in_thread

Read = Callable[[Any], Any]
"""Makes verdicts of what a function returned."""


class Outcome(NamedTuple):
    """Result of one call of a user's function."""

    value: Any
    """The value that `Read` made; a failed verdict where the call raised."""
    seconds: float


class FunctionAdapter(Judge):
    """Base of the judges that call a user's functions."""

    def __init__(self, function: Any, name: str | None, *, is_inline: bool) -> None:
        """Keeps the function.

        Args:
            function: what the user wrote.
            name: in verdicts and metrics; default: the function's.
            is_inline: call plain functions on the caller's thread, where they block the event loop. For worker
                processes, and functions that must run on the main thread.
        """
        self.function, self.name, self.is_inline = function, name or function_name(function), is_inline

    async def run(self, function: Any, calls: Sequence[Callable[[], Any]], read: Read) -> list[Outcome]:
        """Makes all calls of one function: concurrently if it is async, else one after another on one thread."""
        if is_async(function):
            return list(await asyncio.gather(*(_attempt_async(function, call, read) for call in calls)))

        def attempt_all() -> list[Outcome]:
            return [_attempt(function, call, read) for call in calls]

        return attempt_all() if self.is_inline else await run_in_thread(attempt_all)


class _CallError(Exception):
    """A call of the user's function raised; says what and where."""


def _attempt(function: Any, call: Callable[[], Any], read: Read) -> Outcome:
    started = time.perf_counter()
    try:
        with boundary(_CallError, function, passing=JudgeError):
            value = read(call())
    except _CallError as error:
        value = Verdict.failed(str(error))
    return Outcome(value, time.perf_counter() - started)


async def _attempt_async(function: Any, call: Callable[[], Awaitable[Any]], read: Read) -> Outcome:
    started = time.perf_counter()
    try:
        with boundary(_CallError, function, passing=JudgeError):
            value = read(await call())
    except _CallError as error:
        value = Verdict.failed(str(error))
    return Outcome(value, time.perf_counter() - started)


def to_verdict(value: Any) -> Verdict:
    """Reads a judge function's return value as a verdict (table in `adapters.function`)."""
    if isinstance(value, Verdict):
        return value
    if value is None:
        return Verdict.abstained()
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    if isinstance(value, bool):
        return Verdict.scored(float(value), passed=value)
    if isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            return Verdict.failed("returned a whole number that is too large for a float")
        if abs(number) <= MAX_SCORE:
            return Verdict.scored(number)
        return Verdict.failed(f"returned {number}; return a number from -{MAX_SCORE:g} to {MAX_SCORE:g}")
    if inspect.iscoroutine(value):
        value.close()
        return Verdict.failed("returned a coroutine; declare the function itself with 'async def'")
    text = repr(value)
    shown = text if len(text) <= 80 else text[:80] + "…"
    return Verdict.failed(f"returned {type(value).__name__} {shown}; return a Verdict, float, bool or None")


def with_seconds(verdict: Verdict, seconds: float) -> Verdict:
    """Returns the verdict with its time, unless it already says one."""
    return verdict if verdict.seconds else dataclasses.replace(verdict, seconds=seconds)


def function_name(function: Any) -> str:
    """Names a function, a partial's function, or a callable object by its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", None) or getattr(function, "name", None) or type(function).__name__)


def is_async(function: Any) -> bool:
    """Says whether calling it gives a coroutine: an `async def`, or an object with an async `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def check_callable(function: Any, example: str) -> None:
    """Raises `ConfigError` for what cannot be called; `example` says what to give instead."""
    if not callable(function):
        raise ConfigError(f"function: {function!r} cannot be called; give {example}")


def keyword_names(function: Callable[..., Any]) -> set[str] | None:
    """Names the keywords that the function takes; None where it takes any (`**kwargs`) or does not tell."""
    parameters = _parameters(function)
    if parameters is None or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}


def required_names(function: Callable[..., Any]) -> list[str]:
    """Names the parameters that a call must give."""
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = _parameters(function) or []
    return [each.name for each in parameters if each.default is each.empty and each.kind not in optional]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # builtins may have no signature
        return None


def chosen_keywords(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Returns those of the values that the function takes."""
    names = keyword_names(function)
    return values if names is None else {name: value for name, value in values.items() if name in names}


def is_text(prompt: Prompt) -> bool:
    """Says whether the data held the prompt as text, so that functions of other trainers get text and no messages."""
    return bool(prompt.info.get(TEXT_PROMPT))


def prompt_text(prompt: Prompt) -> str:
    """Returns the prompt's own text; of several messages, their contents line by line."""
    return "\n".join(str(message.get("content", "")) for message in prompt.messages)


def own_columns(prompt: Prompt) -> dict[str, Any]:
    """Returns the columns of the row that stand in `info`, as its file had them."""
    return {name: value for name, value in prompt.info.items() if name != TEXT_PROMPT}
