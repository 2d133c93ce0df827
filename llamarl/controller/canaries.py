"""Judges tried on completions of known worth: before the run, which a wrong verdict ends, and while it goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llamarl.controller.clients import JudgesClient
from llamarl.controller.observer import Observer
from llamarl.core.errors import JudgeError, LlamaRLError, describe

MAX_SHOWN = 4
"""Most sentences that one look is worth."""


@asynccontextmanager
async def watch_canaries(judges: JudgesClient, observer: Observer, *, poll_seconds: float = 2.0) -> AsyncIterator[None]:
    """Has the judges look at their canaries now, and whenever they are due until the end of the block.

    Args:
        judges: whose canaries are looked at.
        observer: is told of wrong verdicts.
        poll_seconds: pause between two questions whether any are due.

    Raises:
        JudgeError: at the start, naming the first canaries that got a wrong verdict, or none.
    """
    if problems := await judges.check_canaries():
        shown = "; ".join(problems[:MAX_SHOWN])
        raise JudgeError(f"canaries: {len(problems)} got a wrong verdict or none before the first step: {shown}")

    async def watch() -> None:
        while True:
            await asyncio.sleep(poll_seconds)
            try:
                found = await judges.check_canaries(during_run=True)
            except Exception as error:  # or nobody would hear that nobody looks any more
                found = [f"not looked at: {error if isinstance(error, LlamaRLError) else describe(error)}"]
            for problem in found[:MAX_SHOWN]:
                observer.on_message(f"canary: {problem}")

    task = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    finally:
        task.cancel()
