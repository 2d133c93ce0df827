"""From a prompt to its group: what is asked of a generator, and what becomes of the completions."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from llamarl.controller.judging import JudgeQueue
from llamarl.controller.observer import Observer
from llamarl.controller.task import RunTask
from llamarl.core.protocols import ExecutorHandle
from llamarl.core.records import Completion, GenerationRequest, Group, Prompt, Sample
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import sample_seed

Encode = Callable[[Prompt], tuple[int, ...]]


class Asker:
    """Makes generation requests; their seeds depend on run seed, epoch, prompt and sample only.

    Args:
        encode: prompt -> token ids.
        seed: of the run.
        max_forms: most requests that a prompt needs.
    """

    def __init__(self, encode: Encode, seed: int, max_forms: int) -> None:
        self._encode, self._seed, self._max_forms = encode, seed, max_forms

    def requests(
        self, index: int, epoch: int, prompt: Prompt, asked: Sequence[tuple[Prompt, int]], sampling: Sampling
    ) -> list[GenerationRequest]:
        """The requests of the prompt whose number in the run is `index`; lower ones are generated first."""
        requests, num_samples = [], 0
        for place, (form, samples) in enumerate(asked):
            numbers = range(num_samples, num_samples + samples)
            seeds = tuple(sample_seed(self._seed, epoch, prompt.id, i) for i in numbers)
            key = index * self._max_forms + place
            requests.append(GenerationRequest(key, self._encode(form), seeds, sampling, priority=index))
            num_samples += samples
        return requests


class GroupMaker:
    """Makes groups of completions: verdicts, the reference policy's log-probs, the baseline and its verdicts.

    Args:
        judging: the way to the judges.
        encode: prompt -> token ids.
        observer: is told what takes time.
        reference: the frozen policy's executor, where an algorithm needs it.
        call_seconds: deadline of a call to the reference.
    """

    def __init__(
        self,
        judging: JudgeQueue,
        encode: Encode,
        observer: Observer,
        reference: ExecutorHandle | None,
        call_seconds: float,
    ) -> None:
        self._judging, self._encode, self._observer = judging, encode, observer
        self._reference, self._call_seconds = reference, call_seconds

    async def made(
        self, task: RunTask, prompt: Prompt, completions: Sequence[Completion], index: int, epoch: int
    ) -> Group:
        """The group as its task's algorithm needs it."""
        if task.forms:
            trained_ids = self._encode(prompt)
            completions = [replace(completion, prompt_ids=trained_ids) for completion in completions]
        if self._needs_reference(task) or task.baselines:
            samples, logprobs, baseline = await asyncio.gather(
                self.judged(task, prompt, completions),
                self._reference_logprobs(task, completions),
                self._judged_baseline(task, prompt),
            )
            known = (replace(s, reference_logprobs=each) for s, each in zip(samples, logprobs, strict=True))
            return Group(prompt, tuple(known), index, epoch, baseline)
        return Group(prompt, await self.judged(task, prompt, completions), index, epoch)

    def _needs_reference(self, task: RunTask) -> bool:
        return self._reference is not None and task.algorithm.needs_reference

    async def judged(self, task: RunTask, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Sample, ...]:
        """The completions with their verdicts and rewards, and nothing else."""
        with self._observer.span("judge", "judge"):
            return await self._judging.judged(prompt, completions, task.name)

    async def _reference_logprobs(
        self, task: RunTask, completions: Sequence[Completion]
    ) -> Sequence[tuple[float, ...] | None]:
        """Of each completion, per token; None where the task's algorithm needs none."""
        if self._reference is None or not self._needs_reference(task):
            return [None] * len(completions)
        rows = [(completion.prompt_ids, completion.token_ids) for completion in completions]
        with self._observer.span("reference", "score"):
            logprobs: list[tuple[float, ...]] = await self._reference.call(
                "logprobs", rows, timeout_seconds=self._call_seconds
            )
        return logprobs

    async def _judged_baseline(self, task: RunTask, prompt: Prompt) -> Sample | None:
        """The prompt's baseline response with its verdicts; judged once a run, unless a judge failed."""
        completion = task.baselines.get(prompt.id)
        if completion is None:
            return None
        if prompt.id not in task.judged_baselines:
            (sample,) = await self.judged(task, prompt, [completion])
            if sample.reward is None:
                return sample
            task.judged_baselines[prompt.id] = sample
        return task.judged_baselines[prompt.id]
