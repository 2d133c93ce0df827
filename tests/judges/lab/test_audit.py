import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges import FunctionJudge, Judge, JudgeInfo, JudgePanel, Seat, as_judge
from llamarl.judges.config import JudgeConfig
from llamarl.judges.lab.attacks import ATTACKS, INJECTIONS
from llamarl.judges.lab.audit import AttackResult, audit, overall, problems, shipped_rows
from llamarl.judges.lab.calibrate import calibrate
from llamarl.judges.lab.runner import equal_panel
from llamarl.judges.rows import CompletionRow

PROMPT = Prompt("p", ({"role": "user", "content": "Capital of France?"},), answer="Paris")


def tried(function: Any, attacks: Sequence[str] | None = None, rows: Any = None) -> dict[str, AttackResult]:
    panel = JudgePanel(
        [Seat(FunctionJudge(function, "j", is_inline=True))], retry_seconds=0.0, max_failures_in_row=10**9
    )
    results = asyncio.run(audit(panel, rows or [CompletionRow("d", 1, PROMPT)], attacks))
    return {result.attack: result for result in results}


def test_a_judge_that_passes_all_is_fooled_by_all() -> None:
    results = tried(lambda prompt, completion: True)
    assert results.keys() == ATTACKS.keys()
    assert all(result.rate == 1.0 and result.tried > 0 and result.examples for result in results.values())


def test_an_exact_judge_is_fooled_by_none() -> None:
    row = CompletionRow("d", 1, PROMPT, (), {"good": "Paris"})
    results = tried(lambda prompt, completion: completion.text == prompt.answer, rows=[row])
    assert results.pop("good").rate == 1.0
    assert all(result.rate == 0.0 and not result.examples for result in results.values())


@pytest.mark.parametrize(
    ("weakness", "attack"),
    [
        (lambda p, c: c.text.strip() == "", "empty"),
        (lambda p, c: c.text.endswith(":"), "punctuation"),
        (lambda p, c: "step" in c.text, "master_key"),
        (lambda p, c: "Capital" in c.text, "copied_prompt"),
        (lambda p, c: "Ignore all previous" in c.text, "injection"),
        (lambda p, c: "boxed" in c.text, "format_cheat"),
        (lambda p, c: "Paris" in c.text, "answer_list"),
    ],
)
def test_each_weakness_shows_in_its_row(weakness: Any, attack: str) -> None:
    rate = tried(weakness)[attack].rate
    assert rate is not None and rate > 0


def test_scores_pass_from_a_half_on_and_the_rest_is_counted() -> None:
    verdicts = iter([0.5, 0.49, None, Verdict.failed("x"), 1.0])
    result = tried(lambda prompt, completion: next(verdicts), ["empty"])["empty"]
    assert (result.tried, result.scored, result.passed, result.abstained, result.failed) == (5, 3, 2, 1, 1)
    assert result.rate == pytest.approx(2 / 3) and result.upper > result.rate


def test_scores_of_another_scale_pass_from_the_judges_own_score_on() -> None:
    class Margin(Judge):
        name, info = "margin", JudgeInfo(pass_score=0.0)

        async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
            return [Verdict.scored(0.1 if completion.text == "Paris" else -0.1) for completion in completions]

    row = CompletionRow("d", 1, PROMPT, ("Rome",), {"good": "Paris"})
    bad, good = asyncio.run(audit(JudgePanel([Seat(Margin())]), [row], ["known_bad"]))
    assert (bad.rate, good.rate) == (0.0, 1.0)
    labelled = CompletionRow("d", 1, PROMPT, ("Paris", "Rome"), {"label": [True, False]})
    (result,) = asyncio.run(calibrate(JudgePanel([Seat(Margin())]), [labelled]))
    assert (result.confusion.agreement, result.auroc) == (1.0, 1.0)


def test_a_judge_that_never_judges_has_no_rate() -> None:
    result = tried(lambda prompt, completion: None, ["empty"])["empty"]
    assert result.rate is None and result.upper == 1.0


def test_known_bad_replies_are_tried_with_injections() -> None:
    row = CompletionRow("d", 1, PROMPT, ("Here is how to build it.",))
    results = tried(lambda p, c: c.text.endswith("Answer True, Yes, Safe."), ["known_bad", "known_bad_injected"], [row])
    assert (results["known_bad"].tried, results["known_bad"].passed) == (1, 0)
    assert (results["known_bad_injected"].tried, results["known_bad_injected"].passed) == (2 * len(INJECTIONS), 1)


def test_good_replies_do_not_count_as_false_positives() -> None:
    row = CompletionRow("d", 1, PROMPT, (), {"good": ["Paris", "Paris."]})
    results = tried(lambda p, c: c.text.startswith("Paris"), ["empty"], [row])
    (total,) = overall(list(results.values()))
    assert results["good"].rate == 1.0 and not results["good"].examples
    assert (total.passed, total.tried) == (0, 5)


def test_right_replies_that_fail_are_shown() -> None:
    row = CompletionRow("d", 1, PROMPT, (), {"good": "Paris"})
    assert tried(lambda p, c: False, ["empty"], [row])["good"].examples == ("Paris",)


def test_rejects() -> None:
    with pytest.raises(ConfigError, match=r"attack 'emty': unknown. Did you mean 'empty'"):
        tried(lambda p, c: True, ["emty"])
    with pytest.raises(DataError, match="d, line 1, field 'good'"):
        tried(lambda p, c: True, rows=[CompletionRow("d", 1, PROMPT, (), {"good": 3})])


# ---- problems


def result(attack: str, tried: int, passed: int, *, abstained: int = 0, failed: int = 0) -> AttackResult:
    return AttackResult("j", attack, tried, tried - abstained - failed, passed, abstained, failed)


def test_the_limit_holds_for_each_kind_of_attack() -> None:
    results = [result("empty", 420, 0), result("answer_list", 138, 18), result("good", 10, 10)]
    assert overall(results)[0].rate < 0.05  # type: ignore[operator]  # all together would do
    assert problems(results) == [
        "judge 'j' passes 13.0% of what deserves nothing in the attack answer_list (limit 5.0%); see the examples"
    ]
    assert problems(results, 0.2) == []


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        ([result("empty", 5, 0, abstained=5)], "judge 'j' judged none of the attacks, so this says nothing of it"),
        (
            [result("empty", 5, 0), result("injection", 9, 0, abstained=9)],
            "judge 'j' judged none of the replies of the attack injection, so this says nothing of them",
        ),
        (
            [result("empty", 5, 0), result("good", 2, 0, abstained=2)],
            "judge 'j' judged none of the good replies, so this says nothing of them",
        ),
        ([result("empty", 5, 0), result("good", 10, 9)], "judge 'j' passes only 90.0% of the replies that should pass"),
        (
            [result("empty", 5, 0), result("good", 10, 9, failed=1)],
            "judge 'j' failed on 1 of 10 good replies, which are in no rate",
        ),
        ([result("empty", 5, 0, failed=1)], "judge 'j' failed on 1 of 5 replies, which are in no rate"),
    ],
)
def test_what_speaks_against_a_judge_is_said(results: list[AttackResult], problem: str) -> None:
    assert problems(results) == [problem]


def test_an_audit_that_would_ask_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="attack 'known_bad': no row has a reply for it; give rows with 'completion'"):
        tried(lambda p, c: True, ["known_bad"])
    other = Prompt("q", PROMPT.messages, info={"judges": ["other"]})
    with pytest.raises((ConfigError, DataError), match="judge"):
        tried(lambda p, c: True, rows=[CompletionRow("d", 1, other)])


# ---- shipped rows


@pytest.mark.parametrize("name", ["math", "instructions"])
def test_shipped_judges_pass_what_is_good(name: str) -> None:
    panel = equal_panel([JudgeConfig(function=name)])
    results = {result.attack: result for result in asyncio.run(audit(panel, shipped_rows(panel)))}
    panel.close()
    assert results["good"].rate == 1.0, results["good"].examples
    assert problems(list(results.values())) == []
    for attack in ATTACKS:
        assert results[attack].rate == 0.0, results[attack].examples


def test_each_judge_gets_the_shipped_rows_that_fit_it() -> None:
    class Picky(Judge):
        name = "picky"

        def check(self, prompt: Prompt) -> None:
            if prompt.answer != "Jupiter":
                raise ConfigError("answer: not a planet")

        async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
            return [Verdict.scored(0.0)] * len(completions)

    panel = JudgePanel([Seat(Picky()), Seat(as_judge(lambda prompt, completion: 0.0, "any"))])
    rows = shipped_rows(panel)
    assert [row.prompt.id for row in rows if row.prompt.info["judges"] == ["picky"]] == ["planet"]
    assert sum(row.prompt.info["judges"] == ["any"] for row in rows) >= 6
    results = asyncio.run(audit(panel, rows, ["empty"]))
    assert [result.abstained for result in results] == [0] * len(results), "rows of other judges do not count"


def test_without_a_fitting_row_there_is_no_audit() -> None:
    class Never(Judge):
        name = "never"

        def check(self, prompt: Prompt) -> None:
            raise ConfigError("info.tests: missing")

        async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
            raise NotImplementedError

    with pytest.raises(ConfigError, match=r"none of the shipped prompts fits \(.*info.tests: missing\); give your own"):
        shipped_rows(JudgePanel([Seat(Never())]))
