"""Held-out prompts, answered and judged beside the training."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamarl.controller.buffer import Ticket
from llamarl.controller.generators import GeneratorClient, GeneratorPool
from llamarl.controller.groups import GroupRunner
from llamarl.controller.metrics import mean_reward
from llamarl.controller.pulse import Pulse
from llamarl.controller.task import RunTask
from llamarl.core.errors import JudgeError
from llamarl.core.records import Group, Prompt
from llamarl.core.sampling import Sampling

HELD_OUT_EPOCH = -1
"""Seeds of held-out completions derive from it, so they are the same in every evaluation and differ from training's."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out prompts and how to answer them."""

    prompts: Sequence[Prompt]
    sampling: Sampling
    samples_per_prompt: int = 1


class Evaluator:
    """Answers held-out prompts with the weights that are served.

    Args:
        tasks: by name; a prompt's own task judges it.
        runner: runs the groups.
        pool: the generators.
        pulse: shared with the pool.
        stall_seconds: most time without another answer.
    """

    def __init__(
        self, tasks: Mapping[str, RunTask], runner: GroupRunner, pool: GeneratorPool, pulse: Pulse, stall_seconds: float
    ) -> None:
        self._tasks, self._runner, self._pool = tasks, runner, pool
        self._pulse, self._stall_seconds = pulse, stall_seconds
        self._next_index = -1

    async def evaluate(self, evaluation: Evaluation, version: int) -> list[Group]:
        """The judged groups of all held-out prompts, in order.

        Raises:
            JudgeError: no completion could be judged.
            StallError: no more answers came.
        """
        members = await self._pulse.wait_for(self._serving, lambda: "generators to serve", self._stall_seconds)
        # Negative, so that held-out prompts go before those of training.
        tickets = [
            Ticket(self._next_index - place, HELD_OUT_EPOCH, prompt, version, is_held_out=True)
            for place, prompt in enumerate(evaluation.prompts)
        ]
        self._next_index -= len(tickets)
        # All begin at once and in turn: what is decoded together then doesn't depend on the clock.
        runs = [
            asyncio.create_task(self._run_group(ticket, members[place % len(members)], evaluation))
            for place, ticket in enumerate(tickets)
        ]
        watch = asyncio.create_task(self._watch_progress(tickets))
        try:
            groups, _ = await asyncio.gather(asyncio.gather(*runs), watch)
        finally:
            for task in (*runs, watch):
                task.cancel()
        if mean_reward(groups) is None:
            raise JudgeError(
                f"version {version}: no completion of the {len(groups)} held-out prompts could be judged; "
                f"first reason: {first_reason(groups)}"
            )
        return groups

    async def _run_group(self, ticket: Ticket, generator: GeneratorClient, evaluation: Evaluation) -> Group:
        prompt = ticket.prompt
        generator.reserve()
        return await self._runner.run_group(
            ticket,
            self._task_of(prompt),
            generator,
            [(prompt, evaluation.samples_per_prompt)],
            evaluation.sampling,
        )

    async def _watch_progress(self, tickets: Sequence[Ticket]) -> None:
        """Returns once all are answered. Raises `StallError` once no more came for as long as a stall may last."""
        left = len(tickets)

        def count_fewer() -> int | None:
            count = sum(not ticket.is_complete for ticket in tickets)
            return count if count < left else None

        def describe() -> str:
            return f"{left} of {len(tickets)} held-out answers"

        while left:
            left = await self._pulse.wait_for(count_fewer, describe, self._stall_seconds)

    def _serving(self) -> list[GeneratorClient] | None:
        members = self._pool.members
        return None if any(member.version is None for member in members) else members

    def _task_of(self, prompt: Prompt) -> RunTask:
        return next(iter(self._tasks.values())) if len(self._tasks) == 1 else self._tasks[prompt.task]


def first_reason(groups: Sequence[Group]) -> str:
    """The first reason that a verdict of these groups gives."""
    reasons = (v.reason for group in groups for sample in group.samples for v in sample.verdicts.values() if v.reason)
    return next(reasons, "no judge gave one")
