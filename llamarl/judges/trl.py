"""Reward functions written for other trainers, unchanged.

TRL: one call for a batch, keywords in, a list of float or None out (None: does not apply).

    def reward(prompts, completions, solution, **kwargs):
        return [float(c[0]["content"] == s) for c, s in zip(completions, solution)]

    judge = TRLJudge(reward)

The batch is one group: `prompts` repeats its prompt. As in TRL, prompts and completions are lists of messages where
the data holds messages, and text where the data holds text (`form` overrides). Every key of `prompt.info`, `answer`,
`task` and `id` arrive as columns. A function without `**kwargs` gets only the keywords that it names.

verl: `from_verl(compute_score)` calls `compute_score(data_source, solution_str, ground_truth, extra_info)` with those
of the four keywords that it takes; it may be `async def`.
"""

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

from llamarl.core.errors import ConfigError, JudgeError, describe, place_of
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.data.rows import TEXT_PROMPT
from llamarl.judges.function import FunctionJudge, function_name, is_async, to_verdict
from llamarl.judges.threads import run_in_thread

RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Keywords that are never columns."""


class TRLJudge:
    """Wraps a TRL reward function, plain or async.

    `trainer_state.global_step` is the completions' newest policy version; nothing else of TRL's state exists.
    `log_extra(column, values)` adds `column=value` to the verdicts' reasons; `log_metric(name, value)` feeds `metrics`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        form: Literal["auto", "messages", "text"] = "auto",
        is_inline: bool = False,
    ) -> None:
        if not callable(function):
            raise ConfigError(f"function: {function!r} cannot be called; give a TRL reward function")
        if form not in ("auto", "messages", "text"):
            raise ConfigError(f"form: got {form!r}; use 'auto', 'messages' or 'text'")
        self.function, self.form, self.is_inline = function, form, is_inline
        self.name = name or function_name(function)
        self.is_async = is_async(function)
        self._keyword_names = keyword_names(function)
        self._logged: dict[str, list[float]] = {}

    def check(self, prompt: Prompt) -> None:
        """Checks before a run that the row has the columns that the function needs. Raises `ConfigError`."""
        columns = _columns(prompt)
        for name in _required(self.function):
            if name not in columns and name not in RESERVED:
                raise ConfigError(
                    f"{place_of(self.function)}needs a column {name!r}, and the row has none; it has "
                    f"{', '.join(sorted(columns))}; add the column, rename one with data.mapping, or give the "
                    "parameter a default"
                )

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion; if the call breaks, all of them are failed."""
        extras: dict[str, list[Any]] = {}
        call = functools.partial(self.function, **self._keywords(prompt, completions, extras))
        started = time.perf_counter()
        try:
            if self.is_async:
                values = await call()
            else:
                values = call() if self.is_inline else await run_in_thread(call)
            verdicts = _verdicts(values, len(completions))
        except JudgeError:
            raise
        except (Exception, SystemExit) as error:  # the border to the user's code
            verdicts = [Verdict.failed(describe(error, self.function))] * len(completions)
        seconds = (time.perf_counter() - started) / max(len(completions), 1)
        return [
            replace(verdict, seconds=seconds, reason=_reason(verdict.reason, extras, row))
            for row, verdict in enumerate(verdicts)
        ]

    def metrics(self) -> dict[str, float]:
        """Means of what the function logged with `log_metric` since the last call."""
        logged, self._logged = self._logged, {}
        return {name: sum(values) / len(values) for name, values in logged.items()}

    def _keywords(
        self, prompt: Prompt, completions: Sequence[Completion], extras: dict[str, list[Any]]
    ) -> dict[str, Any]:
        count = len(completions)
        is_text = self.form == "text" or (self.form == "auto" and bool(prompt.info.get(TEXT_PROMPT)))
        keywords: dict[str, Any] = {name: [value] * count for name, value in _columns(prompt).items()}
        keywords |= {
            "prompts": [prompt_text(prompt) if is_text else [dict(m) for m in prompt.messages] for _ in completions],
            "completions": [c.text if is_text else [{"role": "assistant", "content": c.text}] for c in completions],
            "completion_ids": [list(completion.token_ids) for completion in completions],
            "trainer_state": SimpleNamespace(global_step=_newest_version(completions)),
            "log_extra": lambda column, values: extras.__setitem__(str(column), list(values)),
            "log_metric": lambda name, value: self._logged.setdefault(str(name), []).append(float(value)),
        }
        if self._keyword_names is None:
            return keywords
        return {name: value for name, value in keywords.items() if name in self._keyword_names}


VERL_KEYWORDS = ("data_source", "solution_str", "ground_truth", "extra_info")


@dataclass(frozen=True)
class _VerlFunction:
    compute_score: Callable[..., Any]
    names: tuple[str, ...]
    """Of verl's keywords, those that it takes."""

    def __call__(self, prompt: Prompt, completion: Completion) -> Verdict:
        return _verl_verdict(self.compute_score(**self.keywords(prompt, completion)))

    def keywords(self, prompt: Prompt, completion: Completion) -> dict[str, Any]:
        source, extra_info = prompt.info.get("data_source", prompt.task), prompt.info.get("extra_info", {})
        values = dict(zip(VERL_KEYWORDS, (source, completion.text, prompt.answer, extra_info), strict=True))
        return {name: values[name] for name in self.names}


class _AsyncVerlFunction(_VerlFunction):
    async def __call__(self, prompt: Prompt, completion: Completion) -> Verdict:  # type: ignore[override]
        return _verl_verdict(await self.compute_score(**self.keywords(prompt, completion)))


def _verl_verdict(result: Any) -> Verdict:
    if not isinstance(result, Mapping):
        return to_verdict(result)
    if "score" not in result:
        return Verdict.failed(f"returned a dictionary without 'score': {sorted(result)}")
    verdict = to_verdict(result["score"])
    return replace(verdict, reason=", ".join(f"{k}={v}" for k, v in result.items() if k != "score") or verdict.reason)


def from_verl(compute_score: Callable[..., Any], name: str | None = None, *, is_inline: bool = False) -> FunctionJudge:
    """A judge from verl's `compute_score(data_source, solution_str, ground_truth, extra_info)`, plain or async.

    It gets those of the four that it takes. It may return a number or a dictionary with `score`; the dictionary's other
    entries become the verdict's reason.

    Raises:
        ConfigError: it needs another keyword.
    """
    name = name or function_name(compute_score)
    for parameter in _required(compute_score):
        if parameter not in VERL_KEYWORDS:
            raise ConfigError(
                f"{name}: parameter {parameter!r} has no default, and verl's keywords are {', '.join(VERL_KEYWORDS)}; "
                f"give it a default, or functools.partial(..., {parameter}=...)"
            )
    known = keyword_names(compute_score)
    names = tuple(each for each in VERL_KEYWORDS if known is None or each in known)
    wrapper = _AsyncVerlFunction if is_async(compute_score) else _VerlFunction
    return FunctionJudge(wrapper(compute_score, names), name, is_inline=is_inline)


def keyword_names(function: Callable[..., Any]) -> set[str] | None:
    """The keywords that the function takes; None where it takes any (`**kwargs`) or does not tell."""
    parameters = _parameters(function)
    if parameters is None or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}


def _required(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters that a call must give."""
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = _parameters(function) or []
    return [each.name for each in parameters if each.default is each.empty and each.kind not in optional]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # builtins may have no signature
        return None


def _columns(prompt: Prompt) -> dict[str, Any]:
    columns = {"id": prompt.id, "task": prompt.task, "answer": prompt.answer, **prompt.info}
    return {name: value for name, value in columns.items() if name not in (*RESERVED, TEXT_PROMPT)}


def prompt_text(prompt: Prompt) -> str:
    """The prompt's own text; of several messages, their contents line by line."""
    return "\n".join(str(message.get("content", "")) for message in prompt.messages)


def _newest_version(completions: Sequence[Completion]) -> int:
    return max((version for completion in completions for version in completion.versions), default=0)


def _verdicts(values: Any, count: int) -> list[Verdict]:
    if hasattr(values, "tolist"):  # numpy and torch
        values = values.tolist()
    if not isinstance(values, list | tuple):
        return [Verdict.failed(f"returned {type(values).__name__}; return a list of float or None")] * count
    if len(values) != count:
        return [Verdict.failed(f"returned {len(values)} rewards for {count} completions")] * count
    return [to_verdict(value) for value in values]


def _reason(reason: str, extras: Mapping[str, Sequence[Any]], row: int) -> str:
    logged = [f"{column}={values[row]}" for column, values in extras.items() if row < len(values)]
    return "; ".join(part for part in (reason, *logged) if part)
