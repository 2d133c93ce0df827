"""Base of the judges that run a classifier on this machine: batching, limits, failures, time."""

import functools
import math
import time
from abc import abstractmethod
from collections.abc import Sequence

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.adapters.base import with_seconds
from llamarl.judges.threads import run_in_thread
from llamarl.models.classifier import TokenIds
from llamarl.scoring.classifier import LazyClassifier


class LocalModelJudge(Judge):
    """Base of `RewardModel` and `ClassifierJudge`. A group is one batch; one forward pass at a time.

    Args:
        classifier: loads where the judge runs, by `load` or on first use.
        name: in verdicts and metrics.
    """

    info = JudgeInfo(version="1", cost_class="local")
    """The version changes with every change of a verdict by the same checkpoint."""

    def __init__(self, classifier: LazyClassifier, name: str) -> None:
        self.name = name
        self._classifier = classifier

    def load(self) -> None:
        """Loads the model now. Raises `CheckpointError` or `ConfigError` where it cannot be had."""
        self._classifier.load()

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion: failed where the model cannot score it."""
        return await run_in_thread(functools.partial(self._judge_all, prompt, completions))

    def _judge_all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        started = time.perf_counter()
        try:
            verdicts = self._verdicts(prompt, completions)
        except (ConfigError, DataError) as error:
            verdicts = [Verdict.failed(str(error))] * len(completions)
        share = (time.perf_counter() - started) / max(1, len(verdicts))
        return [with_seconds(verdict, share) for verdict in verdicts]

    @abstractmethod
    def _verdicts(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Judges; the subclass's own part. Raises `ConfigError` where the prompt lacks what the judge needs."""

    def _logits(self, rows: Sequence[TokenIds]) -> list[list[float] | Verdict]:
        """Returns the logits of each row, or a failed verdict where it is too long or the model broke."""
        problems = [self._classifier.why_too_long(row) for row in rows]
        scored = iter(self._classifier([row for row, problem in zip(rows, problems, strict=True) if problem is None]))
        results: list[list[float] | Verdict] = []
        for problem in problems:
            if problem is None:
                logits = next(scored)
                is_good = all(map(math.isfinite, logits))
                results.append(logits if is_good else Verdict.failed(f"the model's scores are {logits}"))
            else:
                results.append(Verdict.failed(problem))
        return results
