"""Rubrics of the shape that verifiers has: `funcs`, `weights`, `class_objects`; groups have `rubrics`."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamarl.core.errors import ConfigError, JudgeError
from llamarl.core.records import Prompt, Status, Verdict
from llamarl.data.rows import row_to_prompt
from llamarl.judges import (
    FunctionJudge,
    JudgePanel,
    ProcessJudge,
    Seat,
    VerifiersJudge,
    as_judge,
    load_judge,
    text_completion,
)
from llamarl.judges.config import JudgeConfig, build_judge

CHAT = row_to_prompt({"prompt": [{"role": "user", "content": "2 + 2 ="}], "answer": "4", "info": {"unit": "none"}})
TEXT = row_to_prompt({"prompt": "2 + 2 =", "answer": "4"})


def rubric(*funcs: Callable[..., Any], weights: Sequence[float] = (), **objects: Any) -> Any:
    return SimpleNamespace(funcs=list(funcs), weights=list(weights) or [1.0] * len(funcs), class_objects=objects)


def judged(target: Any, *texts: str, prompt: Prompt = CHAT) -> list[Verdict]:
    return asyncio.run(VerifiersJudge(target).judge(prompt, [text_completion(text) for text in texts]))


def exact(completion: Any, answer: str) -> float:
    return float(completion[-1]["content"] == answer)


async def brief(completion: Any, **kwargs: Any) -> float:
    return 1 / len(completion[-1]["content"])


# ---- golden


def test_the_score_is_the_weighted_sum_and_the_reason_lists_the_parts() -> None:
    right, wrong = judged(rubric(exact, brief, weights=[2.0, 0.5]), "4", "five")
    assert (right.score, wrong.score) == (2 * 1 + 0.5 * 1, 2 * 0 + 0.5 / 4)
    assert (right.reason, right.passed) == ("exact=1, brief=1", None)


def test_functions_get_what_they_name_and_the_rubric_s_own_objects() -> None:
    seen: dict[str, Any] = {}

    def named(prompt: Any, info: Any, task: Any, state: Any, parser: Any, unit: Any) -> float:
        seen.update(prompt=prompt, info=info, task=task, keys=set(state), parser=parser, unit=unit)
        return 1.0

    def everything(**kwargs: Any) -> float:
        seen["all"] = set(kwargs)
        return 1.0

    judged(rubric(named, everything, parser="the parser"), "4")
    assert seen["prompt"] == [{"role": "user", "content": "2 + 2 ="}]
    assert (seen["info"], seen["task"], seen["parser"], seen["unit"]) == (
        {"unit": "none"},
        "default",
        "the parser",
        "none",
    )
    assert {"prompt", "completion", "answer", "info", "task"} <= seen["keys"]
    assert seen["all"] == {"prompt", "completion", "answer", "info", "task", "state", "parser", "unit"}


def test_text_prompts_have_text_completions() -> None:
    def texts(prompt: Any, completion: Any) -> float:
        return float((prompt, completion) == ("2 + 2 =", "4"))

    (verdict,) = judged(rubric(texts), "4", prompt=TEXT)
    assert verdict.score == 1.0


def test_functions_share_a_state_for_each_completion() -> None:
    def first(completion: Any, state: dict[str, Any]) -> float:
        state["kept"] = completion[0]["content"]
        return 0.0

    def second(state: dict[str, Any]) -> float:
        return float(state["kept"])

    assert [verdict.score for verdict in judged(rubric(first, second), "4", "5")] == [4.0, 5.0]


def test_functions_of_a_group_see_it_whole() -> None:
    def longest(completions: list[Any], answers: list[str]) -> list[float]:
        sizes = [len(each[0]["content"]) for each in completions]
        assert answers == ["4"] * len(completions)
        return [float(size == max(sizes)) for size in sizes]

    assert [verdict.score for verdict in judged(rubric(longest, exact), "4", "four")] == [1.0, 1.0]


def test_a_group_of_rubrics_is_their_sum() -> None:
    group = SimpleNamespace(rubrics=[rubric(exact, weights=[0.5]), rubric(brief)])
    assert judged(group, "4")[0].score == 1.5


def test_each_function_s_mean_is_a_metric() -> None:
    panel = JudgePanel([Seat(VerifiersJudge(rubric(exact, brief, weights=[1.0, 0.0]), "sums"))])
    asyncio.run(panel.judge_group(CHAT, [text_completion("4"), text_completion("five")]))
    metrics = panel.metrics()
    assert (metrics["judge/sums/exact"], metrics["judge/sums/brief"]) == (0.5, 0.625)  # (1 + 1/4) / 2
    assert metrics["judge/sums/mean"] == 0.5


# ---- what breaks


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda completion: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda completion: float("nan"), "returned nan"),
        (lambda completion: None, "returned None; return a number"),
        (lambda completion: "0.5", "returned str '0.5'"),
        (lambda completions: [1.0], "returned 1 values for 2 completions"),
        (lambda completions: 1.0, "returned float for 2 completions"),
        (lambda completions: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_function_that_breaks_fails_the_verdict(function: Any, reason: str) -> None:
    function.__name__ = "odd"
    verdicts = judged(rubric(exact, function, weights=[1.0, 0.0]), "4", "5")
    assert all(verdict.status is Status.FAILED and verdict.score is None for verdict in verdicts)
    assert verdicts[0].reason.startswith(f"odd: {reason}")


def test_judge_errors_are_passed_on_for_a_retry() -> None:
    def busy(completion: Any) -> float:
        raise JudgeError("429")

    with pytest.raises(JudgeError, match="429"):
        judged(rubric(busy), "4")


def test_rejects() -> None:
    def by_agent(state: Any) -> dict:
        return {}

    with pytest.raises(ConfigError, match="by_agent: rewards several agents"):
        VerifiersJudge(rubric(by_agent))
    with pytest.raises(ConfigError, match="has no functions"):
        VerifiersJudge(rubric())


# ---- found by their shape


def test_functions_are_told_by_their_parameters() -> None:
    theirs = [
        exact,
        brief,
        lambda completion: 0.0,
        lambda parser, completion, answer: 0.0,
        lambda prompt, completion, answer, state: 0.0,
        lambda prompt, completion, *, info: 0.0,
    ]
    ours = [
        lambda prompt, completion: 0.0,
        lambda prompt, completion, **kwargs: 0.0,
        lambda prompt, completion, answer=None: 0.0,
        lambda p, c: 0.0,
        lambda row, completion: 0.0,
    ]
    assert [type(as_judge(each)) for each in theirs] == [VerifiersJudge] * len(theirs)
    assert [type(as_judge(each)) for each in ours] == [FunctionJudge] * len(ours)


def test_a_rubric_in_hand_will_do_for_a_recipe() -> None:
    judge = build_judge(JudgeConfig(function=rubric(exact), name="sums"))
    assert isinstance(judge, VerifiersJudge) and judge.name == "sums"


RUBRIC = """
from types import SimpleNamespace

def exact(completion, answer):
    return float(completion[-1]["content"] == answer)

rubric = SimpleNamespace(funcs=[exact], weights=[1.0], class_objects={})
"""


def test_a_file_s_rubric_runs_by_name_in_threads_and_processes(tmp_path: Path) -> None:
    (tmp_path / "rubric.py").write_text(RUBRIC)
    spec = f"{tmp_path}/rubric.py:rubric"
    process = ProcessJudge(spec, num_workers=1)
    for judge in (load_judge(spec), process):
        verdicts = asyncio.run(judge.judge(CHAT, [text_completion("4"), text_completion("5")]))
        assert [verdict.score for verdict in verdicts] == [1.0, 0.0] and judge.name == "rubric"
    assert process.metrics() == {"exact": 0.5}
    process.close()
