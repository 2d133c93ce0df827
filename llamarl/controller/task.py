"""One task of a run, as the loop sees it: what to ask, how to learn from the answers, and how far it has come."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llamarl.controller.buffer import WorkBuffer
from llamarl.controller.schedule import Schedule
from llamarl.controller.watch import HackingWatch, WatchConfig
from llamarl.core.algorithm import Algorithm
from llamarl.core.records import Assignment, Completion, Group, Prompt, Sample, Status
from llamarl.data.asks import Ask


@dataclass(frozen=True, slots=True)
class PromptVariant:
    """A rewrite of every prompt of a task, to sample from."""

    name: str
    """Names the variant in messages."""
    ask: Ask
    """Rewrites a prompt."""
    samples: int
    """Completions of each rewritten prompt."""


@dataclass
class RunTask:
    """One entry of the run's list of tasks; the loop keeps the staleness bound and the batch size of each by itself."""

    name: str
    stream: Iterator[tuple[int, Prompt]]
    """(epoch, prompt) pairs still to train, in order."""
    algorithm: Algorithm
    """Settings of the algorithm; `credit` and `needs` come from them."""
    prompts_per_step: int
    """Groups in one optimizer step."""
    samples_per_prompt: int
    """Completions of one prompt, over all variants."""
    weight: float = 1.0
    """Factor of its gradient in the step's sum."""
    watch: HackingWatch = field(default_factory=lambda: HackingWatch(WatchConfig(), {}))
    """Raises an alarm when the reward rises and what it stands for falls."""
    baselines: Mapping[str, Completion] = field(default_factory=dict)
    """Prompt id -> a response that was not sampled, which the algorithm may fall back on."""
    judged_baselines: dict[str, Sample] = field(default_factory=dict)
    """The baselines with their verdicts, which do not change during a run."""
    variants: Sequence[PromptVariant] = ()
    """Rewrites to sample from; where empty, the prompt as it stands, under which all completions train."""

    def __post_init__(self) -> None:
        self.needs, self.credit = self.algorithm.needs, self.algorithm.credit()

    def open(self, schedule: Schedule, version: int) -> None:
        """Starts the account of what is under way, at policy version `version`."""
        self.buffer = WorkBuffer(self.prompts_per_step, schedule.max_staleness, schedule.lookahead, version)
        self.num_issued = 0
        self.dropped: Counter[str] = Counter()
        """Groups that will not train, since the last batch was taken, by reason."""

    def take_batch(self) -> list[Group]:
        """The groups of its next step, none of them once its prompts have ended; drops are counted anew."""
        self.dropped.clear()
        return self.buffer.take_batch() or []

    def reason_to_drop(self, group: Group) -> str | None:
        """Names why a judged group will not train: `unscored` (a judge failed), `abstained`, `no_signal`; or None."""
        if len(group.rewards) < min(2, len(group.samples)):
            verdicts = [v for sample in group.samples if sample.reward is None for v in sample.verdicts.values()]
            return "unscored" if any(v.status is Status.FAILED for v in verdicts) else "abstained"
        return "no_signal" if self.needs.varied_rewards and len(set(group.rewards)) == 1 else None

    def prompt_variants(self, prompt: Prompt) -> list[tuple[Prompt, int]]:
        """Rewrites of the prompt to sample from, with completions per rewrite; without variants, the prompt itself."""
        if not self.variants:
            return [(prompt, self.samples_per_prompt)]
        return [(variant.ask(prompt), variant.samples) for variant in self.variants]

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """The algorithm's training samples of a batch.

        Those of prompt variants train as given: no policy sampled their tokens under the prompt as it stands.
        """
        assignment = self.credit.assign(groups)
        if not self.variants:
            return assignment
        samples = (replace(sample, trajectory=sample.trajectory.as_given()) for sample in assignment.samples)
        return replace(assignment, samples=tuple(samples))

    @property
    def progress(self) -> float:
        """Steps' worth of groups started; the task with the least goes first."""
        return self.num_issued / self.prompts_per_step

    def may_issue(self, served_version: int, total_steps: int) -> bool:
        """True if one more group may start on weights of `served_version`."""
        buffer = self.buffer
        still_wanted = (total_steps - buffer.next_version) * buffer.batch_groups
        outstanding = buffer.num_pending + buffer.num_ready
        return not buffer.is_exhausted and outstanding < still_wanted and buffer.may_issue(served_version)
