"""The mixture of judges: all judges of one task, run together on every group, with deadlines, retries and counters.

    panel = JudgePanel([Seat(correct), Seat(concise, weight=0.2)])
    samples = await panel.judge_group(prompt, completions)
    samples[0].reward, samples[0].verdicts["correct"].reason

Judges reward, constrain or only watch (`Seat.role`); `combine` says how their verdicts make a sample's reward and
whether it is satisfied. A judge that is late, raises or answers nonsense yields failed verdicts, never numbers; a
sample with a failed verdict of a weighted judge has no reward. `JudgeError` is retried first. A judge that fails 64
samples in a row is broken: the panel raises, unless the judge only watches.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError, JudgeError, boundary
from llamarl.core.judge import Judge
from llamarl.core.records import Completion, Prompt, Sample, Status, Verdict
from llamarl.core.seeds import derive_seed
from llamarl.functional.statistics import quantile
from llamarl.judges import calls
from llamarl.judges.combine import mixture
from llamarl.judges.seat import Seat

_log = logging.getLogger(__name__)


class JudgePanel:
    """Runs its judges concurrently on each group and combines their verdicts into rewards."""

    def __init__(
        self,
        seats: Sequence[Seat],
        *,
        max_retries: int = 2,
        retry_seconds: float = 0.5,
        max_failures_in_row: int = 64,
        max_unscored: float = 0.2,
        unscored_window: int = 256,
        jitter: random.Random | None = None,
    ) -> None:
        """Seats the judges, which are shared, not copied.

        Args:
            seats: judges with different names. Without any reward judge the reward is 1 where every constraint is met,
                else 0.
            max_retries: further attempts after a `JudgeError`.
            retry_seconds: pause before the first retry; doubles, times a random factor in [0.5, 1.5).
            max_failures_in_row: after so many failed samples without a scored one, the judge counts as broken.
            max_unscored: share of samples without a reward above which the panel `is_degraded`.
            unscored_window: number of last samples that this share is taken of.
            jitter: randomness of the pauses.

        Raises:
            ConfigError: no judge, equal names, or nothing that makes a reward.
        """
        names = [seat.name for seat in seats]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"judges: {names}; need at least one, and give each a different 'name'")
        weights = {seat.name: seat.weight for seat in seats if seat.role == "reward"}
        has_constraints = any(seat.role == "constraint" for seat in seats)
        if not any(weights.values()) and (weights or not has_constraints):
            raise ConfigError(f"weights: {weights}; at least one judge needs a positive weight")
        self.seats = tuple(seats)
        self.num_groups = 0
        """Groups judged so far."""
        self._max_retries, self._retry_seconds = max_retries, retry_seconds
        self._max_failures, self._max_unscored = max_failures_in_row, max_unscored
        self._jitter = jitter or random.Random()
        self._tallies = {name: Tally() for name in names}
        self._unscored: deque[bool] = deque(maxlen=unscored_window)
        self._satisfied: list[bool] = []
        self._broken: set[str] = set()
        self._unmeasured: set[str] = set()
        """Judges whose own metrics failed, each logged once."""

    @property
    def judges(self) -> tuple[Judge, ...]:
        """The judges, in the order of their seats."""
        return tuple(seat.judge for seat in self.seats)

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Asks the judges whether the prompts hold what they need, and the prompts of their canaries too.

        Raises:
            ConfigError: naming the prompt, its task, the judge and what is missing.
            DataError: a row names a judge that the panel lacks, or only such as decide nothing.
        """
        for prompt in prompts:
            chosen = self.judges_for(prompt)
            for judge in self.judges:
                if judge.name in chosen:
                    calls.check_prompt(judge, prompt)
        for seat in self.seats:
            for canary in seat.canaries:
                calls.check_prompt(seat.judge, canary.prompt, f"{canary.place}: ")

    def load(self) -> None:
        """Loads the judges' models now, so that the first group's deadline has no share in it.

        Raises:
            JudgeError, ConfigError: naming the judge that does not load.
            MissingDependencyError: a judge needs a package.
        """
        for judge in self.judges:
            calls.load(judge)

    async def judge_group(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Sample, ...]:
        """Returns one sample per completion, in order.

        Where the row names its judges (`prompt.info["judges"]`), the others abstain; if it names constraints only, its
        reward is whether they are met.

        Raises:
            JudgeError: a judge that decides something failed its last 64 samples.
            DataError: the row names a judge that the panel lacks, or only such as decide nothing.
        """
        chosen = self.judges_for(prompt)
        weights = {seat.name: seat.weight for seat in self.seats if seat.reward_weight and seat.name in chosen}
        constraints = [seat.name for seat in self.seats if seat.role == "constraint" and seat.name in chosen]
        columns = await asyncio.gather(*(self._judge(seat, prompt, completions, chosen) for seat in self.seats))
        samples = []
        for completion, *verdicts in zip(completions, *columns, strict=True):
            by_name = dict(zip(self._tallies, verdicts, strict=True))
            reward, is_satisfied = mixture(by_name, weights, constraints)
            samples.append(Sample(completion, by_name, reward, is_satisfied=is_satisfied))
        self.num_groups += 1
        self._unscored.extend(sample.reward is None for sample in samples)
        self._satisfied.extend(sample.is_satisfied for sample in samples if sample.is_satisfied is not None)
        self._raise_if_broken()
        return tuple(samples)

    @property
    def unscored_fraction(self) -> float:
        """Share of the last samples (the window) that have no reward."""
        return sum(self._unscored) / len(self._unscored) if self._unscored else 0.0

    @property
    def is_degraded(self) -> bool:
        """True if too many samples go unscored, from a quarter of a window on: training should pause."""
        return len(self._unscored) * 4 >= (self._unscored.maxlen or 0) and self.unscored_fraction > self._max_unscored

    def metrics(self) -> dict[str, float | None]:
        """Returns `judge/<name>/...` since the last call and `judge/unscored_frac` of the window.

        With constraints there are also `judge/<name>/violation_rate` of each and `judge/satisfied_frac`, the share of
        samples that meet all of them, of those where it can be told. A value is None where there is nothing to count.
        A judge whose own `metrics` fail lacks those only, and is logged once.
        """
        metrics: dict[str, float | None] = {"judge/unscored_frac": self.unscored_fraction}
        if any(seat.role == "constraint" for seat in self.seats):
            metrics["judge/satisfied_frac"] = _ratio(sum(self._satisfied), len(self._satisfied))
        self._satisfied = []
        for seat in self.seats:
            tally = self._tallies[seat.name]
            values = {**self._measure(seat.judge), **tally.metrics()}
            if seat.role == "constraint":
                values["violation_rate"] = tally.violation_rate
            metrics |= {f"judge/{seat.name}/{key}": value for key, value in values.items()}
            self._tallies[seat.name] = tally.restart()
        return metrics

    def close(self) -> None:
        """Closes the judges, but for borrowed ones (`Seat.is_borrowed`). One that fails at it is logged."""
        for seat in self.seats:
            if not seat.is_borrowed:
                calls.close(seat.judge)

    async def aclose(self) -> None:
        """Closes the judges as `close` does and waits for their connections to end, before the event loop does."""
        for seat in self.seats:
            if not seat.is_borrowed:
                await calls.aclose(seat.judge)

    def _measure(self, judge: Judge) -> dict[str, float]:
        try:
            return calls.measure(judge)
        except JudgeError as error:
            if judge.name not in self._unmeasured:
                self._unmeasured.add(judge.name)
                _log.warning("judge '%s': %s; the run goes on without these metrics", judge.name, error)
            return {}

    def judges_for(self, prompt: Prompt) -> frozenset[str]:
        """Returns the names of the judges that this row wants."""
        wanted = frozenset(prompt.info.get("judges") or self._tallies)
        for name in wanted - self._tallies.keys():
            raise DataError(f"prompt {prompt.id!r}: no judge {name!r}.{suggest(str(name), list(self._tallies))}")
        if not any(seat.decides for seat in self.seats if seat.name in wanted):
            raise DataError(
                f"prompt {prompt.id!r}: its judges {sorted(wanted)} only watch; name one that rewards or constrains too"
            )
        return wanted

    async def _judge(
        self, seat: Seat, prompt: Prompt, completions: Sequence[Completion], chosen: frozenset[str]
    ) -> list[Verdict]:
        """Returns a judge's verdicts on a group, counted; it abstains from a group that is not for it."""
        if seat.name not in chosen:
            return [Verdict.abstained("the row names other judges")] * len(completions)
        if not _is_drawn(seat, prompt, completions):
            return [Verdict.abstained("not drawn")] * len(completions)
        clock = asyncio.get_running_loop().time
        started = clock()
        verdicts = await self.ask(seat, prompt, completions)
        self._tallies[seat.name].add(verdicts, clock() - started)
        return verdicts

    async def ask(self, seat: Seat, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns what one judge says, one verdict per completion, whatever it does. Counts in no metric."""
        try:
            work = self._with_retries(seat.judge, prompt, completions)
            verdicts: list[Verdict] = await self._before_deadline(work, seat.deadline_seconds)
            problem = _nonsense(verdicts, len(completions))
        except (_DeadlineError, _BrokenError) as error:
            problem = str(error)
        except asyncio.CancelledError:
            if (current := asyncio.current_task()) is None or current.cancelling():
                raise  # somebody ends the run
            problem = "cancelled itself"  # an HTTP client that gives up, say
        if problem:
            verdicts = [Verdict.failed(problem)] * len(completions)
        return [_require_pass(verdict) for verdict in verdicts] if seat.role == "constraint" else verdicts

    async def _with_retries(self, judge: Judge, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        # Whatever the judge raises is named in here: a task would hand its SystemExit on to the event loop.
        for attempt in range(self._max_retries):
            try:
                with boundary(_BrokenError, passing=JudgeError):
                    return await judge.judge(prompt, completions)
            except JudgeError:  # a random pause, or all groups that a server refused would come back at once
                await asyncio.sleep(self._retry_seconds * 2**attempt * self._jitter.uniform(0.5, 1.5))
        with boundary(_BrokenError):
            return await judge.judge(prompt, completions)

    async def _before_deadline(self, work: Any, timeout_seconds: float | None) -> Any:
        """Awaits `work`; at the deadline gives it up, without waiting for it to notice, and raises `TimeoutError`."""
        if timeout_seconds is None:
            return await work
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=timeout_seconds)  # `wait_for` would wait for the cancelled judge, too
            if task.done():
                return task.result()
            raise _DeadlineError(f"timed out after {timeout_seconds:g} s")
        finally:
            task.cancel()
            task.add_done_callback(_forget)

    def _raise_if_broken(self) -> None:
        for seat in self.seats:
            tally = self._tallies[seat.name]
            if tally.failures_in_row < self._max_failures:
                self._broken.discard(seat.name)
                continue
            text = f"judge '{seat.name}' failed its last {tally.failures_in_row} samples; last: {tally.last_failure}"
            if seat.decides:
                raise JudgeError(text)
            if seat.name not in self._broken:
                self._broken.add(seat.name)
                _log.warning("%s; it only watches, so the run goes on without it", text)


@dataclass
class Tally:
    """Counters of one judge."""

    num_scored: int = 0
    score_sum: float = 0.0
    num_passed: int = 0
    num_decided: int = 0
    """Verdicts that say pass or not."""
    num_abstained: int = 0
    num_failed: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=4096))
    """Seconds of the last calls, each on one group with its retries."""
    failures_in_row: int = 0
    """Failed verdicts since the last scored one; abstentions say nothing of a judge's health."""
    last_failure: str = ""

    def add(self, verdicts: Sequence[Verdict], seconds: float) -> None:
        """Counts the verdicts of one group."""
        self.latencies.append(seconds)
        for verdict in verdicts:
            self._add(verdict)

    def _add(self, verdict: Verdict) -> None:
        if verdict.status is Status.FAILED:
            self.num_failed += 1
            self.failures_in_row += 1
            self.last_failure = verdict.reason
        elif verdict.score is None:
            self.num_abstained += 1
        else:
            self.failures_in_row = 0
            self.num_scored += 1
            self.score_sum += verdict.score
            self.num_decided += verdict.passed is not None
            self.num_passed += verdict.passed is True

    def metrics(self) -> dict[str, float | None]:
        """`mean` over `count` scored verdicts, `pass_rate` over those that say pass or not, other rates over all."""
        total = self.num_scored + self.num_abstained + self.num_failed
        return {
            "mean": _ratio(self.score_sum, self.num_scored),
            "count": float(self.num_scored),
            "pass_rate": _ratio(self.num_passed, self.num_decided),
            "abstain_rate": _ratio(self.num_abstained, total),
            "error_rate": _ratio(self.num_failed, total),
            "latency_p95": quantile(self.latencies, 0.95),
        }

    @property
    def violation_rate(self) -> float | None:
        """Share of the verdicts with pass or fail that fail."""
        return _ratio(self.num_decided - self.num_passed, self.num_decided)

    def restart(self) -> "Tally":
        """Returns zeros, but for what tells a broken judge."""
        return Tally(failures_in_row=self.failures_in_row, last_failure=self.last_failure)


def _is_drawn(seat: Seat, prompt: Prompt, completions: Sequence[Completion]) -> bool:
    """Says whether a judge sees this group: by its hash, so that a run that is repeated draws the same."""
    if seat.share >= 1.0:
        return True
    texts = "\x1f".join(completion.text for completion in completions)
    return derive_seed("judge sees", seat.name, prompt.id, texts) % 2**32 < seat.share * 2**32


class _DeadlineError(TimeoutError):
    """The panel's own deadline."""


class _BrokenError(Exception):
    """The judge raised; says what."""


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _nonsense(verdicts: Any, count: int) -> str:
    """Returns what is wrong with a judge's answer; empty if nothing."""
    if not isinstance(verdicts, list | tuple) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
        return f"returned {type(verdicts).__name__}; a judge returns a list of Verdict"
    return "" if len(verdicts) == count else f"returned {len(verdicts)} verdicts for {count} completions"


def _require_pass(verdict: Verdict) -> Verdict:
    """Returns a constraint's verdict; failed where it scores without saying pass or fail."""
    if verdict.status is Status.SCORED and verdict.passed is None:
        return Verdict.failed("a constraint judge says pass or fail, this one gave only a score; return a bool")
    return verdict


def _forget(task: "asyncio.Future[Any]") -> None:
    """Takes the exception of a task that nobody awaits any more."""
    if not task.cancelled():
        task.exception()
