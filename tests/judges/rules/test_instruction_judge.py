import asyncio
import pickle
from typing import Any

import pytest

from llamarl.core.errors import ConfigError
from llamarl.core.judge import Judge
from llamarl.core.records import Completion, Prompt, Status, Verdict
from llamarl.judges import ProcessJudge, load_judge, text_completion
from llamarl.judges.rules import InstructionJudge

NO_COMMA: dict[str, Any] = {"id": "punctuation:no_comma", "kwargs": {}}
TITLE: dict[str, Any] = {"id": "detectable_format:title"}


def prompt(**info: Any) -> Prompt:
    return Prompt(id="p", messages=({"role": "user", "content": "Write."},), info=info)


def judged(judge: Judge, *replies: str, **info: Any) -> list[Verdict]:
    completions: list[Completion] = [text_completion(reply) for reply in replies]
    return asyncio.run(judge.judge(prompt(**info), completions))


def test_the_score_is_the_fraction_followed_and_all_must_pass() -> None:
    both, one, none = judged(InstructionJudge(), "<<a>>", "<<a, b>>", "a, b", instructions=[NO_COMMA, TITLE])
    assert (both.score, both.passed, both.reason) == (1.0, True, "")
    assert (one.score, one.passed) == (0.5, False)
    assert one.reason == "violated: punctuation:no_comma (Use no commas.)"
    assert (none.score, none.passed) == (0.0, False)
    assert "no_comma" in none.reason and "title" in none.reason
    assert both.seconds > 0


def test_the_score_may_be_all_or_nothing() -> None:
    one, both = judged(InstructionJudge(score="all"), "<<a, b>>", "<<a>>", instructions=[NO_COMMA, TITLE])
    assert (one.score, one.passed, both.score, both.passed) == (0.0, False, 1.0, True)


def test_it_abstains_without_instructions() -> None:
    for info in ({}, {"instructions": []}, {"instructions": None}):
        (verdict,) = judged(InstructionJudge(), "a", **info)
        assert verdict.status is Status.ABSTAINED


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ([{"id": "punctuation:no_commas"}], "Did you mean 'punctuation:no_comma'"),
        ([{"id": "keywords:existence"}], "keywords is missing"),
        (["punctuation:no_comma"], r"instructions\[0\]"),
        ("punctuation:no_comma", "give a list"),
    ],
)
def test_wrong_instructions_fail_and_can_be_found_before_a_run(instructions: Any, message: str) -> None:
    judge = InstructionJudge()
    verdicts = judged(judge, "a", "b", instructions=instructions)
    assert [verdict.status for verdict in verdicts] == [Status.FAILED] * 2
    with pytest.raises(ConfigError, match=f"prompt 'p': .*{message}"):
        judge.check(prompt(instructions=instructions))
    judge.check(prompt(instructions=[NO_COMMA]))
    judge.check(prompt())


def test_a_keyword_that_could_hang_fails_the_verdict() -> None:
    pytest.importorskip("langdetect")
    pytest.importorskip("emoji")
    judge = InstructionJudge("official", sentence_splitter="rules")
    slow = {"id": "keywords:existence", "kwargs": {"keywords": ["(a+)+$"]}}
    (verdict,) = judged(judge, "a" * 99, instructions=[slow, NO_COMMA])
    assert verdict.status is Status.FAILED and "keywords:existence" in verdict.reason


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="score='mean'; choose 'fraction' or 'all'"):
        InstructionJudge(score="mean")  # type: ignore[arg-type]


def test_a_recipe_reaches_it_by_name_and_a_worker_process_runs_it() -> None:
    spec = "llamarl.judges.rules:follows_instructions"
    assert load_judge(spec).name == "instructions"
    judge = ProcessJudge(spec, num_workers=1, timeout_seconds=30)
    try:
        (verdict,) = judged(judge, "a, b", instructions=[NO_COMMA])
    finally:
        judge.close()
    assert verdict.passed is False


def test_it_pickles_after_use() -> None:
    judge = InstructionJudge(score="all", name="rules")
    judged(judge, "a", instructions=[NO_COMMA])
    copy = pickle.loads(pickle.dumps(judge))
    assert copy.name == "rules"
    assert judged(copy, "a", instructions=[NO_COMMA])[0].passed
