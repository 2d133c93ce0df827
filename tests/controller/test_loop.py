"""The whole loop against scripted executors on virtual time: no threads, no torch, no real waiting."""

import asyncio
import itertools
import math
import random
import threading
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import PROMPTS, PassRewards, Rig, ScriptedAlgorithm, ScriptedReference, small

from llamarl.algorithms import AIPOConfig, DrGRPOConfig, GRPOConfig, ReinforcePPConfig, RLOOConfig
from llamarl.controller.evaluation import Evaluation
from llamarl.controller.guard import GuardConfig
from llamarl.controller.metrics import flatten
from llamarl.controller.task import RunTask
from llamarl.controller.watch import HackingWatch, WatchConfig
from llamarl.core.errors import CollapseError, DataError, ExecutorLostError, HackingError, JudgeError, StallError
from llamarl.core.group_judge import JudgesStatus
from llamarl.core.records import (
    MAX_SCORE,
    Assignment,
    Completion,
    GenerationRequest,
    Group,
    Prompt,
    Purpose,
    Sample,
    Trajectory,
    Verdict,
)
from llamarl.core.sampling import Sampling
from llamarl.testing import RecordingObserver, ScriptedGenerator, ScriptedJudge, ScriptedTrainer, run_virtual


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
                assert list(sample.completion.trajectory.versions) == sorted(sample.completion.trajectory.versions)


@pytest.mark.parametrize(("bound", "is_ahead"), [(0, False), (1, True)])
def test_the_next_batch_is_assigned_while_the_trainer_works(bound: int, is_ahead: bool) -> None:
    class Noting(PassRewards):
        def assign(self, groups: list[Group]) -> Assignment:
            times.append(asyncio.get_running_loop().time())
            return super().assign(groups)

    times: list[float] = []
    rig = Rig(
        small(steps=3, max_staleness=bound),
        algorithm=ScriptedAlgorithm(Noting),
        trainer=ScriptedTrainer(seconds_per_step=100.0),
    )
    run_virtual(rig.run())
    assert len(times) == 3 and times[0] == 2.0
    assert (times[1] < 100.0) == (times[2] < 200.0) == is_ahead
    assert max(rig.staleness()) == bound and len(set(rig.trained())) == 12


def test_an_algorithm_that_takes_long_does_not_hold_up_the_loop() -> None:
    entered, may_leave = threading.Event(), threading.Event()

    class Slow(PassRewards):
        def assign(self, groups: list[Group]) -> Assignment:
            entered.set()
            assert may_leave.wait(60.0), "the loop stood still"
            return super().assign(groups)

    async def main() -> None:
        async def release() -> None:
            while not entered.is_set():
                await asyncio.sleep(0.001)
            may_leave.set()

        await asyncio.gather(rig.run(), release())

    rig = Rig(
        small(steps=2),
        algorithm=ScriptedAlgorithm(Slow, assigns_in_thread=True),
        generator=lambda: ScriptedGenerator(seconds_per_token=0.0),
        trainer=ScriptedTrainer(seconds_per_step=0.0),
    )
    asyncio.run(main())
    assert len(rig.observer.steps) == 2


def test_a_batch_that_cannot_be_assigned_ends_the_run_with_its_error() -> None:
    class Broken(PassRewards):
        def assign(self, groups: list[Group]) -> Assignment:
            if groups[0].prompt.id == "p4":
                raise DataError("no such group")
            return super().assign(groups)

    rig = Rig(
        small(max_staleness=1), algorithm=ScriptedAlgorithm(Broken), trainer=ScriptedTrainer(seconds_per_step=100.0)
    )
    with pytest.raises(DataError, match="no such group"):
        run_virtual(rig.run())


def test_a_stop_leaves_the_batch_prepared_ahead_untrained() -> None:
    class Stopping(RecordingObserver):
        def on_step(self, record: Any) -> None:
            super().on_step(record)
            if record.version == 2:
                rig.controller.stop()

    rig = Rig(small(max_staleness=1), observer=Stopping(), trainer=ScriptedTrainer(seconds_per_step=100.0))
    run_virtual(rig.run())
    assert len(rig.observer.steps) == 2 and rig.saved == [2]
    assert rig.ledger.counts()["trained"] == 8 and rig.ledger.counts()["finished"] >= 4


def test_a_long_completion_is_overtaken_and_mixes_versions() -> None:
    rig = Rig(
        small(steps=6, max_staleness=4, lookahead=1),
        generator=lambda: ScriptedGenerator(length=lambda request, i: 9 if request.prompt_ids == (0,) else 1),
    )
    run_virtual(rig.run())
    order = rig.trained()
    assert order.index("p0") >= 4  # it missed the first batch, which didn't wait
    straggler = next(g for record in rig.observer.steps for g in record.groups if g.prompt.id == "p0")
    assert len(straggler.samples[0].completion.trajectory.versions) > 1
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
    assert rig.drop_reasons() == {"unscored": 2}


def test_a_killed_judge_is_replaced_and_judges_again() -> None:
    rig = Rig(small(), judge=ScriptedJudge(seconds=lambda p: 3.0))

    async def main() -> None:
        async def killer() -> None:
            await asyncio.sleep(3.5)
            next(h for h in rig.engine.handles if h.name == "judge").kill()

        await asyncio.gather(rig.run(), killer())

    run_virtual(main())
    assert len(rig.trained()) == 20 and rig.budget.used == 1
    assert rig.observer.messages == ["judge lost (judge died during collect); starting it again"]


def test_a_silent_judge_is_replaced_and_judges_again() -> None:
    class Silent(ScriptedJudge):
        is_silent = True

        async def submit(self, groups: Any) -> None:
            if Silent.is_silent:
                Silent.is_silent = False
                await asyncio.sleep(10**9)
            await super().submit(groups)

    rig = Rig(small(judge_seconds=1000.0, call_seconds=100.0), judge=Silent())
    run_virtual(rig.run())
    assert len(rig.trained()) == 20 and rig.budget.used == 1
    assert "judge.submit: no answer within" in rig.observer.messages[0]


@pytest.mark.parametrize(("last_good", "steps"), [(14, 3), (19, 5)], ids=["between checkpoints", "final evaluation"])
def test_judges_that_break_cost_no_step(last_good: int, steps: int) -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        trained = len(rig.trained())
        if trained >= 20 or int(prompt.id[1:]) > last_good:
            raise JudgeError("judge 'x' failed its last 64 samples")
        return Verdict.scored(1.0)

    rig = Rig(small(max_staleness=0, checkpoint_every=0), judge=ScriptedJudge(decide=decide))
    with pytest.raises(JudgeError, match="failed its last 64 samples"):
        run_virtual(rig.run(Evaluation({"only": PROMPTS[:2]}, Sampling(max_tokens=4))))
    assert rig.saved == [steps] and len(rig.observer.steps) == steps


def test_a_part_of_the_loop_that_is_cancelled_ends_the_run() -> None:
    class Cancelled(ScriptedGenerator):
        async def collect(self, timeout_seconds: float) -> Any:
            raise asyncio.CancelledError

    with pytest.raises(StallError, match="was cancelled"):
        run_virtual(Rig(small(), generator=Cancelled).run())


def test_a_judge_that_hangs_is_named() -> None:
    rig = Rig(small(judge_seconds=50.0), judge=ScriptedJudge(seconds=lambda p: 10**9 if p.id == "p3" else 0.0))
    with pytest.raises(StallError, match=r"judge: prompt 'p3' not judged within 50 s"):
        run_virtual(rig.run())


def test_a_stalled_batch_names_the_pending_prompts() -> None:
    rig = Rig(
        small(stall_seconds=60.0, max_staleness=0),
        generator=lambda: ScriptedGenerator(length=lambda request, i: 10**6 if request.prompt_ids == (2,) else 1),
    )
    with pytest.raises(StallError, match=r"3 of 4 groups are ready, 1 pending: 'p2' \(being completed"):
        run_virtual(rig.run())


def test_the_end_of_the_data_ends_the_run_with_a_smaller_batch() -> None:
    rig = Rig(small(steps=50, max_staleness=1), prompts=PROMPTS[:10])
    run_virtual(rig.run())
    assert sorted(rig.trained()) == sorted(p.id for p in PROMPTS[:10])
    assert [len(record.groups) for record in rig.observer.steps] == [4, 4, 2]
    assert rig.saved[-1] == 3


def test_evaluation_runs_before_and_after_on_the_same_seeds() -> None:
    rig = Rig(small(max_staleness=1, evaluate_every=2))
    run_virtual(rig.run(Evaluation({"only": PROMPTS[-6:]}, Sampling(max_tokens=4))))
    assert [version for version, _ in rig.observer.evaluations] == [0, 2, 4, 5]
    before, after = rig.observer.evaluations[0][1], rig.observer.evaluations[-1][1]
    assert [g.prompt.id for g in before] == [p.id for p in PROMPTS[-6:]] == [g.prompt.id for g in after]
    assert [g.samples[0].completion.token_ids[0] for g in before] == [
        g.samples[0].completion.token_ids[0] for g in after
    ]
    assert {v for g in after for v, _ in g.samples[0].completion.trajectory.versions} == {5}
    assert {g.purpose for g in after} == {Purpose.HELD_OUT} and [g.index for g in after] == list(range(6))
    assert {g.purpose for record in rig.observer.steps for g in record.groups} == {Purpose.TRAIN}


def test_an_evaluation_may_take_long_while_answers_keep_coming_and_no_longer() -> None:
    schedule, held_out = small(stall_seconds=60.0), Evaluation({"only": PROMPTS[-6:]}, Sampling(max_tokens=4))

    def one_by_one(request: GenerationRequest, sample: int) -> int:
        return 50 * (request.prompt_ids[0] - 33) if request.priority < 0 else 1

    slow = Rig(schedule, generator=lambda: ScriptedGenerator(length=one_by_one))
    run_virtual(slow.run(held_out))  # the last answer takes 300 s, 50 s more than the one before
    assert len(slow.observer.evaluations) == 2
    silent = Rig(
        schedule,
        generator=lambda: ScriptedGenerator(length=lambda request, i: 10**6 if request.prompt_ids == (39,) else 1),
    )
    with pytest.raises(StallError, match="1 of 6 held-out answers"):
        run_virtual(silent.run(held_out))


def test_held_out_prompts_are_shared_out_evenly() -> None:
    generators: list[ScriptedGenerator] = []

    def generator() -> ScriptedGenerator:
        generators.append(ScriptedGenerator())
        return generators[-1]

    rig = Rig(small(steps=1, max_staleness=0), generator=generator, num_generators=2, capacity=2)
    run_virtual(rig.run(Evaluation({"only": PROMPTS[-5:]}, Sampling(max_tokens=4))))
    first = [[request.prompt_ids[0] for request in g.submitted if request.priority < 0] for g in generators]
    assert [prompts[: len(prompts) // 2] for prompts in first] == [[35, 37, 39], [36, 38]]  # before and after


def test_held_out_prompts_that_nobody_can_judge_stop_the_run_at_once() -> None:
    rig = Rig(small(), judge=ScriptedJudge(decide=lambda p, c: Verdict.failed("no key")))
    with pytest.raises(JudgeError, match="no key"):
        run_virtual(rig.run(Evaluation({"only": PROMPTS[-2:]}, Sampling(max_tokens=4))))


def test_judges_that_cannot_judge_stop_the_run_with_a_checkpoint() -> None:
    rig = Rig(small(), judge=ScriptedJudge(report=JudgesStatus(unscored_fraction=0.4, is_degraded=True)))
    with pytest.raises(JudgeError, match="40% of the last samples could not be judged"):
        run_virtual(rig.run())
    assert rig.saved == [1]


def test_collapse_stops_before_the_next_checkpoint() -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        return Verdict.scored(1.0 if max(completion.trajectory.versions)[0] < 4 else 0.0)

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

    algorithm = ScriptedAlgorithm(varied_rewards=True)
    rig = Rig(small(max_staleness=0, steps=3), judge=ScriptedJudge(decide=decide), algorithm=algorithm)
    run_virtual(rig.run())
    assert "p2" not in rig.trained()
    assert rig.drop_reasons()["no_signal"] >= 1
    assert request_count(rig) == 12 + rig.ledger.counts()["dropped"]


def test_the_largest_rewards_keep_every_number_finite() -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        return Verdict.scored(MAX_SCORE if next(scores) % 2 else -MAX_SCORE)

    scores, watch = itertools.count(), HackingWatch(WatchConfig(window=2), {"scripted": 1.0})
    for config in (AIPOConfig(), GRPOConfig(), DrGRPOConfig(), RLOOConfig(), ReinforcePPConfig()):
        task = RunTask("only", iter([(0, prompt) for prompt in PROMPTS]), config, 4, 2, watch=watch)
        rig = Rig(small(max_staleness=0), tasks=[task], judge=ScriptedJudge(decide))
        run_virtual(rig.run())
        for record in rig.observer.steps:
            assert all(map(math.isfinite, record.metrics.values())), record.metrics
            samples = config.credit().assign(record.groups).samples
            assert len(samples) == 8 and all(math.isfinite(sample.advantages) for sample in samples)


@pytest.mark.parametrize("score", [math.inf, -math.nan, 1e308, -1.1 * MAX_SCORE])
def test_rejects_a_score_that_no_mean_can_be_taken_of(score: float) -> None:
    with pytest.raises(ValueError, match=r"a number from -1e\+30 to 1e\+30, got"):
        Verdict.scored(score)


def for_ever() -> Any:
    return ((epoch, prompt) for epoch in itertools.count() for prompt in PROMPTS)


@pytest.mark.parametrize(
    ("verdict", "fate", "said"),
    [
        (Verdict.abstained("no such field"), "abstained", r"20 where judges abstained.*\(no such field\)"),
        (Verdict.failed("no key"), "unscored", r"20 with failed judges.*\(no key\)"),
        (Verdict.scored(0.5), "no_signal", r"20 of equal rewards.*rewards \[0\.5, 0\.5\]"),
    ],
)
@pytest.mark.parametrize("bound", [0, 2])
def test_a_run_of_which_no_group_can_train_ends_early_and_says_why(
    verdict: Verdict, fate: str, said: str, bound: int
) -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        is_late = len(rig.observer.steps) >= 2
        return verdict if is_late else Verdict.scored(float(next(scores)))

    scores, algorithm = itertools.count(), ScriptedAlgorithm(varied_rewards=True)
    task = RunTask("only", for_ever(), algorithm, 4, 2)
    rig = Rig(small(max_staleness=bound, max_rounds=5, checkpoint_every=0), tasks=[task], judge=ScriptedJudge(decide))
    with pytest.raises(JudgeError, match=r"after 20 dropped groups \(schedule.max_rounds=5 x 4 prompts\): " + said):
        run_virtual(rig.run())
    steps = len(rig.observer.steps)
    assert 2 <= steps <= 2 + 1 + bound and rig.saved == [steps]  # what was trained is kept
    assert rig.ledger.counts()["issued"] <= 4 * (steps + bound + 1) + 20
    assert set(rig.drop_reasons()) == {fate}


def test_drops_are_counted_from_step_to_step_and_without_a_bound_only_time_ends_the_run() -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        return Verdict.abstained() if int(prompt.id[1:]) % 4 else Verdict.scored(1.0)

    for rounds in (3, 5):  # about 12 groups are dropped before each batch of 4
        task = RunTask("only", for_ever(), ScriptedAlgorithm(), 4, 2)
        rig = Rig(small(max_staleness=0, max_rounds=rounds), tasks=[task], judge=ScriptedJudge(decide))
        with nullcontext() if rounds == 5 else pytest.raises(JudgeError, match="no batch for step"):
            run_virtual(rig.run())
        assert (len(rig.observer.steps) == 5) == (rounds == 5)
    task = RunTask("only", for_ever(), ScriptedAlgorithm(), 4, 2)
    never = ScriptedJudge(lambda p, c: Verdict.abstained())
    rig = Rig(small(max_rounds=None, stall_seconds=100.0), tasks=[task], judge=never)
    with pytest.raises(StallError, match=r"dropped since the last step: \d\d\d+ where judges abstained"):
        run_virtual(rig.run())


def two_tasks(**other: Any) -> list[RunTask]:
    """Task a takes p0 to p19 by threes, task b p20 to p39 singly, with four samples."""
    a = RunTask("a", iter([(0, replace(p, task="a")) for p in PROMPTS[:20]]), ScriptedAlgorithm(), 3, 2, weight=0.75)
    b = RunTask("b", iter([(0, replace(p, task="b")) for p in PROMPTS[20:]]), ScriptedAlgorithm(), 1, 4, weight=0.25)
    return [a, replace(b, **other)]


def test_every_step_trains_a_full_batch_of_each_task() -> None:
    rig = Rig(small(max_staleness=1), tasks=two_tasks())
    run_virtual(rig.run())
    for record in rig.observer.steps:
        assert [group.prompt.task for group in record.groups] == ["a", "a", "a", "b"]
        assert [len(group.samples) for group in record.groups] == [2, 2, 2, 4]
        metrics = flatten(record.metrics, record.task_metrics)
        assert metrics["task/a/algorithm/groups"] == 3 and metrics["task/b/algorithm/groups"] == 1
        assert metrics["rollout/reward/count"] == 10 and metrics["task/b/rollout/reward/count"] == 4
    assert max(rig.staleness()) <= 1
    assert len(set(rig.trained())) == len(rig.trained()) == 20
    assert rig.trainer.weights == [[0.75, 0.25]] * 5


def test_a_slow_task_holds_up_the_step_and_is_named_when_it_stalls() -> None:
    rig = Rig(
        small(stall_seconds=40.0), tasks=two_tasks(), judge=ScriptedJudge(seconds=lambda p: 99.0 * (p.task == "b"))
    )
    with pytest.raises(
        StallError, match=r"^.*task b, batch 0: 0 of 1 groups are ready, 1 pending: 'p20' \(being judged"
    ) as caught:
        run_virtual(rig.run())
    assert "task a" not in str(caught.value)


def test_a_task_whose_prompts_end_leaves_the_others_training() -> None:
    rig = Rig(small(steps=6), tasks=two_tasks(stream=iter([(0, replace(p, task="b")) for p in PROMPTS[20:22]])))
    run_virtual(rig.run())
    assert [len(record.groups) for record in rig.observer.steps] == [4, 4, 3, 3, 3, 3]
    assert "rollout/reward/mean" not in rig.observer.steps[-1].task_metrics["b"]


def test_the_reference_scores_samples_of_algorithms_that_need_it_and_no_others() -> None:
    tasks = two_tasks(algorithm=ScriptedAlgorithm(reference=True))
    rig = Rig(small(steps=2), tasks=tasks, reference=ScriptedReference())
    run_virtual(rig.run())
    scored = [
        s.reference_logprobs for r in rig.observer.steps for g in r.groups for s in g.samples if g.prompt.task == "b"
    ]
    assert all(logprobs and set(logprobs) == {-1.0} for logprobs in scored)
    assert all(s.reference_logprobs is None for r in rig.observer.steps for g in r.groups[:3] for s in g.samples)
    assert {row.prompt_ids[0] for row in rig.reference.rows} <= set(range(20, 40))


def test_a_baseline_is_judged_with_its_group() -> None:
    baseline = Completion(Trajectory.given((20,), (5, 6)), "baseline")
    tasks = two_tasks(baselines={"p20": baseline})
    rig = Rig(small(steps=2), tasks=tasks, judge=ScriptedJudge(decide=lambda p, c: Verdict.scored(len(c.text))))
    run_virtual(rig.run())
    judged = [group.baseline for record in rig.observer.steps for group in record.groups]
    assert judged == [None] * 3 + [Sample(baseline, {"scripted": Verdict.scored(8.0)}, 8.0)] + [None] * 4


def test_a_baseline_is_judged_once_a_run_unless_its_judge_failed() -> None:
    baseline = Completion(Trajectory.given((20,), (5, 6)), "baseline")
    asked: list[str] = []

    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        if completion.text == "baseline":
            asked.append(completion.text)
            return Verdict.failed("busy") if len(asked) == 1 else Verdict.scored(8.0)
        return Verdict.scored(1.0)

    stream = iter([(epoch, replace(PROMPTS[20], task="b")) for epoch in range(4)])
    tasks = two_tasks(baselines={"p20": baseline}, stream=stream)
    rig = Rig(small(steps=4), tasks=tasks, judge=ScriptedJudge(decide=decide))
    run_virtual(rig.run())
    assert asked == ["baseline"] * 2  # a failed verdict is asked for again, a given one is not
    judged = [group.baseline for record in rig.observer.steps for group in record.groups if group.prompt.task == "b"]
    assert [sample.reward for sample in judged if sample is not None] == [None, 8.0, 8.0, 8.0]


def test_an_alarm_of_the_watch_is_said_and_may_stop_the_run() -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        is_late = completion.trajectory.oldest_version >= 2
        return Verdict.scored(int(prompt.id[1:]) % 2 * 0.1 + is_late, passed=not is_late)

    for should_stop, steps in ((False, 8), (True, 4)):
        watch = HackingWatch(WatchConfig(window=2, should_stop=should_stop), {})
        task = RunTask("only", iter([(0, prompt) for prompt in PROMPTS]), ScriptedAlgorithm(), 4, 2, watch=watch)
        rig = Rig(small(steps=8, max_staleness=0), tasks=[task], judge=ScriptedJudge(decide=decide))
        with pytest.raises(HackingError, match="task only, step 4: reward rose") if should_stop else nullcontext():
            run_virtual(rig.run())
        assert len(rig.observer.steps) == steps
        assert [record.task_metrics["only"]["watch/alarms"] for record in rig.observer.steps[:4]] == [0, 0, 0, 1]
        assert rig.observer.messages[0].startswith(
            "possible reward hacking in task only: step 4: reward rose from 0.05 to 1.05 while"
        )
