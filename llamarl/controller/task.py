"""One task of a run, as the loop sees it: what to ask, how to learn from the answers, and how far it has come."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llamarl.controller.buffer import WorkBuffer
from llamarl.controller.schedule import Schedule
from llamarl.controller.watch import HackingWatch, WatchConfig
from llamarl.core.protocols import Algorithm
from llamarl.core.records import Completion, Prompt


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
    weight: float = 1.0
    """Factor of its gradient in the step's sum."""
    watch: HackingWatch = field(default_factory=lambda: HackingWatch(WatchConfig(), {}))
    """Rings when the reward rises and what it stands for falls."""
    baselines: Mapping[str, Completion] = field(default_factory=dict)
    """By prompt id: a response that is not sampled, which the algorithm may fall back on."""

    def open(self, schedule: Schedule, version: int) -> None:
        """Starts the account of what is under way, at policy version `version`."""
        self.buffer = WorkBuffer(self.prompts_per_step, schedule.max_staleness, schedule.lookahead, version)
        self.num_issued = 0

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
