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
from llamarl.core.records import Group, Prompt, Purpose
from llamarl.core.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out prompts and how to answer them."""

    prompts: Mapping[str, Sequence[Prompt]]
    """Task name -> held-out prompts, which that task's judges judge."""
    sampling: Sampling
    samples_per_prompt: int = 1


class Evaluator:
    """Answers held-out prompts with the weights that are served.

    Args:
        tasks: by name.
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

    async def evaluate(self, evaluation: Evaluation, version: int) -> dict[str, list[Group]]:
        """The judged groups of each task's held-out prompts, in order; those of a task without any are none.

        Raises:
            JudgeError: no completion could be judged.
            StallError: no more answers came.
        """
        members = await self._pulse.wait_for(self._serving, lambda: "generators to serve", self._stall_seconds)
        prompts = [(self._tasks[name], prompt) for name, each in evaluation.prompts.items() for prompt in each]
        tickets = [Ticket(place, 0, prompt, version, Purpose.HELD_OUT) for place, (_, prompt) in enumerate(prompts)]
        # All begin at once and in turn: what is decoded together then doesn't depend on the clock.
        runs = [
            asyncio.create_task(self._run_group(ticket, task, members[place % len(members)], evaluation))
            for place, (ticket, (task, _)) in enumerate(zip(tickets, prompts, strict=True))
        ]
        watch = asyncio.create_task(self._watch_progress(tickets))
        try:
            groups, _ = await asyncio.gather(asyncio.gather(*runs), watch)
        finally:
            for work in (*runs, watch):
                work.cancel()
        if mean_reward(groups) is None:
            raise JudgeError(
                f"version {version}: no completion of the {len(groups)} held-out prompts could be judged; "
                f"first reason: {first_reason(groups)}"
            )
        found: dict[str, list[Group]] = {name: [] for name in self._tasks}
        for (task, _), group in zip(prompts, groups, strict=True):
            found[task.name].append(group)
        return found

    async def _run_group(
        self, ticket: Ticket, task: RunTask, generator: GeneratorClient, evaluation: Evaluation
    ) -> Group:
        generator.reserve()
        variants = [(ticket.prompt, evaluation.samples_per_prompt)]  # held-out prompts are asked as they stand
        return await self._runner.run_group(ticket, task, generator, variants, evaluation.sampling)

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


def first_reason(groups: Sequence[Group]) -> str:
    """The first reason that a verdict of these groups gives."""
    reasons = (v.reason for group in groups for sample in group.samples for v in sample.verdicts.values() if v.reason)
    return next(reasons, "the judges abstained without one; a function abstains that returns None")
