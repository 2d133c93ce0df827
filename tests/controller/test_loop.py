"""The whole loop against scripted executors on virtual time: no threads, no torch, no real waiting."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.controller.guard import CollapseGuard, GuardConfig
from llamarl.controller.ledger import Ledger
from llamarl.controller.loop import Controller, Evaluation
from llamarl.controller.pool import GeneratorPool
from llamarl.controller.pulse import Pulse
from llamarl.controller.restarts import RestartBudget, RevivingHandle
from llamarl.controller.schedule import Schedule
from llamarl.controller.task import RunTask
from llamarl.controller.watch import HackingWatch, WatchConfig
from llamarl.core.errors import CollapseError, ExecutorLostError, JudgeError, StallError
from llamarl.core.protocols import Executor
from llamarl.core.records import Assignment, Completion, Group, Prompt, Sample, TrainSample, Verdict
from llamarl.core.sampling import Sampling
from llamarl.testing import (
    DirectEngine,
    RecordingObserver,
    ScriptedGenerator,
    ScriptedJudge,
    ScriptedTrainer,
    run_virtual,
)

PROMPTS = [Prompt(id=f"p{i}", messages=({"role": "user", "content": str(i)},)) for i in range(40)]


class MeanBaseline:
    name = "mean"
    needs_reference = needs_entropy_grad = trains_zero_advantage = drops_zero_signal = False
    corrects_staleness = True

    def assign(self, groups: list[Group]) -> Assignment:
        samples = (
            TrainSample(c.prompt_ids, c.token_ids, c.logprobs, c.versions, s.reward, group=g.index)
            for g in groups
            for s in g.samples
            if s.reward is not None
            for c in [s.completion]
        )
        return Assignment(tuple(samples), len(groups), {"groups": len(groups)})

    def loss(self, batch: Any) -> Any:
        raise AssertionError("the trainer's side; never called by the loop")


class ScriptedReference(Executor):
    """Says -1 of every token; keeps the rows that it was asked about."""

    def __init__(self) -> None:
        self.rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    async def logprobs(self, rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[float, ...]]:
        self.rows += rows
        return [(-1.0,) * len(tokens) for _, tokens in rows]


@dataclass
class Rig:
    """A run on scripted executors, with whatever a test wants to look at afterwards."""

    schedule: Schedule
    generator: Callable[[], ScriptedGenerator] = ScriptedGenerator
    judge: ScriptedJudge = field(default_factory=ScriptedJudge)
    trainer: ScriptedTrainer = field(default_factory=ScriptedTrainer)
    num_generators: int = 1
    prompts: list[Prompt] = field(default_factory=lambda: PROMPTS)
    algorithm: MeanBaseline = field(default_factory=MeanBaseline)
    tasks: list[RunTask] = field(default_factory=list)
    reference: ScriptedReference | None = None
    guard: GuardConfig = field(default_factory=GuardConfig)
    capacity: int = 8
    ledger: Ledger = field(default_factory=lambda: Ledger(":memory:"))
    observer: RecordingObserver = field(default_factory=RecordingObserver)
    engine: DirectEngine = field(default_factory=DirectEngine)
    saved: list[int] = field(default_factory=list)

    async def run(self, evaluation: Evaluation | None = None) -> None:
        pulse, self.budget = Pulse(), RestartBudget(self.schedule.max_restarts)
        pool = GeneratorPool(
            lambda name: self.engine.spawn(self.generator, name=name),
            [f"generator-{i}" for i in range(self.num_generators)],
            capacity=self.capacity,
            pulse=pulse,
            timeout_seconds=self.schedule.call_seconds,
            budget=self.budget,
            observer=self.observer,
        )

        async def save(version: int, reward: float) -> None:
            self.saved.append(version)

        self.controller = Controller(
            schedule=self.schedule,
            tasks=self.tasks or [self.only_task()],
            encode=lambda prompt: (int(prompt.id[1:]),),
            sampling=Sampling(max_tokens=8),
            trainer=await self.engine.spawn(lambda: self.trainer, name="trainer"),
            judge=await RevivingHandle(
                "judge", lambda: self.engine.spawn(lambda: self.judge, name="judge"), self.budget, self.observer
            ).start(),
            reference=self.reference and await self.engine.spawn(lambda: self.reference, name="reference"),
            pool=pool,
            ledger=self.ledger,
            observer=self.observer,
            guard=CollapseGuard(self.guard),
            pulse=pulse,
            seed=1,
        )
        await self.controller.run(evaluation, save)

    def only_task(self) -> RunTask:
        size, samples = self.schedule.prompts_per_step, self.schedule.samples_per_prompt
        return RunTask("only", iter([(0, prompt) for prompt in self.prompts]), self.algorithm, size, samples)

    def trained(self) -> list[str]:
        return [group.prompt.id for record in self.observer.steps for group in record.groups]

    def staleness(self) -> list[int]:
        return [int(record.metrics["rollout/staleness/max"]) for record in self.observer.steps]


def small(**changes: Any) -> Schedule:
    return Schedule(**{"steps": 5, "prompts_per_step": 4, "samples_per_prompt": 2, "checkpoint_every": 2, **changes})


def test_synchronous_run_trains_prompts_in_order_with_fresh_tokens() -> None:
    rig = Rig(small(max_staleness=0))
    run_virtual(rig.run())
    assert rig.trained() == [f"p{i}" for i in range(20)]
    assert rig.staleness() == [0] * 5
    assert rig.saved == [2, 4, 5]
    assert rig.ledger.counts() == {"issued": 20, "finished": 0, "trained": 20, "dropped": 0}


def test_asynchronous_run_overlaps_generation_with_training() -> None:
    def seconds(bound: int) -> float:
        async def timed() -> float:
            await Rig(small(steps=8, max_staleness=bound), judge=ScriptedJudge(seconds=lambda p: 4.0)).run()
            return asyncio.get_running_loop().time()

        return run_virtual(timed())

    assert seconds(0) == pytest.approx(8 * (2 + 4 + 1))  # generate, judge, train: one after another
    assert seconds(1) <= 8 * (2 + 4 + 1) / 2 + 5  # two batches under way at any time
    assert seconds(6) <= 8 * 1 + 2 * (2 + 4)  # the trainer never waits once the pipeline is full


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), bound=st.integers(0, 4), generators=st.integers(1, 3))
def test_no_trained_token_is_older_than_the_bound(seed: int, bound: int, generators: int) -> None:
    rng = random.Random(seed)
    lengths = {p.id: rng.choice([1, 1, 2, 3, 12]) for p in PROMPTS}
    rig = Rig(
        small(steps=9, max_staleness=bound, lookahead=rng.randint(0, bound)),
        generator=lambda: ScriptedGenerator(length=lambda request, i: lengths[f"p{request.prompt_ids[0]}"]),
        judge=ScriptedJudge(seconds=lambda p: rng.random() * 5),
        num_generators=generators,
        capacity=rng.randint(1, 6),
    )
    run_virtual(rig.run())
    assert max(rig.staleness()) <= bound
    assert max(Counter(rig.trained()).values()) == 1 and len(rig.trained()) == 36
    for record in rig.observer.steps:  # monotone per completion: weights only get newer
        for group in record.groups:
            for sample in group.samples:
                assert list(sample.completion.versions) == sorted(sample.completion.versions)


def test_a_long_completion_is_overtaken_and_mixes_versions() -> None:
    rig = Rig(
        small(steps=6, max_staleness=4, lookahead=1),
        generator=lambda: ScriptedGenerator(length=lambda request, i: 9 if request.prompt_ids == (0,) else 1),
    )
    run_virtual(rig.run())
    order = rig.trained()
    assert order.index("p0") >= 4  # it missed the first batch, which didn't wait
    straggler = next(g for record in rig.observer.steps for g in record.groups if g.prompt.id == "p0")
    assert len(set(straggler.samples[0].completion.versions)) > 1
    assert max(rig.staleness()) <= 4


def test_a_killed_generator_is_replaced_and_its_prompts_start_over_with_the_same_seeds() -> None:
    rig = Rig(small(max_staleness=1), num_generators=2)

    async def main() -> None:
        async def killer() -> None:
            await asyncio.sleep(1.5)
            victim = next(h for h in rig.engine.handles if h.name == "generator-0")
            assert victim.is_alive and victim.executor._tasks  # busy when killed
            victim.kill()

        await asyncio.gather(rig.run(), killer())

    run_virtual(main())
    assert len(rig.trained()) == len(set(rig.trained())) == 20
    assert any("generator-0 lost" in message for message in rig.observer.messages)
    seeds: dict[int, set[tuple[int, ...]]] = {}
    for handle in rig.engine.handles:
        for request in getattr(handle.executor, "submitted", []):
            seeds.setdefault(request.key, set()).add(request.seeds)
    assert all(len(variants) == 1 for variants in seeds.values())
    assert rig.ledger.counts()["trained"] == 20


def test_a_generator_that_falls_silent_is_found_by_its_deadline() -> None:
    class Hung(ScriptedGenerator):
        async def collect(self, timeout_seconds: float) -> Any:
            await asyncio.sleep(10**9)

    spawned: list[ScriptedGenerator] = []

    def generator() -> ScriptedGenerator:
        spawned.append(ScriptedGenerator() if spawned else Hung())
        return spawned[-1]

    rig = Rig(small(call_seconds=30.0), generator=generator)
    run_virtual(rig.run())
    assert len(rig.trained()) == 20
    assert "no answer within" in rig.observer.messages[0]


def test_generators_lost_for_good_end_the_run_with_a_typed_error() -> None:
    class Dying(ScriptedGenerator):
        async def collect(self, timeout_seconds: float) -> Any:
            raise ExecutorLostError("segfault")

    rig = Rig(small(max_restarts=2), generator=Dying)
    with pytest.raises(ExecutorLostError, match="generator-0 is lost and no restart is left"):
        run_virtual(rig.run())
    assert sum(h.name == "generator-0" for h in rig.engine.handles) == 3


def test_an_unscored_group_is_dropped_counted_and_replaced() -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        return Verdict.failed("endpoint answered 500") if prompt.id in ("p1", "p5") else Verdict.scored(0.5)

    rig = Rig(small(max_staleness=0), judge=ScriptedJudge(decide=decide))
    run_virtual(rig.run())
    assert "p1" not in rig.trained() and len(rig.trained()) == 20
    assert rig.ledger.counts() == {"issued": 22, "finished": 0, "trained": 20, "dropped": 2}
    assert rig.ledger.drop_reasons() == {"unscored": 2}


def test_a_killed_judge_is_replaced_and_judges_again() -> None:
    rig = Rig(small(), judge=ScriptedJudge(seconds=lambda p: 3.0))

    async def main() -> None:
        async def killer() -> None:
            await asyncio.sleep(3.5)
            next(h for h in rig.engine.handles if h.name == "judge").kill()

        await asyncio.gather(rig.run(), killer())

    run_virtual(main())
    assert len(rig.trained()) == 20 and rig.budget.used == 1
    assert rig.observer.messages == ["judge lost (judge died during judge_group); starting it again"]


def test_a_judge_that_hangs_is_named() -> None:
    rig = Rig(small(judge_seconds=50.0), judge=ScriptedJudge(seconds=lambda p: 10**9 if p.id == "p3" else 0.0))
    with pytest.raises(StallError, match=r"judge\.judge_group: no answer within 50 s"):
        run_virtual(rig.run())


def test_a_stalled_batch_names_the_pending_prompts() -> None:
    rig = Rig(
        small(stall_seconds=60.0, max_staleness=0),
        generator=lambda: ScriptedGenerator(length=lambda request, i: 10**6 if request.prompt_ids == (2,) else 1),
    )
    with pytest.raises(StallError, match=r"3 of 4 groups are ready, 1 pending: 'p2'"):
        run_virtual(rig.run())


def test_the_end_of_the_data_ends_the_run_with_a_smaller_batch() -> None:
    rig = Rig(small(steps=50, max_staleness=1), prompts=PROMPTS[:10])
    run_virtual(rig.run())
    assert sorted(rig.trained()) == sorted(p.id for p in PROMPTS[:10])
    assert [len(record.groups) for record in rig.observer.steps] == [4, 4, 2]
    assert rig.saved[-1] == 3


def test_evaluation_runs_before_and_after_on_the_same_seeds() -> None:
    rig = Rig(small(max_staleness=1, evaluate_every=2))
    run_virtual(rig.run(Evaluation(PROMPTS[-6:], Sampling(max_tokens=4))))
    assert [version for version, _ in rig.observer.evaluations] == [0, 2, 4, 5]
    before, after = rig.observer.evaluations[0][1], rig.observer.evaluations[-1][1]
    assert [g.prompt.id for g in before] == [p.id for p in PROMPTS[-6:]] == [g.prompt.id for g in after]
    assert [g.samples[0].completion.token_ids[0] for g in before] == [
        g.samples[0].completion.token_ids[0] for g in after
    ]
    assert {v for g in after for v in g.samples[0].completion.versions} == {5}


def test_held_out_prompts_that_nobody_can_judge_stop_the_run_at_once() -> None:
    rig = Rig(small(), judge=ScriptedJudge(decide=lambda p, c: Verdict.failed("no key")))
    with pytest.raises(JudgeError, match="no key"):
        run_virtual(rig.run(Evaluation(PROMPTS[-2:], Sampling(max_tokens=4))))


def test_judges_that_cannot_judge_stop_the_run_with_a_checkpoint() -> None:
    rig = Rig(small(), judge=ScriptedJudge(report={"judge/is_degraded": 1.0, "judge/unscored_frac": 0.4}))
    with pytest.raises(JudgeError, match="40% of the last samples could not be judged"):
        run_virtual(rig.run())
    assert rig.saved == [1]


def test_collapse_stops_before_the_next_checkpoint() -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        return Verdict.scored(1.0 if max(completion.versions) < 4 else 0.0)

    rig = Rig(small(steps=10, checkpoint_every=1), judge=ScriptedJudge(decide=decide), guard=GuardConfig(patience=2))
    with pytest.raises(CollapseError, match="resume RUN --step best"):
        run_virtual(rig.run())
    assert rig.saved == [1, 2, 3, 4, 5]  # the second bad step never reached the disk


def test_no_more_groups_start_than_the_last_step_needs() -> None:
    rig = Rig(small(steps=2, max_staleness=4))
    run_virtual(rig.run())
    assert rig.ledger.counts()["issued"] == 8


def request_count(rig: Rig) -> int:
    return sum(len(getattr(h.executor, "submitted", [])) for h in rig.engine.handles)


def test_zero_signal_groups_are_dropped_where_the_algorithm_says_so() -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        return Verdict.scored(0.0 if prompt.id == "p2" else float(completion.token_ids[0]))

    rig = Rig(small(max_staleness=0, steps=3), judge=ScriptedJudge(decide=decide))
    rig.algorithm.drops_zero_signal = True
    run_virtual(rig.run())
    assert "p2" not in rig.trained()
    assert rig.ledger.drop_reasons()["no_signal"] >= 1
    assert request_count(rig) == 12 + rig.ledger.counts()["dropped"]


def two_tasks(**other: Any) -> list[RunTask]:
    """Task a takes p0 to p19 by threes, task b p20 to p39 singly, with four samples."""
    a = RunTask("a", iter([(0, replace(p, task="a")) for p in PROMPTS[:20]]), MeanBaseline(), 3, 2, weight=0.75)
    b = RunTask("b", iter([(0, replace(p, task="b")) for p in PROMPTS[20:]]), MeanBaseline(), 1, 4, weight=0.25)
    return [a, replace(b, **other)]


def test_every_step_trains_a_full_batch_of_each_task() -> None:
    rig = Rig(small(max_staleness=1), tasks=two_tasks())
    run_virtual(rig.run())
    for record in rig.observer.steps:
        assert [group.prompt.task for group in record.groups] == ["a", "a", "a", "b"]
        assert [len(group.samples) for group in record.groups] == [2, 2, 2, 4]
        assert record.metrics["task/a/algorithm/groups"] == 3 and record.metrics["task/b/algorithm/groups"] == 1
        assert record.metrics["rollout/reward/count"] == 10 and record.metrics["task/b/rollout/reward/count"] == 4
    assert max(rig.staleness()) <= 1
    assert len(set(rig.trained())) == len(rig.trained()) == 20
    assert rig.trainer.weights == [[0.75, 0.25]] * 5


def test_a_slow_task_holds_up_the_step_and_is_named_when_it_stalls() -> None:
    rig = Rig(
        small(stall_seconds=40.0), tasks=two_tasks(), judge=ScriptedJudge(seconds=lambda p: 99.0 * (p.task == "b"))
    )
    with pytest.raises(StallError, match=r"^.*task b, batch 0: 0 of 1 groups are ready, 1 pending: 'p20'") as caught:
        run_virtual(rig.run())
    assert "task a" not in str(caught.value)


def test_a_task_whose_prompts_end_leaves_the_others_training() -> None:
    rig = Rig(small(steps=6), tasks=two_tasks(stream=iter([(0, replace(p, task="b")) for p in PROMPTS[20:22]])))
    run_virtual(rig.run())
    assert [len(record.groups) for record in rig.observer.steps] == [4, 4, 3, 3, 3, 3]
    assert "task/b/rollout/reward/mean" not in rig.observer.steps[-1].metrics


def test_the_reference_scores_samples_of_algorithms_that_need_it_and_no_others() -> None:
    tasks = two_tasks()
    tasks[1].algorithm.needs_reference = True
    rig = Rig(small(steps=2), tasks=tasks, reference=ScriptedReference())
    run_virtual(rig.run())
    scored = [
        s.reference_logprobs for r in rig.observer.steps for g in r.groups for s in g.samples if g.prompt.task == "b"
    ]
    assert all(logprobs and set(logprobs) == {-1.0} for logprobs in scored)
    assert all(s.reference_logprobs is None for r in rig.observer.steps for g in r.groups[:3] for s in g.samples)
    assert {prompt_ids for prompt_ids, _ in rig.reference.rows} <= {(i,) for i in range(20, 40)}


def test_a_baseline_is_judged_with_its_group() -> None:
    baseline = Completion((20,), (5, 6), (0.0, 0.0), (-1, -1), "baseline", "stop")
    tasks = two_tasks(baselines={"p20": baseline})
    rig = Rig(small(steps=2), tasks=tasks, judge=ScriptedJudge(decide=lambda p, c: Verdict.scored(len(c.text))))
    run_virtual(rig.run())
    judged = [group.baseline for record in rig.observer.steps for group in record.groups]
    assert judged == [None] * 3 + [Sample(baseline, {"scripted": Verdict.scored(8.0)}, 8.0)] + [None] * 4


def test_an_alarm_of_the_watch_is_said_and_may_stop_the_run() -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        is_late = completion.oldest_version >= 2
        return Verdict.scored(int(prompt.id[1:]) % 2 * 0.1 + is_late, passed=not is_late)

    for should_stop, steps in ((False, 8), (True, 4)):
        watch = HackingWatch(WatchConfig(window=2, should_stop=should_stop), {})
        task = RunTask("only", iter([(0, prompt) for prompt in PROMPTS]), MeanBaseline(), 4, 2, watch=watch)
        rig = Rig(small(steps=8, max_staleness=0), tasks=[task], judge=ScriptedJudge(decide=decide))
        run_virtual(rig.run())
        assert len(rig.observer.steps) == steps
        assert [record.metrics["watch/alarms"] for record in rig.observer.steps[:4]] == [0, 0, 0, 1]
        assert rig.observer.messages[0].startswith("reward hacking? only, step 4: reward rose from 0.05 to 1.05 while")
