"""verl's reward functions, unchanged: `compute_score(data_source, solution_str, ground_truth, extra_info)`.

    judge = VerlJudge(compute_score)

The function is called once per completion with those of the four keywords that it takes; it may be `async def`. It
returns a number, or a dictionary with `score` whose other entries become the verdict's reason.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.adapters.base import (
    FunctionAdapter,
    check_callable,
    chosen_keywords,
    required_names,
    to_verdict,
    with_seconds,
)

KEYWORDS = ("data_source", "solution_str", "ground_truth", "extra_info")


class VerlJudge(FunctionAdapter):
    """Wraps one of verl's reward functions, plain or async."""

    def __init__(self, compute_score: Callable[..., Any], name: str | None = None, *, is_inline: bool = False) -> None:
        """Wraps `compute_score`; see `FunctionAdapter` for the other arguments.

        Raises:
            ConfigError: it needs a keyword that verl does not give.
        """
        check_callable(compute_score, "a reward function of verl")
        super().__init__(compute_score, name, is_inline=is_inline)
        for parameter in required_names(compute_score):
            if parameter not in KEYWORDS:
                raise ConfigError(
                    f"{self.name}: parameter {parameter!r} has no default, and verl's keywords are "
                    f"{', '.join(KEYWORDS)}; give it a default, or functools.partial(..., {parameter}=...)"
                )

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion. Raises `JudgeError` only where the function does."""
        calls = [functools.partial(self.function, **self._keywords(prompt, completion)) for completion in completions]
        return [with_seconds(*outcome) for outcome in await self.run(self.function, calls, _read)]

    def _keywords(self, prompt: Prompt, completion: Completion) -> dict[str, Any]:
        source, extra_info = prompt.info.get("data_source", prompt.task), prompt.info.get("extra_info", {})
        values = (source, completion.text, prompt.answer, extra_info)
        return chosen_keywords(self.function, dict(zip(KEYWORDS, values, strict=True)))


def _read(result: Any) -> Verdict:
    if not isinstance(result, Mapping):
        return to_verdict(result)
    if "score" not in result:
        return Verdict.failed(f"returned a dictionary without 'score': {sorted(result)}")
    verdict = to_verdict(result["score"])
    return replace(verdict, reason=", ".join(f"{k}={v}" for k, v in result.items() if k != "score") or verdict.reason)
