"""One task of a run, as the loop sees it: what to ask, how to learn from the answers, and how far it has come."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llamarl.controller.buffer import WorkBuffer
from llamarl.controller.schedule import Schedule
from llamarl.controller.watch import HackingWatch, WatchConfig
from llamarl.core.protocols import Algorithm
from llamarl.core.records import Assignment, Completion, Group, Prompt, Sample, Status
from llamarl.data.asks import Ask


@dataclass(frozen=True, slots=True)
class Form:
    """One of the ways in which every prompt of a task is asked."""

    name: str
    """For messages."""
    ask: Ask
    samples: int
    """Completions of each prompt in this form."""


@dataclass
class RunTask:
    """A plain run has one; the loop keeps the staleness bound and the batch size of each by itself."""

    name: str
    stream: Iterator[tuple[int, Prompt]]
    """(epoch, prompt) pairs still to train, in order."""
    algorithm: Algorithm
    """`assign` turns its judged groups into training samples."""
    prompts_per_step: int
    """Groups in one optimizer step."""
    samples_per_prompt: int
    """Over all forms."""
    weight: float = 1.0
    """Factor of its gradient in the step's sum."""
    watch: HackingWatch = field(default_factory=lambda: HackingWatch(WatchConfig(), {}))
    """Rings when the reward rises and what it stands for falls."""
    baselines: Mapping[str, Completion] = field(default_factory=dict)
    """By prompt id: a response that is not sampled, which the algorithm may fall back on."""
    judged_baselines: dict[str, Sample] = field(default_factory=dict)
    """Of these, what the judges said; it does not change during a run."""
    forms: Sequence[Form] = ()
    """How each prompt is asked, if not as it stands. What comes back is learnt under the prompt as it stands."""

    def open(self, schedule: Schedule, version: int) -> None:
        """Starts the account of what is under way, at policy version `version`."""
        self.buffer = WorkBuffer(self.prompts_per_step, schedule.max_staleness, schedule.lookahead, version)
        self.num_issued = 0
        self.dropped: Counter[str] = Counter()
        """Groups that will not train, since the last batch was taken, by reason."""

    def fate(self, group: Group) -> str | None:
        """Why a judged group will not train: `unscored` (a judge failed), `abstained`, `no_signal`; None: it may."""
        if len(group.rewards) < min(2, len(group.samples)):
            verdicts = [v for sample in group.samples if sample.reward is None for v in sample.verdicts.values()]
            return "unscored" if any(v.status is Status.FAILED for v in verdicts) else "abstained"
        return "no_signal" if self.algorithm.drops_zero_signal and len(set(group.rewards)) == 1 else None

    def asked(self, prompt: Prompt) -> list[tuple[Prompt, int]]:
        """The prompts that stand for this one, and how many completions of each make up its group."""
        if not self.forms:
            return [(prompt, self.samples_per_prompt)]
        return [(form.ask(prompt), form.samples) for form in self.forms]

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """What the algorithm makes of a batch. Under a prompt that nobody asked, no policy sampled its tokens."""
        assignment = self.algorithm.assign(groups)
        if not self.forms:
            return assignment
        samples = (replace(sample, versions=(-1,) * len(sample.versions)) for sample in assignment.samples)
        return replace(assignment, samples=tuple(samples))

    @property
    def progress(self) -> float:
        """Steps' worth of groups started; the task with the least goes first."""
        return self.num_issued / self.prompts_per_step

    def may_issue(self, served_version: int, total_steps: int) -> bool:
        """Whether one more group may start on weights of `served_version`."""
        buffer = self.buffer
        still_wanted = (total_steps - buffer.next_version) * buffer.batch_groups
        outstanding = buffer.num_pending + buffer.num_ready
        return not buffer.is_exhausted and outstanding < still_wanted and buffer.may_issue(served_version)
