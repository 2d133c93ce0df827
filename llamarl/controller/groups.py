"""The life of a group: one coroutine takes it from a prompt to its judged samples.

    Ticket ──▶ complete ──▶ judge | score under the reference | judge the baseline ──▶ Group

Training and held-out groups live alike. What becomes of a group is its caller's: `loop` settles, `evaluation` gathers.
"""

import asyncio
import itertools
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

from llamarl.controller.buffer import Ticket
from llamarl.controller.clients import JudgesClient, ReferenceScorer
from llamarl.controller.generators import GeneratorClient
from llamarl.controller.task import RunTask
from llamarl.core.records import Completion, GenerationRequest, Group, Prompt, Purpose, Sample, pack_ids
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import sample_seed

HELD_OUT_SEEDS = -1
"""Seeds of held-out completions have this in place of an epoch: alike in every evaluation, and unlike training's."""

Encode = Callable[[Prompt], tuple[int, ...]]
Variants = Sequence[tuple[Prompt, int]]
"""Prompts to sample from in place of one, with the number of completions of each."""


class GroupRunner:
    """Runs groups.

    Args:
        encode: prompt -> token ids.
        seed: seeds the run; a completion's seed depends on it, the epoch, the prompt and the sample's number only.
        judges: judge the completions.
        scorer: the frozen reference policy, where an algorithm needs it.
    """

    def __init__(self, encode: Encode, seed: int, judges: JudgesClient, scorer: ReferenceScorer | None) -> None:
        self._encode, self._seed, self._judges, self._scorer = encode, seed, judges, scorer
        self._keys = itertools.count()

    async def run_group(
        self,
        ticket: Ticket,
        task: RunTask,
        generator: GeneratorClient,
        variants: Variants,
        sampling: Sampling,
        on_restart: Callable[[int], None] = lambda version: None,
    ) -> Group:
        """Completes a prompt and judges the completions.

        Args:
            ticket: whose group.
            task: its judges judge; a group that trains gets what its algorithm needs besides.
            generator: completes the prompt; its room was reserved.
            variants: what the generator is asked instead; judges and trainer see the prompt as it stands.
            sampling: how the completions are drawn.
            on_restart: told the served version each time the group starts over, its generator having been lost.
        """
        prompt = ticket.prompt
        completions = await generator.complete(self._build_requests(ticket, task, variants, sampling), on_restart)
        ticket.is_complete = True
        if variants[0][0] is not prompt:
            prompt_ids = pack_ids(self._encode(prompt))
            completions = tuple(
                replace(c, trajectory=replace(c.trajectory, prompt_ids=prompt_ids, routed_experts=b""))
                for c in completions
            )
        needs_reference = self._scorer is not None and task.needs.reference
        if ticket.purpose is Purpose.HELD_OUT or not (needs_reference or task.baselines):
            samples = await self._judges.judge(prompt, completions, task.name)
            return Group(prompt, samples, ticket.index, ticket.epoch, purpose=ticket.purpose)
        samples, logprobs, baseline = await asyncio.gather(
            self._judges.judge(prompt, completions, task.name),
            self._score(task, completions),
            self._judge_baseline(task, prompt),
        )
        known = (replace(s, reference_logprobs=each) for s, each in zip(samples, logprobs, strict=True))
        return Group(prompt, tuple(known), ticket.index, ticket.epoch, baseline)

    def _build_requests(
        self, ticket: Ticket, task: RunTask, variants: Variants, sampling: Sampling
    ) -> list[GenerationRequest]:
        """One request a variant. Samples are numbered through the whole group.

        Groups issued earlier go first, and held-out ones, for which the trainer waits, before all of training.
        """
        is_held_out = ticket.purpose is Purpose.HELD_OUT
        epoch, priority = (HELD_OUT_SEEDS, -1) if is_held_out else (ticket.epoch, ticket.index)
        # What learns by heart reads no probability, and is spared the records.
        keeps_support = not (is_held_out or not sampling.filters or task.needs.ignores_behavior_logprobs)
        requests, num_samples = [], 0
        for prompt, count in variants:
            numbers = range(num_samples, num_samples + count)
            seeds = tuple(sample_seed(self._seed, epoch, ticket.prompt.id, i) for i in numbers)
            prompt_ids = self._encode(prompt)
            requests.append(GenerationRequest(next(self._keys), prompt_ids, seeds, sampling, priority, keeps_support))
            num_samples += count
        return requests

    async def _score(self, task: RunTask, completions: Sequence[Completion]) -> "Sequence[array[float] | None]":
        """The reference's log-probs of each completion; None where the task's algorithm needs none."""
        if self._scorer is None or not task.needs.reference:
            return [None] * len(completions)
        return await self._scorer.score([completion.trajectory for completion in completions])

    async def _judge_baseline(self, task: RunTask, prompt: Prompt) -> Sample | None:
        """The prompt's baseline response with its verdicts; judged once a run, unless a judge failed."""
        completion = task.baselines.get(prompt.id)
        if completion is None:
            return None
        if prompt.id not in task.judged_baselines:
            (sample,) = await self._judges.judge(prompt, [completion], task.name)
            if sample.reward is None:
                return sample
            task.judged_baselines[prompt.id] = sample
        return task.judged_baselines[prompt.id]
