"""The mixture of judges: all judges of one task, run together on every group, with deadlines, retries and counters.

    panel = JudgePanel([correct, concise], weights={"correct": 1.0, "concise": 0.2})
    samples = await panel.judge_group(prompt, completions)
    samples[0].reward, samples[0].verdicts["correct"].reason

Judges reward, constrain or only watch (`roles`); `combine` says how their verdicts make a sample's reward and whether
it is satisfied. A judge that is late, raises or answers nonsense yields failed verdicts, never numbers; a sample with a
failed verdict of a weighted judge has no reward. `JudgeError` is retried first. A judge that fails 64 samples in a row
is broken: the panel raises, unless the judge only watches.
"""

import asyncio
import functools
import logging
import math
import random
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError, JudgeError, describe
from llamarl.core.protocols import CheckingJudge, Judge, info_of
from llamarl.core.records import Completion, Prompt, Sample, Status, Verdict
from llamarl.core.seeds import derive_seed
from llamarl.judges.canary import CanaryWatch
from llamarl.judges.combine import ROLES, Role, check_weights, mixture

_log = logging.getLogger(__name__)


class JudgePanel:
    """Runs its judges concurrently on each group and combines their verdicts into rewards."""

    def __init__(
        self,
        judges: Sequence[Judge],
        weights: Mapping[str, float] | None = None,
        *,
        roles: Mapping[str, Role] | None = None,
        shares: Mapping[str, float] | None = None,
        timeout_seconds: float | Mapping[str, float | None] | None = 60.0,
        max_retries: int = 2,
        retry_seconds: float = 0.5,
        max_failures_in_row: int = 64,
        max_unscored: float = 0.2,
        unscored_window: int = 256,
        canaries: Mapping[str, CanaryWatch] | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        """Describes the panel; judges are shared, not copied.

        Args:
            judges: with different names.
            weights: of reward judges by name, at least 0, default 1; a judge of weight 0 only watches.
            roles: by judge name, default `reward`. Without any reward judge the reward is 1 where every constraint is
                met, else 0.
            shares: of the groups that a judge sees, by name, default 1; it abstains from the others. Less is for judges
                that only watch.
            timeout_seconds: deadline of one judge on one group, retries included; or by judge name. None: the judge
                has its own (`ProcessJudge`).
            max_retries: further attempts after a `JudgeError`.
            retry_seconds: pause before the first retry; doubles, times a random factor in [0.5, 1.5).
            max_failures_in_row: after so many failed samples without a scored one, the judge counts as broken.
            max_unscored: share of samples without a reward above which the panel `is_degraded`.
            unscored_window: number of last samples that this share is taken of.
            canaries: by judge name, completions whose verdict is known (`check_canaries`).
            jitter: randomness of the pauses.

        Raises:
            ConfigError: no judge, equal names, a weight, role, share, time-out or canaries for a judge that is not
                there, a bad weight, role or share, nothing that makes a reward.
        """
        names = [judge.name for judge in judges]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"judges: {names}; need at least one, with different names")
        _check_names("weights", weights or {}, names)
        if isinstance(timeout_seconds, Mapping):
            _check_names("timeout_seconds", timeout_seconds, names)
        _check_names("canaries", canaries or {}, names)
        _check_names("shares", shares or {}, names)
        self.judges = tuple(judges)
        self.roles = _roles(names, roles or {})
        self.constraints = tuple(name for name in names if self.roles[name] == "constraint")
        for judge in judges:
            if judge.name in self.constraints and not info_of(judge).can_pass:
                raise ConfigError(
                    f"judges: {judge.name!r} is a constraint, but only scores; give it a threshold from which on a "
                    "completion passes"
                )
        weights = dict.fromkeys(names, 1.0) | dict(weights or {})
        self.weights = {name: weight for name, weight in weights.items() if self.roles[name] == "reward"}
        if self.weights or not self.constraints:
            check_weights(self.weights)
        self._shares = {name: share for name, share in (shares or {}).items() if share < 1.0}
        for name in self._shares:
            if self.decides(name):
                raise ConfigError(
                    f"judges: {name!r} sees a share of {self._shares[name]:g}, but decides about every sample; use "
                    "role 'watch' or a share of 1"
                )
        self._timeouts = _by_name(timeout_seconds, names)
        self._max_retries, self._retry_seconds = max_retries, retry_seconds
        self._max_failures, self._max_unscored = max_failures_in_row, max_unscored
        self._canaries = dict(canaries or {})
        self._jitter = jitter or random.Random()
        self._tallies = {name: Tally() for name in names}
        self._unscored: deque[bool] = deque(maxlen=unscored_window)
        self._satisfied: list[bool] = []
        self._broken: set[str] = set()

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Asks the judges that can tell (those with a `check` method) whether the prompts hold what they need.

        Raises:
            ConfigError: naming the prompt, its task, the judge and what is missing.
            DataError: a row names a judge that the panel lacks, or only such as decide nothing.
        """
        checked = [judge for judge in self.judges if isinstance(judge, CheckingJudge)]
        for prompt in prompts:
            chosen = self.judges_for(prompt)
            for judge in checked:
                if judge.name in chosen:
                    _check_prompt(judge, prompt)
        for judge in checked:
            for canary in self._canaries[judge.name].canaries if judge.name in self._canaries else ():
                _check_prompt(judge, canary.prompt, f"{canary.place}: ")

    def load(self) -> None:
        """Loads models now (of judges with a `load` method), so that the first group's deadline has no share in it."""
        for judge in self.judges:
            if hasattr(judge, "load"):
                judge.load()

    async def check_canaries(self, *, during_run: bool = False) -> list[str]:
        """Lets the judges that have canaries judge them. Counts in no metric but `judge/<name>/canary_error_rate`.

        Args:
            during_run: only those judges that have judged enough groups since the last time, and only what went wrong
                since; a judge that fails now is known by other signs.

        Returns:
            A sentence on each canary that got a wrong verdict, or none.
        """
        found: list[str] = []
        for judge in self.judges:
            watch = self._canaries.get(judge.name)
            if watch is None or (during_run and not watch.is_due):
                continue
            wrong, unjudged = await watch.look(judge.name, functools.partial(self.verdicts_of, judge))
            found += wrong if during_run else [*wrong, *unjudged]
        return found

    async def judge_group(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Sample, ...]:
        """One sample per completion, in order.

        Where the row names its judges (`prompt.info["judges"]`), the others abstain; if it names constraints only, its
        reward is whether they are met.

        Raises:
            JudgeError: a judge that decides something failed its last 64 samples.
            DataError: the row names a judge that the panel lacks, or only such as decide nothing.
        """
        chosen = self.judges_for(prompt)
        weights = {name: weight for name, weight in self.weights.items() if weight and name in chosen}
        constraints = [name for name in self.constraints if name in chosen]
        columns = await asyncio.gather(*(self._ask(judge, prompt, completions, chosen) for judge in self.judges))
        samples = []
        for completion, *verdicts in zip(completions, *columns, strict=True):
            by_name = {judge.name: verdict for judge, verdict in zip(self.judges, verdicts, strict=True)}
            reward, is_satisfied = mixture(by_name, weights, constraints)
            samples.append(Sample(completion, by_name, reward, is_satisfied=is_satisfied))
        for watch in self._canaries.values():
            watch.num_groups += 1
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
        """Whether too many samples go unscored, judged from a quarter of a window on: training should pause."""
        return len(self._unscored) * 4 >= (self._unscored.maxlen or 0) and self.unscored_fraction > self._max_unscored

    def metrics(self) -> dict[str, float | None]:
        """`judge/<name>/...` since the last call and `judge/unscored_frac` of the window; None: nothing to count.

        With constraints also `judge/<name>/violation_rate` of each and `judge/satisfied_frac`, the share of samples
        that meet all of them, of those where it can be told. With canaries `judge/<name>/canary_error_rate`, the share
        judged wrongly when they were last looked at, of those judged.
        """
        metrics: dict[str, float | None] = {"judge/unscored_frac": self.unscored_fraction}
        if self.constraints:
            metrics["judge/satisfied_frac"] = _ratio(sum(self._satisfied), len(self._satisfied))
            self._satisfied = []
        for judge in self.judges:
            tally = self._tallies[judge.name]
            values = {**(judge.metrics() if hasattr(judge, "metrics") else {}), **tally.metrics()}
            if judge.name in self.constraints:
                values["violation_rate"] = tally.violation_rate
            if judge.name in self._canaries:
                values["canary_error_rate"] = self._canaries[judge.name].error_rate
            metrics |= {f"judge/{judge.name}/{key}": value for key, value in values.items()}
            self._tallies[judge.name] = tally.restarted()
        return metrics

    def close(self) -> None:
        """Closes the judges that can be closed."""
        for judge in self.judges:
            if hasattr(judge, "close"):
                judge.close()

    def judges_for(self, prompt: Prompt) -> frozenset[str]:
        """Names of the judges that this row wants."""
        wanted = frozenset(prompt.info.get("judges") or self._tallies)
        for name in wanted - self._tallies.keys():
            raise DataError(f"prompt {prompt.id!r}: no judge {name!r}.{suggest(str(name), list(self._tallies))}")
        if not any(self.decides(name) for name in wanted):
            raise DataError(
                f"prompt {prompt.id!r}: its judges {sorted(wanted)} only watch; name one that rewards or constrains too"
            )
        return wanted

    def decides(self, name: str) -> bool:
        """Whether anything depends on what the judge says."""
        return self.roles[name] == "constraint" or bool(self.weights.get(name))

    async def _ask(
        self, judge: Judge, prompt: Prompt, completions: Sequence[Completion], chosen: frozenset[str]
    ) -> list[Verdict]:
        if judge.name not in chosen:
            return [Verdict.abstained("the row names other judges")] * len(completions)
        if not _is_drawn(self._shares.get(judge.name, 1.0), judge.name, prompt, completions):
            return [Verdict.abstained("not drawn")] * len(completions)
        clock = asyncio.get_running_loop().time
        started = clock()
        verdicts = await self.verdicts_of(judge, prompt, completions)
        self._tallies[judge.name].add(verdicts, clock() - started)
        return verdicts

    async def verdicts_of(self, judge: Judge, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """What one judge says, one verdict per completion, whatever it does. Counts in no metric."""
        try:
            work = self._with_retries(judge, prompt, completions)
            verdicts: list[Verdict] = await self._before_deadline(work, self._timeouts[judge.name])
            problem = _nonsense(verdicts, len(completions))
        except _DeadlineError as error:
            problem = str(error)
        except asyncio.CancelledError:
            if (current := asyncio.current_task()) is None or current.cancelling():
                raise  # somebody ends the run
            problem = "cancelled itself"  # an HTTP client that gives up, say
        except Exception as error:  # the border to the judge: its fault is recorded, not raised
            problem = describe(error)
        if problem:
            verdicts = [Verdict.failed(problem)] * len(completions)
        return [_decided(verdict) for verdict in verdicts] if judge.name in self.constraints else verdicts

    async def _with_retries(self, judge: Judge, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        for attempt in range(self._max_retries):
            try:
                return await judge.judge(prompt, completions)
            except JudgeError:
                await asyncio.sleep(self._retry_seconds * 2**attempt * self._jitter.uniform(0.5, 1.5))
        return await judge.judge(prompt, completions)

    async def _before_deadline(self, work: Any, timeout_seconds: float | None) -> Any:
        """Awaits `work`; at the deadline gives it up, without waiting for it to notice, and raises `TimeoutError`."""
        if timeout_seconds is None:
            return await work
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=timeout_seconds)
            if task.done():
                return task.result()
            raise _DeadlineError(f"timed out after {timeout_seconds:g} s")
        finally:
            task.cancel()
            task.add_done_callback(_forget)

    def _raise_if_broken(self) -> None:
        for name, tally in self._tallies.items():
            if tally.failures_in_row < self._max_failures:
                self._broken.discard(name)
                continue
            text = f"judge '{name}' failed its last {tally.failures_in_row} samples; last: {tally.last_failure}"
            if self.decides(name):
                raise JudgeError(text)
            if name not in self._broken:
                self._broken.add(name)
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

    def restarted(self) -> "Tally":
        """Zeros, but for what tells a broken judge."""
        return Tally(failures_in_row=self.failures_in_row, last_failure=self.last_failure)


def _is_drawn(share: float, name: str, prompt: Prompt, completions: Sequence[Completion]) -> bool:
    """Whether a judge sees this group: by a hash of it, so that a run that is repeated draws the same."""
    if share >= 1.0:
        return True
    texts = "\x1f".join(completion.text for completion in completions)
    return derive_seed("judge sees", name, prompt.id, texts) % 2**32 < share * 2**32


def quantile(values: Collection[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed; None of no values."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None


class _DeadlineError(TimeoutError):
    """The panel's own deadline."""


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _nonsense(verdicts: Any, count: int) -> str:
    """What is wrong with a judge's answer; empty if nothing."""
    if not isinstance(verdicts, list | tuple) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
        return f"returned {type(verdicts).__name__}; a judge returns a list of Verdict"
    return "" if len(verdicts) == count else f"returned {len(verdicts)} verdicts for {count} completions"


def _check_prompt(judge: Any, prompt: Prompt, where: str = "") -> None:
    try:
        judge.check(prompt)
    except (ConfigError, DataError) as error:
        place = f"prompt {prompt.id!r}"  # some judges name it themselves
        problem = str(error).removeprefix(f"{place}: ")
        raise ConfigError(f"{where}{place} (task {prompt.task!r}), judge '{judge.name}': {problem}") from None


def _roles(names: Sequence[str], given: Mapping[str, Role]) -> dict[str, Role]:
    """The role of every judge."""
    _check_names("roles", given, names)
    for name, role in given.items():
        if role not in ROLES:
            raise ConfigError(f"role of judge '{name}': got {role!r}.{suggest(str(role), list(ROLES))}")
    return {name: given.get(name, "reward") for name in names}


def _decided(verdict: Verdict) -> Verdict:
    """A constraint's verdict; failed where it scores without saying pass or fail."""
    if verdict.status is Status.SCORED and verdict.passed is None:
        return Verdict.failed("a constraint judge says pass or fail, this one gave only a score; return a bool")
    return verdict


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
