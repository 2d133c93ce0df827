"""A judge from one function: `(prompt, completion) -> Verdict | float | bool | None`.

    def concise(prompt: Prompt, completion: Completion) -> float:
        return 1.0 if len(completion.text) < 80 else 0.0

    judge = FunctionJudge(concise)
    verdicts = await judge.judge(prompt, completions)

The function gets the records: `prompt.answer`, `prompt.info`, `completion.text`, `completion.token_ids`, ... What it
returns is taken as follows; it may be `async def`, and then the completions of a group are judged concurrently.

    Verdict          as it is
    float, int       scored; not finite, or beyond 1e30: failed
    bool             scored 1 or 0, and passed or not
    None             abstained: the judge does not apply
    anything else    failed, with the reason
    an exception     failed, with the reason; `JudgeError` alone is passed on, so that the panel tries again
"""

import asyncio
import dataclasses
import functools
import inspect
import numbers
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from llamarl.core.errors import ConfigError, JudgeError, describe
from llamarl.core.records import MAX_SCORE, Completion, Prompt, Verdict
from llamarl.judges.threads import run_in_thread

JudgeResult = Verdict | float | bool | None
JudgeFunction = Callable[[Prompt, Completion], JudgeResult | Awaitable[JudgeResult]]


class FunctionJudge:
    """Wraps one function. A plain function runs on a helper thread, group by group, so it may block."""

    def __init__(self, function: JudgeFunction, name: str | None = None, *, is_inline: bool = False) -> None:
        """Wraps `function`.

        Args:
            function: see the module's docstring.
            name: of the judge, in verdicts and metrics; default: the function's.
            is_inline: call a plain function on the caller's thread, where it blocks the event loop. For worker
                processes, and functions that must run on the main thread.
        """
        if not callable(function):
            raise ConfigError(f"function: {function!r} cannot be called; give a function of (prompt, completion)")
        self.function = function
        self.name = name or function_name(function)
        self.is_inline = is_inline
        self.is_async = is_async(function)

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion. Raises `JudgeError` only where the function does."""
        if self.is_async:
            return list(await asyncio.gather(*(self._judge_async(prompt, completion) for completion in completions)))
        if self.is_inline:
            return self._judge_all(prompt, completions)
        return await run_in_thread(functools.partial(self._judge_all, prompt, completions))

    def _judge_all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        return [self._judge_one(prompt, completion) for completion in completions]

    def _judge_one(self, prompt: Prompt, completion: Completion) -> Verdict:
        started = time.perf_counter()
        try:
            verdict = to_verdict(self.function(prompt, completion))
        except JudgeError:
            raise
        except (Exception, SystemExit) as error:  # the border to the user's code: the fault is named, not raised
            verdict = Verdict.failed(describe(error, self.function))
        return with_seconds(verdict, time.perf_counter() - started)

    async def _judge_async(self, prompt: Prompt, completion: Completion) -> Verdict:
        started = time.perf_counter()
        try:
            verdict = to_verdict(await self.function(prompt, completion))  # type: ignore[misc]
        except JudgeError:
            raise
        except (Exception, SystemExit) as error:
            verdict = Verdict.failed(describe(error, self.function))
        return with_seconds(verdict, time.perf_counter() - started)


def to_verdict(value: Any) -> Verdict:
    """A judge function's return value as a verdict (table in the module's docstring)."""
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
    return Verdict.failed(f"returned {type(value).__name__} {_short(value)}; return a Verdict, float, bool or None")


def with_seconds(verdict: Verdict, seconds: float) -> Verdict:
    """The verdict with its time, unless it already says one."""
    return verdict if verdict.seconds else dataclasses.replace(verdict, seconds=seconds)


def function_name(function: Any) -> str:
    """The name of a function, a partial's function, or a callable object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", None) or getattr(function, "name", None) or type(function).__name__)


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine: an `async def`, or an object with an async `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
