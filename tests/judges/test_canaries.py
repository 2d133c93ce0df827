"""On virtual time: a judge that errs on what is known is found at the start, and while it goes on judging."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamarl.core.errors import ConfigError, DataError, JudgeError
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges import (
    FunctionJudge,
    Judge,
    JudgeConfig,
    JudgeExecutor,
    JudgeInfo,
    JudgePanel,
    Seat,
    build_panel,
    check_canaries,
    text_completion,
)
from llamarl.judges.canary import CanaryWatch, read_canaries
from llamarl.judges.seat import Canary
from llamarl.testing import run_virtual

PROMPT = Prompt("p", ({"role": "user", "content": "2 + 2 ="},), answer="4")
CANARIES = tuple(Canary(PROMPT, text, text == "4", "c.jsonl, line 7") for text in ("4", "5", ""))
GROUP = [text_completion("4")]


class Moody(Judge):
    """Right, but for the texts that it is told to judge otherwise."""

    name = "moody"

    def __init__(self) -> None:
        self.moods: dict[str, Any] = {}
        self.asked: list[str] = []

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        self.asked += [each.text for each in completions]
        await asyncio.sleep(1.0)
        right = [Verdict.scored(float(c.text == prompt.answer), passed=c.text == prompt.answer) for c in completions]
        return [self.moods.get(c.text, verdict) for c, verdict in zip(completions, right, strict=True)]


def panel_of(judge: Judge, every: int = 2, **fields: Any) -> JudgePanel:
    return JudgePanel([Seat(judge, canaries=CANARIES, canaries_every=every, **fields)])


def look(watch: CanaryWatch, during_run: bool = False) -> list[str]:
    return run_virtual(watch.look(during_run=during_run))


# ---- before a run


def test_a_judge_that_is_right_has_nothing_to_answer_for() -> None:
    panel = panel_of(Moody())
    watch = CanaryWatch(panel)
    assert watch.metrics()["judge/moody/canary_error_rate"] is None, "not looked at yet"
    assert look(watch) == []
    metrics = panel.metrics()
    assert watch.metrics()["judge/moody/canary_error_rate"] == 0.0
    assert (metrics["judge/moody/count"], metrics["judge/unscored_frac"]) == (0.0, 0.0), "canaries are no samples"


def test_each_wrong_verdict_is_named_with_its_place_and_reason() -> None:
    judge = Moody()
    judge.moods = {"5": Verdict.scored(1.0, True, "looks fine"), "4": Verdict.scored(0.4), "": Verdict.failed("down")}
    watch = CanaryWatch(panel_of(judge))
    assert look(watch) == [
        "judge 'moody' did not pass on '4', which must pass (c.jsonl, line 7)",
        "judge 'moody' passed on '5', which must not pass (c.jsonl, line 7): looks fine",
        "judge 'moody' failed on '', which must not pass (c.jsonl, line 7): down",
    ]
    assert watch.metrics()["judge/moody/canary_error_rate"] == 1.0  # 2 of the 2 that it judged


def test_a_constraint_that_only_scores_is_found_at_the_start() -> None:
    judge = FunctionJudge(lambda prompt, completion: 1.0, "rule", is_inline=True)
    problems = look(CanaryWatch(panel_of(judge, role="constraint")))
    assert len(problems) == 3 and "a constraint judge says pass or fail" in problems[0]


def test_a_judge_that_only_scores_passes_from_its_own_score_on() -> None:
    judge = Moody()
    judge.info = JudgeInfo(pass_score=0.0)
    judge.moods = {"4": Verdict.scored(0.1), "5": Verdict.scored(-0.1), "": Verdict.scored(-2.0)}
    assert look(CanaryWatch(panel_of(judge))) == []


def test_a_canary_without_its_judge_s_field_is_refused_before_the_run(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    path.write_text('{"id": "c1", "prompt": "2 + 2 =", "completion": "4", "label": true}\n')
    panel = build_panel([JudgeConfig(function="math", canaries=str(path))])
    with pytest.raises(ConfigError, match=r"canaries.jsonl, line 1: prompt 'c1' .*judge 'math': answer is missing"):
        panel.check([PROMPT])


# ---- during a run


def test_during_a_run_they_are_tried_every_so_many_groups_and_ring_once() -> None:
    judge = Moody()
    panel = panel_of(judge, every=2)
    watch = CanaryWatch(panel)

    async def main() -> list[list[str]]:
        assert await watch.look() == []
        rings = []
        for _ in range(6):
            await panel.judge_group(PROMPT, GROUP)
            rings.append(await watch.look(during_run=True))
            judge.moods = {"5": Verdict.scored(1.0, passed=True)}
        return rings

    rings = run_virtual(main())
    assert [len(ring) for ring in rings] == [0, 1, 0, 0, 0, 0], "due after 2, 4 and 6 groups; new at the first of them"
    assert judge.asked.count("5") == 1 + 3


def test_during_a_run_a_judge_that_fails_does_not_ring() -> None:
    judge = Moody()
    judge.moods = dict.fromkeys(["4", "5", ""], Verdict.failed("down"))
    watch = CanaryWatch(panel_of(judge, every=0))
    assert look(watch, during_run=True) == []
    assert watch.metrics()["judge/moody/canary_error_rate"] is None, "nothing judged"


def test_what_is_mended_rings_again_when_it_breaks_again() -> None:
    judge, bad = Moody(), {"5": Verdict.scored(1.0, passed=True)}
    watch = CanaryWatch(panel_of(judge, every=0))
    counts = []
    for judge.moods in (bad, bad, {}, bad):
        counts.append(len(look(watch, during_run=True)))
    assert counts == [1, 0, 0, 1]


# ---- files and recipes


def test_rows_are_those_of_calibration(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    rows = [
        {"prompt": "2 + 2 =", "answer": "4", "completion": ["4", "5"], "label": [True, False]},
        {"prompt": "1 + 1 =", "answer": "2", "completion": "2", "label": 1},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_canaries(path)
    assert [(c.text, c.should_pass, c.place) for c in found] == [
        ("4", True, f"{path}, line 1"),
        ("5", False, f"{path}, line 1"),
        ("2", True, f"{path}, line 2"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completion": "4"}, "line 1, field 'label': missing; give true"),
        ({"prompt": "p", "completion": "4", "label": "good"}, "field 'label': got .*good.*; give true or false"),
        ({"prompt": "p", "completion": ["4", "5"], "label": [True]}, "1 for 2 completions"),
        ({"prompt": "p", "label": True}, "field 'completion': missing"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "canaries.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        read_canaries(path)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"canaries='no/such\.jsonl': no such file"):
        build_panel([JudgeConfig(function="math", canaries="no/such.jsonl")])


def test_the_executor_looks_at_those_of_every_task(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    path.write_text('{"prompt": "2 + 2 =", "answer": "4", "completion": ["#### 4", "#### 5"], "label": [true, true]}')
    with_canaries = [JudgeConfig(function="math", canaries=str(path))]
    executor = JudgeExecutor({"a": with_canaries, "b": [JudgeConfig(function="format")], "c": with_canaries})
    executor.setup()
    problems = asyncio.run(executor.check_canaries())
    assert len(problems) == 2 and all("did not pass on '#### 5'" in problem for problem in problems)
    assert asyncio.run(executor.check_canaries(True)) == []
    executor.teardown()


# ---- right answers, by hand


def canary(function: Any, *answers: str) -> None:
    asyncio.run(check_canaries(FunctionJudge(function, "j"), [(PROMPT, answer) for answer in answers]))


def test_a_judge_that_knows_right_answers_passes() -> None:
    canary(lambda prompt, completion: completion.text == prompt.answer, "4", "4")
    canary(lambda prompt, completion: None if completion.text == "?" else 0.5, "4", "?")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompt, completion: 0.0, "judge 'j' on the right answer '4' to prompt 'p'"),
        (lambda prompt, completion: False, "score=0.0, passed=False"),
        (lambda prompt, completion: 1 / 0, "ZeroDivisionError"),
        (lambda prompt, completion: None, "abstained from all 1 right answers"),
    ],
)
def test_a_judge_that_scores_everything_zero_is_found_at_the_start(function: Any, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        canary(function, "4")
