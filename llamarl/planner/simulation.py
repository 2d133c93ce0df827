"""A run in simulated time, event by event, with sampled lengths: who waits for whom, and how old the tokens are.

    gate        step i may be issued once version i - staleness is published
    queue       issued completions wait here, first come first served
    generators  each takes completions into its free slots; its decode step slows down with what it holds
    trainer     trains step i when all its completions are done and step i - 1 is; publishes version i + 1

A generator counts decode steps, not seconds: a completion that begins at step p with l tokens ends at step p + l,
whatever happens meanwhile, and only the time of the generator's next end changes when something joins or leaves.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llamarl.planner.cost import GeneratorCost, Rates, Workload
from llamarl.planner.devices import Device
from llamarl.planner.lengths import Lengths
from llamarl.planner.search import Plan
from llamarl.planner.shapes import ModelShape
from llamarl.report.timeline import Span, Window, utilisation

StepSeconds = Callable[[float, float], float]
"""Seconds of a decode step by completions under way and tokens in their caches."""
TRAINER = "trainer"
_WARM_UP = 3
"""Share of the steps, one in so many, that fill the pipeline and are left out of the figures."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The run that is simulated."""

    generators: int
    slots: int
    """Completions decoded together, on each generator."""
    step_seconds: StepSeconds
    train_seconds: float
    sync_seconds: float
    """Seconds from an update's end until generators have its version."""
    completions: int
    """Seconds of a step."""
    prompt_tokens: float
    staleness: int
    steps: int
    is_shared: bool = False
    """True where generators and trainer share their devices: nothing is decoded while the trainer works."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """The course of a simulated run.

    The first third of the steps, which fill the pipeline, and the last, which empty it, are left out of the figures.
    """

    step_seconds: float
    """Mean time from one update to the next."""
    idle: dict[str, float]
    """Share of the time in which the trainer waited, and in which a generator held nothing, on average."""
    filled: float
    """Mean share of the generators' slots that were taken."""
    lags: dict[int, float]
    """Shares of the trained tokens by the versions they were behind."""
    spans: list[Span]
    """Work of trainer and generators in seconds."""
    window: Window
    """The time that the figures are of."""
    ends: list[float] = field(default_factory=list)
    """Times at which updates ended."""


def simulate_plan(
    plan: Plan,
    shape: ModelShape,
    device: Device,
    rates: Rates,
    workload: Workload,
    *,
    staleness: int,
    steps: int = 30,
    seed: int = 0,
) -> Simulation:
    """Simulates a plan with lengths drawn from the workload's distribution."""
    generators = plan.generators
    cost = GeneratorCost(shape, device, rates, generators.precision, generators.tp)
    prefill = cost.prefill_seconds(workload.prompts * workload.prompt_tokens / generators.replicas)
    scenario = Scenario(
        generators=generators.replicas,
        slots=generators.slots,
        step_seconds=cost.step_seconds,
        train_seconds=plan.trainer.seconds,
        sync_seconds=plan.sync_seconds + prefill,
        completions=workload.completions,
        prompt_tokens=workload.prompt_tokens,
        staleness=0 if plan.mode == "synchronous" else staleness,
        steps=steps,
        is_shared=plan.is_shared,
    )
    return simulate(scenario, draw_lengths(workload.lengths, workload.completions * steps, seed))


def draw_lengths(lengths: Lengths, number: int, seed: int) -> list[int]:
    """Draws lengths in whole tokens at random."""
    rng = random.Random(seed)
    return [max(1, round(lengths.quantile(min(1 - 1e-9, max(1e-9, rng.random()))))) for _ in range(number)]


class _Generator:
    """One generator: what it holds, and the decode step that it has reached."""

    __slots__ = ("at", "begun", "changes", "ends", "position", "scenario", "seconds_a_step", "stamp", "taken")

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.position = self.at = self.begun = self.taken = self.seconds_a_step = 0.0
        self.ends: list[tuple[float, int, float]] = []  # step of its end, number of the completion, step of its begin
        self.changes: list[tuple[float, int]] = [(0.0, 0)]  # step from which a version is in use
        self.stamp = 0

    def advance(self, now: float) -> None:
        """Decodes up to a time."""
        if self.ends:
            self.position += (now - self.at) / self.seconds_a_step
            self.taken += (now - self.at) * len(self.ends)
        self.at = now

    def plan_next(self) -> float:
        """The time of the next end, by what is held now; earlier announcements become void."""
        self.stamp += 1
        number, end = len(self.ends), self.ends[0][0]
        middle = (self.position + end) / 2
        cached = number * (self.scenario.prompt_tokens + middle) - self.begun
        self.seconds_a_step = self.scenario.step_seconds(number, cached)
        return self.at + max(0.0, end - self.position) * self.seconds_a_step

    def begin(self, number: int, length: int) -> None:
        """Takes a completion in."""
        heapq.heappush(self.ends, (self.position + length, number, self.position))
        self.begun += self.position

    def finish(self) -> tuple[int, float, float]:
        """Lets the completion go that ends now: its number, the steps of its begin and end."""
        end, number, begin = heapq.heappop(self.ends)
        self.position = end  # but for rounding it is there
        self.begun -= begin
        return number, begin, end

    def count_versions(self, begin: float, end: float) -> list[tuple[int, float]]:
        """Tokens by version of a completion that was under way between two decode steps."""
        counts = []
        for index in range(len(self.changes) - 1, -1, -1):
            start, version = self.changes[index]
            if end > start:
                counts.append((version, end - max(start, begin)))
                end = max(start, begin)
            if start <= begin:
                break
        return counts


def simulate(scenario: Scenario, lengths: Sequence[int]) -> Simulation:
    """Simulates a run, the i-th completion of which has the i-th length.

    Args:
        scenario: the run.
        lengths: tokens of each completion, `scenario.completions` for each step.
    """
    return _Run(scenario, lengths).run()


class _Run:
    """The state of one simulation. Events are (time, order, kind, generator's index and stamp)."""

    def __init__(self, scenario: Scenario, lengths: Sequence[int]) -> None:
        self.scenario, self.lengths = scenario, lengths
        self.generators = [_Generator(scenario) for _ in range(scenario.generators)]
        self.free = [(0, index) for index in range(scenario.generators)]  # held completions, generator: a heap
        self.events: list[tuple[float, int, str, int, int]] = []
        self.queue: deque[int] = deque()
        self.remaining = [scenario.completions] * scenario.steps
        self.tokens: list[Counter[int]] = [Counter() for _ in range(scenario.steps)]
        self.now, self.order, self.issued, self.trained, self.published = 0.0, 0, 0, 0, 0
        self.is_training = False
        self.spans: list[Span] = []
        self.busy_since: dict[int, float] = {}
        self.ends: list[float] = []
        self.lags: Counter[int] = Counter()

    def run(self) -> Simulation:
        self._issue()
        while self.events:
            self.now, _, kind, index, stamp = heapq.heappop(self.events)
            if kind == "end":
                if stamp == self.generators[index].stamp:
                    self._end(index)
            elif kind == "update":
                self._finish_update()
            else:
                self._publish()
        return self._sum_up()

    def _announce(self, time: float, kind: str, index: int = 0, stamp: int = 0) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, kind, index, stamp))

    def _issue(self) -> None:
        """Issues the steps that the gate lets through, and fills free slots."""
        while self.issued < self.scenario.steps and self.issued <= self.published + self.scenario.staleness:
            first = self.issued * self.scenario.completions
            self.queue.extend(range(first, first + self.scenario.completions))
            self.issued += 1
        self._fill()

    def _fill(self) -> None:
        """Gives waiting completions to the generators that hold the fewest."""
        changed = set()
        while self.queue and self.free:
            held, index = self.free[0]
            generator = self.generators[index]
            if held != len(generator.ends):  # an older entry of the heap
                heapq.heappop(self.free)
                continue
            if held >= self.scenario.slots:
                break
            if index not in changed:
                generator.advance(self.now)
                changed.add(index)
            if not generator.ends:
                self.busy_since[index] = self.now
            number = self.queue.popleft()
            generator.begin(number, self.lengths[number])
            heapq.heapreplace(self.free, (held + 1, index))
        for index in changed:
            self._plan_next(index)

    def _plan_next(self, index: int) -> None:
        generator = self.generators[index]
        if generator.ends:
            time = generator.plan_next()
            self._announce(time, "end", index, generator.stamp)
        else:
            generator.stamp += 1
            self.spans.append(Span(f"generator-{index}", "decode", self.busy_since.pop(index), self.now))

    def _end(self, index: int) -> None:
        generator = self.generators[index]
        generator.advance(self.now)
        number, begin, end = generator.finish()
        step = number // self.scenario.completions
        for version, tokens in generator.count_versions(begin, end):
            self.tokens[step][version] += tokens  # type: ignore[assignment]
        self.remaining[step] -= 1
        heapq.heappush(self.free, (len(generator.ends), index))
        if self.queue:
            self._fill()
        self._plan_next(index) if generator.ends or index in self.busy_since else None
        self._train()

    def _train(self) -> None:
        """Begins the next update if its completions are done and the trainer is free."""
        step = self.trained
        if self.is_training or step >= self.scenario.steps or self.remaining[step]:
            return
        self.is_training = True
        self.spans.append(Span(TRAINER, "train", self.now, self.now + self.scenario.train_seconds))
        if step >= self.scenario.steps // _WARM_UP:
            for version, tokens in self.tokens[step].items():
                self.lags[step - version] += tokens
        self._announce(self.now + self.scenario.train_seconds, "update")

    def _finish_update(self) -> None:
        self.is_training = False
        self.trained += 1
        self.ends.append(self.now)
        self._announce(self.now + self.scenario.sync_seconds, "publish")
        self._train()

    def _publish(self) -> None:
        self.published += 1
        for generator in self.generators:
            generator.advance(self.now)
            generator.changes.append((generator.position, self.published))
            del generator.changes[: -self.scenario.staleness - 3]
        self._issue()

    def _sum_up(self) -> Simulation:
        first = self.scenario.steps // _WARM_UP
        last = max(first + 1, self.scenario.steps - self.scenario.staleness)  # then nothing more is issued
        window = (self.ends[first - 1] if first else 0.0, self.ends[last - 1])
        busy = utilisation(self.spans, window)
        generators = [busy.get(f"generator-{index}", 0.0) for index in range(self.scenario.generators)]
        taken = sum(generator.taken for generator in self.generators)
        total = sum(self.lags.values())
        return Simulation(
            step_seconds=(window[1] - window[0]) / (last - first),
            idle={TRAINER: 1.0 - busy[TRAINER], "generators": 1.0 - sum(generators) / len(generators)},
            filled=taken / self.ends[-1] / self.scenario.generators / self.scenario.slots,
            lags={lag: tokens / total for lag, tokens in sorted(self.lags.items())},
            spans=self.spans,
            window=window,
            ends=self.ends,
        )
