"""Held-out prompts, answered and judged beside the training."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llamarl.controller.groups import Asker, GroupMaker
from llamarl.controller.metrics import mean_reward
from llamarl.controller.pool import GeneratorPool, Member, Work
from llamarl.controller.pulse import Pulse
from llamarl.controller.task import RunTask
from llamarl.core.errors import JudgeError
from llamarl.core.records import Completion, Group, Prompt
from llamarl.core.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out prompts and how to answer them."""

    prompts: Sequence[Prompt]
    sampling: Sampling
    samples_per_prompt: int = 1


class Evaluator:
    """Answers held-out prompts with the weights that are served.

    Args:
        tasks: by name; whose judges judge.
        asker, maker: requests out, groups back.
        pool: the generators.
        pulse: shared with the pool.
        stall_seconds: most time without another answer.
    """

    def __init__(
        self,
        tasks: Mapping[str, RunTask],
        asker: Asker,
        maker: GroupMaker,
        pool: GeneratorPool,
        pulse: Pulse,
        stall_seconds: float,
    ) -> None:
        self._tasks, self._asker, self._maker, self._pool = tasks, asker, maker, pool
        self._pulse, self._limit = pulse, stall_seconds
        self._next_index = -1

    async def groups(self, evaluation: Evaluation, version: int) -> list[Group]:
        """One judged group per held-out prompt, in order.

        Raises:
            JudgeError: not one completion could be judged.
            StallError: no more answers came.
        """
        indices = range(self._next_index, self._next_index - len(evaluation.prompts), -1)
        self._next_index = indices.stop  # negative, so that held-out prompts go before those of training
        loop = asyncio.get_running_loop()
        answers: dict[int, asyncio.Future[tuple[Completion, ...]]] = {index: loop.create_future() for index in indices}
        works = [
            Work(
                self._asker.requests(index, -1, prompt, [(prompt, evaluation.samples_per_prompt)], evaluation.sampling),
                done.set_result,
            )
            for (index, done), prompt in zip(answers.items(), evaluation.prompts, strict=True)
        ]
        await self._submit(works)

        async def judged(index: int, prompt: Prompt) -> Group:
            samples = await self._maker.judged(self._task_of(prompt), prompt, await answers[index])
            return Group(prompt, samples, index, -1)

        groups, _ = await asyncio.gather(
            asyncio.gather(*map(judged, indices, evaluation.prompts)), self._keeps_answering(answers.values())
        )
        if mean_reward(groups) is None:
            raise JudgeError(
                f"version {version}: no completion of the {len(groups)} held-out prompts could be judged; "
                f"first reason: {first_reason(groups)}"
            )
        return groups

    async def _submit(self, works: Sequence[Work]) -> None:
        """Shares everything out at once: what is decoded together then doesn't depend on the clock."""
        members = await self._pulse.wait_for(self._all_serving, lambda: "generators to serve", self._limit)
        for place, member in enumerate(members):
            if share := works[place :: len(members)]:
                await self._pool.submit(member, share)

    async def _keeps_answering(self, answers: Collection["asyncio.Future[tuple[Completion, ...]]"]) -> None:
        """Until all are there. Raises `StallError` once no more came for as long as a stall may last."""
        left = len(answers)

        def fewer() -> int | None:
            count = sum(not answer.done() for answer in answers)
            return count if count < left else None

        def what() -> str:
            return f"{left} of {len(answers)} held-out answers"

        while left:
            left = await self._pulse.wait_for(fewer, what, self._limit)

    def _all_serving(self) -> list[Member] | None:
        members = self._pool.members
        return None if any(member.version is None for member in members) else members

    def _task_of(self, prompt: Prompt) -> RunTask:
        return next(iter(self._tasks.values())) if len(self._tasks) == 1 else self._tasks[prompt.task]


def first_reason(groups: Sequence[Group]) -> str:
    """Of the verdicts that give one."""
    reasons = (v.reason for group in groups for sample in group.samples for v in sample.verdicts.values() if v.reason)
    return next(reasons, "no judge gave one")
