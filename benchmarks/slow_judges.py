"""Judges that answer after so many seconds without using a core, as an endpoint elsewhere would: for `asynchrony`."""

import asyncio

from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.tasks import format as task


async def after_0s(prompt: Prompt, completion: Completion) -> Verdict:
    """The format task's judge, at once."""
    return task.judge(prompt, completion)


async def after_1s(prompt: Prompt, completion: Completion) -> Verdict:
    """The same after a second. The completions of a group are judged together."""
    await asyncio.sleep(1.0)
    return task.judge(prompt, completion)


async def after_3s(prompt: Prompt, completion: Completion) -> Verdict:
    """The same after three seconds."""
    await asyncio.sleep(3.0)
    return task.judge(prompt, completion)
