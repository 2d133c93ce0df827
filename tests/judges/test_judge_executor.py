import asyncio
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest

from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt
from llamarl.engine.inprocess import InProcessEngine
from llamarl.judges import (
    FunctionJudge,
    Judge,
    JudgeConfig,
    JudgeExecutor,
    JudgePanel,
    ProcessJudge,
    Seat,
    build_judge,
    build_panel,
    text_completion,
)

PROMPT = Prompt("p", ({"role": "user", "content": "2 + 2 ="},), answer="4")
TWO = [text_completion("4"), text_completion("five")]


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    path = tmp_path / "rewards.py"
    path.write_text(
        "def exact(prompt, completion):\n    return completion.text == prompt.answer\n"
        "def brief(completions, **kwargs):\n    return [1 / len(c[0]['content']) for c in completions]\n"
    )
    return str(path)


def test_an_engine_runs_the_judges(rewards: str) -> None:
    configs = (JudgeConfig(function=f"{rewards}:exact", weight=3.0), JudgeConfig(function=f"{rewards}:brief"))
    factory = functools.partial(JudgeExecutor, configs)
    assert pickle.loads(pickle.dumps(factory))

    async def main() -> tuple[Any, Any]:
        engine = InProcessEngine()
        handle = await engine.spawn(factory, name="judge")
        try:
            groups = await asyncio.gather(*(handle.call("judge_group", PROMPT, TWO) for _ in range(3)))
            return groups, await handle.call("status")
        finally:
            await engine.close()

    groups, status = asyncio.run(main())
    assert [[sample.reward for sample in group] for group in groups] == [[1.0, 0.0625]] * 3  # (3 * 0 + 1/4) / 4
    metrics = status.task_metrics[""]
    assert (metrics["judge/exact/pass_rate"], metrics["judge/brief/count"], status.is_degraded) == (0.5, 6, False)


def test_a_ready_panel_is_taken_as_it_is() -> None:
    executor = JudgeExecutor(JudgePanel([Seat(FunctionJudge(lambda prompt, completion: 1.0, "one"))]))
    executor.setup()
    assert [sample.reward for sample in asyncio.run(executor.judge_group(PROMPT, TWO))] == [1.0, 1.0]
    executor.teardown()


def test_a_wrong_judge_is_refused_at_setup(rewards: str) -> None:
    with pytest.raises(ConfigError, match=r"has no 'exac'\. Did you mean 'exact'"):
        JudgeExecutor([JudgeConfig(function=f"{rewards}:exac")]).setup()


# ---- config


def test_isolation_decides_where_the_judge_runs(rewards: str) -> None:
    assert isinstance(build_judge(JudgeConfig(function=f"{rewards}:exact")), FunctionJudge)
    config = JudgeConfig(function=f"{rewards}:exact", isolation="process", workers=1, timeout_seconds=7, name="mine")
    judge = build_judge(config)
    assert isinstance(judge, ProcessJudge)
    assert (judge.name, judge.timeout_seconds) == ("mine", 7)
    judge.close()


def test_panel_takes_weights_and_deadlines_of_its_configs(rewards: str) -> None:
    def seconds(**values: Any) -> str:
        panel = build_panel([JudgeConfig(function=f"{rewards}:exact", weight=2.0, **values)])
        panel.close()
        (seat,) = panel.seats
        assert (seat.name, seat.weight) == ("exact", 2.0)
        return str(seat.deadline_seconds)

    assert seconds(timeout_seconds=5.0) == "5.0"
    assert seconds(isolation="process") == "None", "its own deadline starts when a worker does, not in the queue"


FACTORY = """
from llamarl.core.records import Verdict
from llamarl.judges import Judge

class Limit(Judge):
    name = "limit"

    def __init__(self, limit):
        self.limit = limit

    async def judge(self, prompt, completions):
        return [Verdict.scored(1.0, passed=len(c.text) <= self.limit) for c in completions]
"""


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_settings_and_roles_reach_the_panel(tmp_path: Path, rewards: str, isolation: str) -> None:
    (tmp_path / "limit.py").write_text(FACTORY)
    values = {"function": f"{tmp_path}/limit.py:Limit", "settings": {"limit": 2}, "role": "constraint"}
    configs = [
        JudgeConfig.parse({**values, "isolation": isolation, "name": "brief"}),
        JudgeConfig(function=f"{rewards}:exact"),
    ]
    panel = build_panel(configs)
    samples = asyncio.run(panel.judge_group(PROMPT, TWO))
    panel.close()
    assert [(sample.reward, sample.is_satisfied) for sample in samples] == [(1.0, True), (0.0, False)]
    assert {seat.name: seat.role for seat in panel.seats} == {"brief": "constraint", "exact": "reward"}


def test_prompts_are_checked_before_a_run() -> None:
    class Needy(Judge):
        name = "needy"

        def check(self, prompt: Prompt) -> None:
            if prompt.answer is None:
                raise ConfigError("answer: needed, but not given")

        async def judge(self, prompt: Prompt, completions: Any) -> Any:
            raise NotImplementedError

    panel = JudgePanel([Seat(Needy()), Seat(FunctionJudge(lambda prompt, completion: 1.0, "other"))])
    bare = Prompt("q", PROMPT.messages, task="facts")
    panel.check([PROMPT, Prompt("r", PROMPT.messages, info={"judges": ["other"]})])
    with pytest.raises(ConfigError, match=r"prompt 'q' \(task 'facts'\), judge 'needy': answer: needed"):
        panel.check([PROMPT, bare])


def test_two_judges_of_one_name_are_refused(rewards: str) -> None:
    with pytest.raises(ConfigError, match="give each a different 'name'"):
        build_panel([JudgeConfig(function=f"{rewards}:exact")] * 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"function": "a:b", "weight": -1}, "weight: must be at least 0.0; got -1"),
        ({"function": "a:b", "timeout_seconds": 0}, "timeout_seconds: .* got 0"),
        ({"function": "a:b", "isolation": "fork"}, "isolation: 'fork' is unknown. Choose one of: process, thread"),
        ({"function": "a:b", "timeout": 3}, "timeout: unknown key. Did you mean 'timeout_seconds'"),
        ({}, "function: required"),
    ],
)
def test_rejects_configs(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JudgeConfig.parse(values)
