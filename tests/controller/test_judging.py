"""On virtual time and a scripted judge."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from llamarl.controller.clients import JudgesClient
from llamarl.controller.restarts import RestartBudget
from llamarl.core.errors import JudgeError, StallError
from llamarl.core.records import Completion, Prompt, Sample, Trajectory, Verdict
from llamarl.testing import DirectEngine, DirectHandle, RecordingObserver, ScriptedJudge, run_virtual

COMPLETION = Completion(Trajectory.sampled((1,), (2,), (-0.5,), (0,)), "text")


class Rig:
    """A judge, its client, and what was called."""

    def __init__(self, judge: ScriptedJudge, timeout_seconds: float = 100.0) -> None:
        self.judge, self.timeout_seconds = judge, timeout_seconds
        self.calls: Counter[str] = Counter()
        self.observer = RecordingObserver()
        self.times: dict[str, float] = {}

    async def judged(self, *ids: str, after: float = 0.0) -> list[tuple[Sample, ...]]:
        """The samples of groups that come together."""
        await asyncio.sleep(after)

        async def one(name: str) -> tuple[Sample, ...]:
            samples = await self.judges.judge(Prompt(name, ()), [COMPLETION], "")
            self.times[name] = asyncio.get_running_loop().time()
            return samples

        return await asyncio.gather(*map(one, ids))

    def run(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        return run_virtual(self._run(*work))

    async def _run(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        rig = self

        class CountedHandle(DirectHandle):
            async def call(self, method: str, *args: Any, **options: Any) -> Any:
                rig.calls[method] += 1
                return await super().call(method, *args, **options)

        class CountedEngine(DirectEngine):
            async def spawn(self, factory: Any, *, name: str, num_ranks: int = 1) -> DirectHandle:
                executor = factory()
                executor.setup()
                self.handles.append(CountedHandle(name, executor))
                return self.handles[-1]

        self.engine = CountedEngine()
        self.judges = await JudgesClient(
            "judge",
            lambda: self.engine.spawn(lambda: self.judge, name="judge"),
            RestartBudget(1),
            self.observer,
            self.timeout_seconds,
            judge_seconds=self.timeout_seconds,
        ).start()
        serving = asyncio.gather(self.judges.submit(), self.judges.collect(2.0))
        done = asyncio.gather(*work)
        await asyncio.wait([serving, done], return_when=asyncio.FIRST_COMPLETED)
        try:
            return await done if done.done() else await serving
        finally:
            for each in (serving, done):
                each.cancel()
            await asyncio.gather(serving, done, return_exceptions=True)


def test_groups_that_come_together_go_together() -> None:
    rig = Rig(ScriptedJudge())
    (samples,) = rig.run(rig.judged(*map(str, range(16))))
    assert [[sample.reward for sample in group] for group in samples] == [[1.0]] * 16
    assert rig.calls == {"submit": 1, "collect": 2}  # the second waits for more


def test_a_slow_group_holds_up_no_other() -> None:
    rig = Rig(ScriptedJudge(seconds=lambda prompt: 50.0 if prompt.id == "slow" else 1.0))
    rig.run(rig.judged("a", "slow", "b"), rig.judged("c", after=10.0))
    assert rig.times == pytest.approx({"a": 1.0, "b": 1.0, "c": 11.0, "slow": 50.0})


def test_every_group_has_its_own_deadline() -> None:
    """And what is judged after it is left."""
    rig = Rig(ScriptedJudge(seconds=lambda prompt: 45.0 if prompt.id == "late" else 30.0), timeout_seconds=40.0)

    async def late() -> float:
        with pytest.raises(StallError, match=r"judge: prompt 'late' not judged within 40 s"):
            await rig.judged("late")
        return asyncio.get_running_loop().time()

    ended, others = rig.run(late(), rig.judged("a", after=20.0))
    assert ended == pytest.approx(40.0) and len(others) == 1 and rig.times["a"] == pytest.approx(50.0)


def test_a_lost_judge_gets_its_groups_again() -> None:
    rig = Rig(ScriptedJudge(seconds=lambda prompt: 1.0 if prompt.id == "early" else 5.0))

    async def kill() -> None:
        await asyncio.sleep(3.0)
        rig.engine.handles[0].kill()

    samples, _, late = rig.run(rig.judged("early", "a", "b"), kill(), rig.judged("late", after=2.5))
    assert [group[0].reward for group in (*samples, *late)] == [1.0] * 4
    assert rig.times == pytest.approx({"early": 1.0, "a": 8.0, "b": 8.0, "late": 8.0})  # 3 + 5
    assert rig.observer.messages == ["judge lost (judge died during collect); starting it again"]


def test_a_broken_judge_ends_the_run_with_its_own_error() -> None:
    def decide(prompt: Prompt, completion: Completion) -> Verdict:
        raise JudgeError("judge 'j' failed its last 64 samples")

    rig = Rig(ScriptedJudge(decide))
    with pytest.raises(JudgeError, match="its last 64 samples"):
        rig.run(rig.judged("a", "b"))
