import random
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.planner.cost import Workload, default_rates
from llamarl.planner.devices import find_device
from llamarl.planner.lengths import Lengths
from llamarl.planner.report import build_page
from llamarl.planner.search import Answer, Limits, Search
from llamarl.planner.shapes import public_shape
from llamarl.planner.simulation import Scenario, Simulation, simulate, simulate_plan
from llamarl.report.page import page_values
from llamarl.report.plan_plots import draw_simulation


def scenario(**changes: Any) -> Scenario:
    base: dict[str, Any] = {
        "generators": 2,
        "slots": 3,
        "step_seconds": lambda active, cached: 1.0,
        "train_seconds": 5.0,
        "sync_seconds": 1.0,
        "completions": 4,
        "prompt_tokens": 0.0,
        "staleness": 0,
        "steps": 3,
    }
    return Scenario(**{**base, **changes})


# golden


def test_a_synchronous_run_by_hand() -> None:
    # longest of each step, training, publishing: 9 + 5, then 1 + 4 + 5, then 1 + 8 + 5
    found = simulate(scenario(), [1, 9, 2, 3, 4, 4, 4, 4, 8, 1, 1, 1])
    assert found.ends == [14, 24, 38]
    assert found.lags == {0: 1.0}


def test_an_asynchronous_run_by_hand() -> None:
    # steps of 2 s on two slots each: step 0 ends at 2, step 1 at 4; updates at 2-7, 7-12, 12-17
    found = simulate(scenario(staleness=1, slots=2, sync_seconds=0.0, completions=4, steps=3), [2] * 12)
    assert found.ends == [7, 12, 17]
    assert found.lags == {1: 1.0}  # of steps 1 and 2
    assert found.idle["trainer"] == 0.0


def test_a_token_belongs_to_the_version_it_was_sampled_with() -> None:
    # one generator, one slot, completions of 4, training 2, no sync: step 1 is sampled over 4-8, version 1 comes at 6
    one = scenario(generators=1, slots=1, completions=1, steps=3, staleness=1, train_seconds=2.0, sync_seconds=0.0)
    found = simulate(one, [4, 4, 4])
    assert found.ends == [6, 10, 14]
    # step 1 (trained at version 1): tokens of versions 0 0 1 1; step 2 (at version 2): 1 1 2 2
    assert found.lags == {0: 0.5, 1: 0.5}


# reduces to: simpy on the same scenario


class Oracle:
    """The same run as simpy processes, each of which sees its own loop only."""

    def __init__(self, run: Scenario, lengths: Sequence[int]) -> None:
        self.run, self.lengths, self.environment = run, lengths, simpy.Environment()
        self.queue: list[int] = []
        self.held: list[dict[int, float]] = [{} for _ in range(run.generators)]  # number -> decode steps left
        self.bell = [self.environment.event() for _ in range(run.generators)]
        self.left = [run.completions] * run.steps
        self.done = [self.environment.event() for _ in range(run.steps)]
        self.version, self.ends = 0, []  # type: ignore[var-annotated]
        self.published = self.environment.event()

    def solve(self) -> list[float]:
        self.environment.process(self.gate())
        self.environment.process(self.trainer())
        for index in range(self.run.generators):
            self.environment.process(self.generator(index))
        self.environment.run(until=self.done_training)
        return self.ends

    @property
    def done_training(self) -> simpy.Event:
        self._all = self.environment.event()
        return self._all

    def gate(self) -> Generator[simpy.Event, Any, None]:
        for step in range(self.run.steps):
            while step > self.version + self.run.staleness:
                yield self.published
            first = step * self.run.completions
            self.queue += range(first, first + self.run.completions)
            self.deal()

    def deal(self) -> None:
        while self.queue:
            index = min(range(self.run.generators), key=lambda each: (len(self.held[each]), each))
            if len(self.held[index]) >= self.run.slots:
                return
            number = self.queue.pop(0)
            self.settle(index)
            self.held[index][number] = float(self.lengths[number])
            if not self.bell[index].triggered:
                self.bell[index].succeed()

    since: dict[int, float]

    def settle(self, index: int) -> None:
        """Takes off what was decoded since the generator was last looked at."""
        held, now = self.held[index], self.environment.now
        if held:
            done = (now - self.since[index]) / self.run.step_seconds(len(held), 0.0)
            for number in held:
                held[number] -= done
        self.since[index] = now

    def generator(self, index: int) -> Generator[simpy.Event, Any, None]:
        while True:
            held = self.held[index]
            self.bell[index] = self.environment.event()
            if not held:
                yield self.bell[index]
                continue
            number = min(held, key=lambda each: held[each])
            wait = self.environment.timeout(held[number] * self.run.step_seconds(len(held), 0.0))
            yield wait | self.bell[index]
            if wait.processed:
                self.settle(index)
                del held[number]
                step = number // self.run.completions
                self.left[step] -= 1
                if not self.left[step]:
                    self.done[step].succeed()
                self.deal()

    def trainer(self) -> Generator[simpy.Event, Any, None]:
        for step in range(self.run.steps):
            yield self.done[step]
            yield self.environment.timeout(self.run.train_seconds)
            self.ends.append(self.environment.now)
            self.environment.process(self.publish())
        self._all.succeed()

    def publish(self) -> Generator[simpy.Event, Any, None]:
        yield self.environment.timeout(self.run.sync_seconds)
        self.version += 1
        bell, self.published = self.published, self.environment.event()
        bell.succeed()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 3),
    st.floats(0.1, 200.0),
    st.floats(0.0, 5.0),
    st.integers(0, 10_000),
)
def test_as_simpy_on_the_same_scenario(
    generators: int, slots: int, completions: int, staleness: int, train: float, sync: float, seed: int
) -> None:
    one = scenario(
        generators=generators,
        slots=slots,
        completions=completions,
        staleness=staleness,
        train_seconds=train,
        sync_seconds=sync,
        steps=8,
        step_seconds=lambda active, cached: 0.5 + 0.1 * active,
    )
    rng = random.Random(seed)
    # no two end together: then the order of events would be a matter of taste
    lengths = [rng.uniform(1, 60) for _ in range(completions * one.steps)]
    oracle = Oracle(one, lengths)  # type: ignore[arg-type]
    oracle.since = dict.fromkeys(range(generators), 0.0)
    assert simulate(one, lengths).ends == pytest.approx(oracle.solve(), rel=1e-9)  # type: ignore[arg-type]


# invariance


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4), st.integers(1, 6), st.integers(0, 1000))
def test_no_token_is_older_than_the_bound(staleness: int, slots: int, seed: int) -> None:
    rng = random.Random(seed)
    one = scenario(staleness=staleness, slots=slots, steps=12, train_seconds=rng.uniform(0.1, 50))
    found = simulate(one, [rng.randint(1, 40) for _ in range(48)])
    assert set(found.lags) <= set(range(staleness + 1))
    assert sum(found.lags.values()) == pytest.approx(1.0)
    assert all(0.0 <= share <= 1.0 for share in found.idle.values())


def plan_and_simulation(devices: int, staleness: int) -> tuple[Answer, Simulation]:
    workload = Workload(64, 8, Lengths(512, 2048), 128.0)
    one = Search(public_shape("llama-3.1-8b"), find_device("h100"), workload, Limits(staleness))
    answer = one.find(devices)
    assert isinstance(answer, Answer)
    found = simulate_plan(answer.best, one.shape, one.device, default_rates(), workload, staleness=staleness, steps=18)
    return answer, found


@pytest.mark.parametrize(("devices", "staleness"), [(16, 0), (16, 1), (16, 4), (64, 1)])
def test_the_cost_model_agrees(devices: int, staleness: int) -> None:
    answer, found = plan_and_simulation(devices, staleness)
    assert found.step_seconds == pytest.approx(answer.best.step_seconds, rel=0.15)


def test_the_figure(tmp_path: Path) -> None:
    _, found = plan_and_simulation(16, 1)
    path = tmp_path / "simulation.png"
    draw_simulation(path, "a run", found.spans, found.window, found.ends, found.lags, found.idle)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_the_trainer_first_and_only_some_of_many_generators() -> None:
    found = simulate(scenario(generators=20, completions=60, steps=6, staleness=1), [2] * 360)
    page = page_values(build_page("a run", found))
    timeline = page["parts"][0]["parts"][1]["values"]
    assert timeline["executors"] == ["trainer", *(f"generator-{number}" for number in range(12))]
    assert [step for step, _ in timeline["steps"]] == [1, 2, 3, 4, 5, 6]
    assert "The first 12 of 20 generators are drawn." in page["parts"][0]["parts"][0]["text"]
    lags = page["parts"][1]["parts"][0]
    assert [row["dots"][0]["value"] for row in lags["rows"]] == pytest.approx(list(found.lags.values()), abs=1e-5)
