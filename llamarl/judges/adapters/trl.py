"""TRL's reward functions, unchanged: one call for a batch, keywords in, a list of float or None out.

    def reward(prompts, completions, solution, **kwargs):
        return [float(c[0]["content"] == s) for c, s in zip(completions, solution)]

    judge = TRLJudge(reward)

None in the list says that the function does not apply. The batch is one group: `prompts` repeats its prompt. As in TRL,
prompts and completions are lists of messages where the data holds messages, and text where the data holds text (`form`
overrides). Every key of `prompt.info`, `answer`, `task` and `id` arrive as columns. A function without `**kwargs` gets
only the keywords that it names.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

from llamarl.core.errors import ConfigError, place_of
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.adapters.base import (
    FunctionAdapter,
    check_callable,
    chosen_keywords,
    is_text,
    own_columns,
    prompt_text,
    required_names,
    to_verdict,
)

RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Keywords that are never columns."""


class TRLJudge(FunctionAdapter):
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
        """Wraps `function`; see the module's docstring, and `FunctionAdapter` for the other arguments."""
        check_callable(function, "a TRL reward function")
        if form not in ("auto", "messages", "text"):
            raise ConfigError(f"form: got {form!r}; use 'auto', 'messages' or 'text'")
        super().__init__(function, name, is_inline=is_inline)
        self.form = form
        self._logged: dict[str, list[float]] = {}

    def check(self, prompt: Prompt) -> None:
        """Checks before a run that the row has the columns that the function needs. Raises `ConfigError`."""
        columns = _columns(prompt)
        for name in required_names(self.function):
            if name not in columns and name not in RESERVED:
                raise ConfigError(
                    f"{place_of(self.function)}needs a column {name!r}, and the row has none; it has "
                    f"{', '.join(sorted(columns))}; add the column, rename one with data.mapping, or give the "
                    "parameter a default"
                )

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion; if the call breaks, all of them are failed."""
        count = len(completions)
        extras: dict[str, list[Any]] = {}
        call = functools.partial(self.function, **self._keywords(prompt, completions, extras))
        [(read, seconds)] = await self.run(self.function, [call], functools.partial(_read, count=count))
        verdicts = [read] * count if isinstance(read, Verdict) else read
        return [
            replace(verdict, seconds=seconds / count, reason=_reason(verdict.reason, extras, row))
            for row, verdict in enumerate(verdicts)
        ]

    def metrics(self) -> dict[str, float]:
        """Returns the means of what the function logged with `log_metric` since the last call."""
        logged, self._logged = self._logged, {}
        return {name: sum(values) / len(values) for name, values in logged.items()}

    def _keywords(
        self, prompt: Prompt, completions: Sequence[Completion], extras: dict[str, list[Any]]
    ) -> dict[str, Any]:
        as_text = self.form == "text" or (self.form == "auto" and is_text(prompt))
        keywords: dict[str, Any] = {name: [value] * len(completions) for name, value in _columns(prompt).items()}
        keywords |= {
            "prompts": [prompt_text(prompt) if as_text else [dict(m) for m in prompt.messages] for _ in completions],
            "completions": [c.text if as_text else [{"role": "assistant", "content": c.text}] for c in completions],
            "completion_ids": [list(completion.token_ids) for completion in completions],
            "trainer_state": SimpleNamespace(
                global_step=max((version for each in completions for version, _ in each.trajectory.versions), default=0)
            ),
            "log_extra": lambda column, values: extras.__setitem__(str(column), list(values)),
            "log_metric": lambda name, value: self._logged.setdefault(str(name), []).append(float(value)),
        }
        return chosen_keywords(self.function, keywords)


def _columns(prompt: Prompt) -> dict[str, Any]:
    columns = {"id": prompt.id, "task": prompt.task, "answer": prompt.answer, **own_columns(prompt)}
    return {name: value for name, value in columns.items() if name not in RESERVED}


def _read(values: Any, count: int) -> list[Verdict]:
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
