"""The mixture of judges: all judges of one task, run together on every group, with deadlines, retries and counters.

    panel = JudgePanel([correct, concise], weights={"correct": 1.0, "concise": 0.2})
    samples = await panel.judge_group(prompt, completions)
    samples[0].reward, samples[0].verdicts["correct"].reason

A judge that is late, raises, or answers nonsense yields failed verdicts, never numbers; a sample with a failed verdict
of a weighted judge has no reward (`combine`). `JudgeError` is retried first. A judge that fails 64 samples in a row is
broken, and the panel raises.
"""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError, JudgeError
from llamarl.core.protocols import Clock, Judge
from llamarl.core.records import Completion, Prompt, Sample, Status, Verdict
from llamarl.judges.combine import check_weights, combine
from llamarl.judges.function import describe


class SystemClock:
    """The machine's time."""

    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Waits."""
        return asyncio.sleep(seconds)


class JudgePanel:
    """Runs its judges concurrently on each group and combines their verdicts into rewards."""

    def __init__(
        self,
        judges: Sequence[Judge],
        weights: Mapping[str, float] | None = None,
        *,
        timeout_seconds: float | Mapping[str, float | None] | None = 60.0,
        max_retries: int = 2,
        retry_seconds: float = 0.5,
        max_failures_in_row: int = 64,
        max_unscored: float = 0.2,
        unscored_window: int = 256,
        clock: Clock | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        """Describes the panel; judges are shared, not copied.

        Args:
            judges: with different names.
            weights: by judge name, at least 0, default 1; a judge of weight 0 only watches.
            timeout_seconds: deadline of one judge on one group, retries included; or by judge name. None: the judge
                has its own (`ProcessJudge`).
            max_retries: further attempts after a `JudgeError`.
            retry_seconds: pause before the first retry; doubles, times a random factor in [0.5, 1.5).
            max_failures_in_row: after so many failed samples without a scored one, the judge counts as broken.
            max_unscored: share of samples without a reward above which the panel `is_degraded`.
            unscored_window: number of last samples that this share is taken of.
            clock: time, for deadlines and pauses.
            jitter: randomness of the pauses.

        Raises:
            ConfigError: no judge, equal names, a weight or time-out for a judge that is not there, a bad weight.
        """
        names = [judge.name for judge in judges]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"judges: {names}; need at least one, with different names")
        _check_names("weights", weights or {}, names)
        if isinstance(timeout_seconds, Mapping):
            _check_names("timeout_seconds", timeout_seconds, names)
        self.judges = tuple(judges)
        self.weights = dict.fromkeys(names, 1.0) | dict(weights or {})
        check_weights(self.weights)
        self._timeouts = _by_name(timeout_seconds, names)
        self._max_retries, self._retry_seconds = max_retries, retry_seconds
        self._max_failures, self._max_unscored = max_failures_in_row, max_unscored
        self._clock: Clock = clock or SystemClock()
        self._jitter = jitter or random.Random()
        self._tallies = {name: Tally() for name in names}
        self._unscored: deque[bool] = deque(maxlen=unscored_window)

    async def judge_group(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Sample, ...]:
        """One sample per completion, in order.

        Where the row names its judges (`prompt.info["judges"]`), the others abstain.

        Raises:
            JudgeError: a judge failed its last 64 samples.
            DataError: the row names a judge that the panel lacks.
        """
        chosen = self._chosen(prompt)
        columns = await asyncio.gather(*(self._ask(judge, prompt, completions, chosen) for judge in self.judges))
        samples = []
        for completion, *verdicts in zip(completions, *columns, strict=True):
            by_name = {judge.name: verdict for judge, verdict in zip(self.judges, verdicts, strict=True)}
            samples.append(Sample(completion, by_name, combine(by_name, self.weights)))
        self._unscored.extend(sample.reward is None for sample in samples)
        self._raise_if_broken()
        return tuple(samples)

    @property
    def unscored_fraction(self) -> float:
        """Share of the last samples (the window) that have no reward."""
        return sum(self._unscored) / len(self._unscored) if self._unscored else 0.0

    @property
    def is_degraded(self) -> bool:
        """Whether too many samples go unscored, judged from a quarter of a window on: training should pause."""
        return len(self._unscored) * 4 >= (self._unscored.maxlen or 0) and self.unscored_fraction > self._max_unscored

    def metrics(self) -> dict[str, float | None]:
        """`judge/<name>/...` since the last call and `judge/unscored_frac` of the window; None: nothing to count."""
        metrics: dict[str, float | None] = {"judge/unscored_frac": self.unscored_fraction}
        for judge in self.judges:
            own = self._tallies[judge.name].drain()
            logged = judge.metrics() if hasattr(judge, "metrics") else {}
            metrics |= {f"judge/{judge.name}/{key}": value for key, value in {**logged, **own}.items()}
        return metrics

    def close(self) -> None:
        """Closes the judges that can be closed."""
        for judge in self.judges:
            if hasattr(judge, "close"):
                judge.close()

    def _chosen(self, prompt: Prompt) -> frozenset[str]:
        """Names of the judges that this row wants."""
        wanted = frozenset(prompt.info.get("judges") or self._tallies)
        for name in wanted - self._tallies.keys():
            raise DataError(f"prompt {prompt.id!r}: no judge {name!r}.{suggest(str(name), list(self._tallies))}")
        return wanted

    async def _ask(
        self, judge: Judge, prompt: Prompt, completions: Sequence[Completion], chosen: frozenset[str]
    ) -> list[Verdict]:
        if judge.name not in chosen:
            return [Verdict.abstained("the row names other judges")] * len(completions)
        started = self._clock.now()
        try:
            work = self._with_retries(judge, prompt, completions)
            verdicts: list[Verdict] = await self._before_deadline(work, self._timeouts[judge.name])
            problem = _nonsense(verdicts, len(completions))
        except _DeadlineError as error:
            problem = str(error)
        except Exception as error:  # the border to the judge: its fault is recorded, not raised
            problem = describe(error)
        if problem:
            verdicts = [Verdict.failed(problem)] * len(completions)
        self._tallies[judge.name].add(verdicts, self._clock.now() - started)
        return verdicts

    async def _with_retries(self, judge: Judge, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        for attempt in range(self._max_retries):
            try:
                return await judge.judge(prompt, completions)
            except JudgeError:
                await self._clock.sleep(self._retry_seconds * 2**attempt * self._jitter.uniform(0.5, 1.5))
        return await judge.judge(prompt, completions)

    async def _before_deadline(self, work: Any, timeout_seconds: float | None) -> Any:
        """Awaits `work`; at the deadline gives it up, without waiting for it to notice, and raises `TimeoutError`."""
        task = asyncio.ensure_future(work)
        if timeout_seconds is None:
            return await task
        timer = asyncio.ensure_future(self._clock.sleep(timeout_seconds))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _DeadlineError(f"timed out after {timeout_seconds:g} s")
        finally:
            timer.cancel()
            task.cancel()
            task.add_done_callback(_forget)

    def _raise_if_broken(self) -> None:
        for name, tally in self._tallies.items():
            if tally.failures_in_row >= self._max_failures:
                raise JudgeError(
                    f"judge '{name}' failed its last {tally.failures_in_row} samples; last: {tally.last_failure}"
                )


@dataclass
class Tally:
    """Counters of one judge."""

    scores: list[float] = field(default_factory=list)
    passes: list[bool] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    """Seconds of each call on a group, retries included."""
    num_abstained: int = 0
    num_failed: int = 0
    failures_in_row: int = 0
    """Failed verdicts since the last scored one; abstentions say nothing of a judge's health."""
    last_failure: str = ""

    def add(self, verdicts: Sequence[Verdict], seconds: float) -> None:
        """Counts the verdicts of one group."""
        self.latencies.append(seconds)
        for verdict in verdicts:
            if verdict.status is Status.FAILED:
                self.num_failed += 1
                self.failures_in_row += 1
                self.last_failure = verdict.reason
            elif verdict.score is None:
                self.num_abstained += 1
            else:
                self.failures_in_row = 0
                self.scores.append(verdict.score)
            if verdict.passed is not None:
                self.passes.append(verdict.passed)

    def drain(self) -> dict[str, float | None]:
        """The metrics, and a fresh start for all but `failures_in_row`.

        `mean` is over `count` scored verdicts, `pass_rate` over those that say pass or not, the other rates over all.
        """
        total = len(self.scores) + self.num_abstained + self.num_failed
        metrics = {
            "mean": _mean(self.scores),
            "count": float(len(self.scores)),
            "pass_rate": _mean(self.passes),
            "abstain_rate": self.num_abstained / total if total else None,
            "error_rate": self.num_failed / total if total else None,
            "latency_p95": quantile(self.latencies, 0.95),
        }
        self.scores, self.passes, self.latencies, self.num_abstained, self.num_failed = [], [], [], 0, 0
        return metrics


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed; None of no values."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None


class _DeadlineError(TimeoutError):
    """The panel's own deadline."""


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _nonsense(verdicts: Any, count: int) -> str:
    """What is wrong with a judge's answer; empty if nothing."""
    if not isinstance(verdicts, list | tuple) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
        return f"returned {type(verdicts).__name__}; a judge returns a list of Verdict"
    return "" if len(verdicts) == count else f"returned {len(verdicts)} verdicts for {count} completions"


def _check_names(what: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in given:
        if name not in names:
            raise ConfigError(f"{what}: no judge named {name!r}.{suggest(name, list(names))}")


def _by_name(timeout: float | Mapping[str, float | None] | None, names: Sequence[str]) -> dict[str, float | None]:
    if isinstance(timeout, Mapping):
        return {name: timeout.get(name) for name in names}
    return dict.fromkeys(names, timeout)


def _forget(task: "asyncio.Future[Any]") -> None:
    """Takes the exception of a task that nobody awaits any more."""
    if not task.cancelled():
        task.exception()
