import asyncio
import functools
from typing import Any

import numpy as np
import pytest

from llamarl.core.errors import ConfigError, JudgeError
from llamarl.core.records import Completion, Prompt, Status, Trajectory, Verdict
from llamarl.data import TEXT_PROMPT, read_prompts
from llamarl.judges import TRLJudge, VerlJudge, text_completion

MESSAGES = ({"role": "user", "content": "2 + 2 ="},)
CHAT = Prompt("p", MESSAGES, answer="4", task="sums", info={"solution": "4", "level": 2})
TEXT = Prompt("p", MESSAGES, answer="4", info={TEXT_PROMPT: True})


def judged(function: Any, *texts: str, prompt: Prompt = CHAT, **options: Any) -> list[Verdict]:
    return asyncio.run(TRLJudge(function, **options).judge(prompt, [text_completion(text) for text in texts]))


def seen_by(prompt: Prompt, **options: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def reward(**keywords: Any) -> list[float]:
        seen.update(keywords)
        return [1.0, 0.0]

    judged(reward, "4", "5", prompt=prompt, **options)
    return seen


def test_a_chat_reward_function_works_unchanged() -> None:
    def accuracy(completions, solution, **kwargs):
        contents = [completion[0]["content"] for completion in completions]
        return [1.0 if content == answer else 0.0 for content, answer in zip(contents, solution, strict=True)]

    verdicts = judged(accuracy, "4", "5")
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0]
    assert all(verdict.seconds > 0 for verdict in verdicts)


def test_messages_in_where_the_data_holds_messages() -> None:
    seen = seen_by(CHAT)
    assert seen["prompts"] == [list(MESSAGES)] * 2
    assert seen["completions"] == [[{"role": "assistant", "content": text}] for text in ("4", "5")]


def test_text_in_where_the_data_holds_text() -> None:
    seen = seen_by(read_prompts([{"prompt": "2 + 2 ="}])[0])
    assert (seen["prompts"], seen["completions"]) == (["2 + 2 ="] * 2, ["4", "5"])
    assert TEXT_PROMPT not in seen


def test_the_form_can_be_chosen() -> None:
    assert seen_by(CHAT, form="text")["completions"] == ["4", "5"]
    assert seen_by(TEXT, form="messages")["completions"][0] == [{"role": "assistant", "content": "4"}]


def test_columns_are_repeated_for_each_completion() -> None:
    seen = seen_by(CHAT)
    columns = {name: seen[name] for name in ("solution", "level", "answer", "task", "id")}
    assert columns == {
        "solution": ["4"] * 2,
        "level": [2] * 2,
        "answer": ["4"] * 2,
        "task": ["sums"] * 2,
        "id": ["p"] * 2,
    }


def test_token_ids_and_step_come_from_the_completions() -> None:
    seen: dict[str, Any] = {}

    def reward(completion_ids, trainer_state, **kwargs):
        seen.update(ids=completion_ids, step=trainer_state.global_step)
        return [1.0]

    completion = Completion(Trajectory.sampled((1,), (5, 6), (-0.1, -0.2), (3, 4)), "x")
    asyncio.run(TRLJudge(reward).judge(CHAT, [completion]))
    assert seen == {"ids": [[5, 6]], "step": 4}


def test_a_function_without_kwargs_gets_what_it_names() -> None:
    def brevity(completions, level):
        return [float(step) for step in level]

    assert judged(brevity, "a")[0].score == 2.0


def test_none_abstains_and_arrays_are_lists() -> None:
    def some(completions, **kwargs):
        return [None, 1]

    assert [verdict.status for verdict in judged(some, "a", "b")] == [Status.ABSTAINED, Status.SCORED]
    assert [v.score for v in judged(lambda completions, **kwargs: np.array([1.0, 0.5]), "a", "b")] == [1.0, 0.5]


def test_async_functions_are_awaited() -> None:
    async def reward(completions, **kwargs):
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    assert judged(reward, "a")[0].score == 1.0


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ([1.0], "returned 1 rewards for 2 completions"),
        ([1.0] * 3, "returned 3 rewards for 2 completions"),
        (1.0, "returned float; return a list of float or None"),
        (None, "returned NoneType"),
        ([float("nan"), "x"], "returned "),
        (StopIteration(), "StopIteration"),
        (SystemExit(1), "SystemExit"),
        (KeyError("solution"), "KeyError: 'solution'"),
    ],
)
def test_nonsense_and_exceptions_fail_the_whole_call(result: Any, reason: str) -> None:
    def reward(completions, **kwargs):
        if isinstance(result, BaseException):
            raise result
        return result

    verdicts = judged(reward, "a", "b")
    assert [verdict.status for verdict in verdicts] == [Status.FAILED] * 2
    assert all(verdict.reason.startswith(reason) for verdict in verdicts)


def test_a_missing_column_is_named() -> None:
    (verdict,) = judged(lambda completions, gold: [1.0], "a")
    assert "missing 1 required positional argument: 'gold'" in verdict.reason


def test_judge_errors_are_passed_on_for_a_retry() -> None:
    def reward(completions, **kwargs):
        raise JudgeError("429")

    with pytest.raises(JudgeError, match="429"):
        judged(reward, "a")


def test_logged_extras_become_reasons_and_logged_metrics_means() -> None:
    def reward(completions, log_extra, log_metric, **kwargs):
        log_extra("parsed", [completion[0]["content"] for completion in completions])
        log_metric("valid", len(completions))
        return [1.0] * len(completions)

    judge = TRLJudge(reward)
    verdicts = asyncio.run(judge.judge(CHAT, [text_completion("a"), text_completion("b")]))
    asyncio.run(judge.judge(CHAT, [text_completion("a")]))
    assert [verdict.reason for verdict in verdicts] == ["parsed=a", "parsed=b"]
    assert judge.metrics() == {"valid": 1.5}
    assert judge.metrics() == {}


def test_rejects_what_is_no_function_or_form() -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        TRLJudge("reward")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="form: got 'string'"):
        TRLJudge(len, form="string")  # type: ignore[arg-type]


# ---- verl


def verl_judged(result: Any) -> tuple[Verdict, dict[str, Any]]:
    seen: dict[str, Any] = {}

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        seen.update(source=data_source, solution=solution_str, truth=ground_truth, extra=extra_info)
        return result

    row = {"data_source": "sums", "prompt": list(MESSAGES), "reward_model": {"ground_truth": "4"}}
    (prompt,) = read_prompts([{**row, "extra_info": {"index": 1}}])
    judge = VerlJudge(compute_score)
    assert judge.name == "compute_score"
    return asyncio.run(judge.judge(prompt, [text_completion("four")]))[0], seen


def test_a_verl_score_gets_its_four_arguments() -> None:
    verdict, seen = verl_judged(0.5)
    assert verdict.score == 0.5
    assert seen == {"source": "sums", "solution": "four", "truth": "4", "extra": {"index": 1}}


def verl_score(function: Any) -> Verdict:
    (prompt,) = read_prompts([{"data_source": "sums", "prompt": "2+2", "reward_model": {"ground_truth": "4"}}])
    return asyncio.run(VerlJudge(function).judge(prompt, [text_completion("4")]))[0]


def test_a_verl_function_gets_the_keywords_that_it_takes() -> None:
    def compute_score(solution_str, ground_truth, method="strict", format_score=0.0):
        return float(solution_str == ground_truth and method == "strict")

    async def later(solution_str, ground_truth, **kwargs):
        await asyncio.sleep(0)
        return {"score": float(solution_str == ground_truth), "keywords": sorted(kwargs)}

    assert verl_score(compute_score).score == 1.0
    assert verl_score(functools.partial(compute_score, method="loose")).score == 0.0
    verdict = verl_score(later)
    assert (verdict.score, verdict.reason) == (1.0, "keywords=['data_source', 'extra_info']")


def test_a_verl_function_that_needs_more_is_refused() -> None:
    def compute_score(solution_str, ground_truth, method):
        return 1.0

    with pytest.raises(ConfigError, match="compute_score: parameter 'method' has no default, and verl's keywords are"):
        VerlJudge(compute_score)
    assert verl_score(functools.partial(compute_score, method="strict")).score == 1.0


def test_a_verl_dictionary_gives_its_score_and_its_reason() -> None:
    assert verl_judged({"score": 1.0, "acc": True, "pred": "4"})[0].reason == "acc=True, pred=4"
    assert verl_judged({"score": None})[0].status is Status.ABSTAINED
    assert verl_judged({"acc": 1})[0].reason == "returned a dictionary without 'score': ['acc']"
