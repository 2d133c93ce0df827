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

import functools
from collections.abc import Awaitable, Callable, Sequence

from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.adapters.base import FunctionAdapter, check_callable, to_verdict, with_seconds

JudgeResult = Verdict | float | bool | None
JudgeFunction = Callable[[Prompt, Completion], JudgeResult | Awaitable[JudgeResult]]


class FunctionJudge(FunctionAdapter):
    """Wraps one function. A plain function runs on a helper thread, group by group, so it may block."""

    def __init__(self, function: JudgeFunction, name: str | None = None, *, is_inline: bool = False) -> None:
        """Wraps `function`; see the module's docstring, and `FunctionAdapter` for the other arguments."""
        check_callable(function, "a function of (prompt, completion)")
        super().__init__(function, name, is_inline=is_inline)

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion. Raises `JudgeError` only where the function does."""
        calls = [functools.partial(self.function, prompt, completion) for completion in completions]
        return [with_seconds(*outcome) for outcome in await self.run(self.function, calls, to_verdict)]
