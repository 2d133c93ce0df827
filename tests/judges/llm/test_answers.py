import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.records import Status
from llamarl.judges.llm.answers import json_verdict, token_verdict

ln = math.log
GOOD = '{"reason": "r", "score": 0.8, "passed": true}'

# ---- one token


def test_golden_ratio() -> None:
    verdict = token_verdict({"Yes": ln(0.6), "No": ln(0.2)}, ["yes"], ["no"])
    assert verdict.score == pytest.approx(0.75) and verdict.passed is True  # 0.6 / 0.8


def test_spellings_are_summed() -> None:
    listed = {"True": ln(0.2), " true": ln(0.1), "Ġtrue": ln(0.1), "False": ln(0.3), "▁FALSE": ln(0.3)}
    verdict = token_verdict(listed, ["True"], ["False"])
    assert verdict.score == pytest.approx(0.4) and verdict.passed is False  # 0.4 / (0.4 + 0.6)


def test_several_words_may_mean_the_same() -> None:
    listed = {"uns": ln(0.5), "safe": ln(0.25)}
    assert token_verdict(listed, ["safe"], ["unsafe", "uns"]).score == pytest.approx(1 / 3)


def test_equal_probabilities_do_not_violate() -> None:
    assert token_verdict({"a": ln(0.4), "b": ln(0.4)}, ["a"], ["b"]).passed is True  # cgpo 3.8: iff P(neg) > P(pos)


def test_an_unlisted_word_gets_its_bound() -> None:
    # listed 0.9 and 0.06: what is left is 0.04, less than the least listed, so P(No) <= 0.04
    verdict = token_verdict({"Yes": ln(0.9), "Well": ln(0.06)}, ["Yes"], ["No"])
    assert verdict.score == pytest.approx(0.9 / 0.94)
    # the least listed is 0.1, less than the 0.4 left over
    verdict = token_verdict({"No": ln(0.5), "Well": ln(0.1)}, ["Yes"], ["No"])
    assert verdict.score == pytest.approx(0.1 / 0.6) and verdict.passed is False


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ({}, "no log-probs"),
        (
            {"Well": ln(0.9), "<think>": ln(0.05)},
            "neither Yes nor No is among the likeliest tokens; likeliest: 'Well', '<think>'",
        ),
        ({"Yesterday": ln(0.9)}, "neither"),
        (
            {"Yes": ln(0.001), "Well": ln(0.9)},
            "Yes and No together have probability 0.001, below min_mass=0.01; likeliest: 'Well', 'Yes'",
        ),
        ({"Yes": -math.inf, "No": -math.inf}, "probability 0"),
        ({"Yes": 0.0, "No": 0.0, "Well": 0.0}, "the listed probabilities sum to 3: these are no log-probs"),
    ],
)
def test_what_decides_nothing_fails(listed: dict[str, float], reason: str) -> None:
    verdict = token_verdict(listed, ["Yes"], ["No"], min_mass=0.01)
    assert verdict.status is Status.FAILED and reason in verdict.reason


@pytest.mark.parametrize(
    ("listed", "score"),
    [
        ({"Un": ln(0.93), "Safe": ln(0.05), "The": ln(0.01)}, 0.05 / 0.98),
        ({"uns": ln(0.75), "Safe": ln(0.2)}, 0.2 / 0.95),
        ({"Ġuns": ln(0.4), "Unsafe": ln(0.1), "Sa": ln(0.5)}, 0.5),
        ({"Safe": ln(0.9), "U": ln(0.05)}, 0.9 / 0.95),  # P(Unsafe) has its bound: the 0.05 left over
    ],
)
def test_a_token_that_begins_one_word_counts_for_it(listed: dict[str, float], score: float) -> None:
    verdict = token_verdict(listed, ["Safe"], ["Unsafe"])
    assert verdict.score == pytest.approx(score) and verdict.passed is (score >= 0.5)


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ({"The": ln(0.6), "Safe": ln(0.3)}, "Safe and Unsafe together have probability 0.3, below min_mass=0.5"),
        ({"U": ln(0.9), "Safe": ln(0.05)}, "together have probability 0.05"),  # one letter begins too many words
        ({"▁": ln(0.9), "Safe": ln(0.05)}, "together have probability 0.05"),
        (
            {"U": ln(0.44), "Safe": ln(0.45), "Unsafe": ln(0.1)},
            "may begin Safe or Unsafe have probability 0.44",
        ),
    ],
)
def test_tokens_that_do_not_tell_the_words_apart_pass_nothing(listed: dict[str, float], reason: str) -> None:
    verdict = token_verdict(listed, ["Safe"], ["Unsafe"])
    assert verdict.status is Status.FAILED and reason in verdict.reason and "way='json'" in verdict.reason


def test_a_word_that_begins_the_other_decides_nothing() -> None:
    verdict = token_verdict({"harm": ln(0.8), "harmless": ln(0.1)}, ["harmless"], ["harm"], min_mass=0.1)
    assert verdict.status is Status.FAILED and "enough to turn" in verdict.reason


@given(st.dictionaries(st.sampled_from(["Yes", "No", " yes", "Well", "", "\n"]), st.floats(-40, 0), min_size=1))
def test_a_score_is_a_probability_and_agrees_with_pass(listed: dict[str, float]) -> None:
    verdict = token_verdict(listed, ["Yes"], ["No"])
    if verdict.status is Status.SCORED:
        assert verdict.score is not None and 0.0 <= verdict.score <= 1.0
        assert verdict.passed is (verdict.score >= 0.5) or math.isclose(verdict.score, 0.5)


# ---- JSON

READABLE = [
    GOOD,
    f"  \n{GOOD}\n",
    f"```json\n{GOOD}\n```",
    f"```\n{GOOD}\n```\n",
    f"Let me think. It is short and right.\n\n{GOOD}",
    f'<think>Would {{"score": 0}} be fair? No.</think>\n{GOOD}',
    f"{GOOD}\n{GOOD}",  # said twice, the same
    f"The reply is a set {{1, 2}} and a dict {{}}; fine.\n{GOOD}",
    '{"score": 0.8, "passed": true}',
    '{"score": 0.8}',
    '{"score": "0.8", "passed": "Yes"}',
    '{"reason": null, "score": 0.8, "passed": null}',
    '{"score": 8e-1, "passed": true, "confidence": 3}',
    '{"reason": "a \\"quoted\\" {brace}", "score": 0.8, "passed": true}',
    '{"reason": "Grund: sehr gut, 很好", "score": 0.8, "passed": true}',
]


@pytest.mark.parametrize("text", READABLE)
def test_readable_answers(text: str) -> None:
    verdict = json_verdict(text)
    assert (verdict.score, verdict.passed) == (0.8, True), verdict.reason


def test_scores_are_moved_to_the_unit_interval() -> None:
    assert json_verdict('{"score": 7}', 1, 10).score == pytest.approx(6 / 9)
    assert json_verdict('{"score": 1}', 1, 10).score == 0.0
    assert json_verdict('{"score": 10}', 1, 10).score == 1.0


def test_what_is_missing_follows_from_the_other() -> None:
    assert json_verdict('{"score": 5}', 0, 10, 6).passed is False
    assert json_verdict('{"score": 6}', 0, 10, 6).passed is True
    assert json_verdict('{"score": 5}', 0, 10).passed is True  # the middle
    assert json_verdict('{"passed": true}').score == 1.0
    assert json_verdict('{"passed": false}', 1, 5).score == 0.0


OBJECTS = [  # never a verdict, wherever they stand
    "",
    "{}",
    "[]",
    "null",
    "true",
    "0.8",
    "good",
    "通过",
    "Die Antwort ist richtig.",
    "Score: 8/10",
    "**Score:** 0.8\n**Passed:** yes",
    "<score>0.8</score>",
    "score: 0.8\npassed: true",
    '{"grade": 0.8}',
    '{"Score": 0.8, "Passed": true}',
    '{"verdict": {"score": 0.8, "passed": true}}',
    '[{"mark": 1}]',
    '{"score": null, "passed": null}',
    '{"score": NaN, "passed": true}',
    '{"score": Infinity}',
    '{"score": -Infinity}',
    '{"score": 1e400}',
    '{"score": 1' + "0" * 400 + "}",
    '{"score": 1.01, "passed": true}',
    '{"score": -0.2, "passed": false}',
    '{"score": 8, "passed": true}',
    '{"score": 100}',
    '{"score": "high", "passed": true}',
    '{"score": "8/10", "passed": true}',
    '{"score": "nan"}',
    '{"score": "0x1", "passed": true}',
    '{"score": true, "passed": true}',
    '{"score": [0.8], "passed": true}',
    '{"score": {"value": 0.8}, "passed": true}',
    '{"score": 0.8, "passed": 1}',
    '{"score": 0.8, "passed": "maybe"}',
    '{"score": 0.8, "passed": []}',
    '{"score": 0.8, "passed": "通过"}',
    '{"score": 0, "passed": true}',
    '{"score": 1, "passed": false}',
    '{"score": 0.2, "score": 0.8}',
    '{"passed": false, "passed": true}',
    '{"score": 0.8, "passed": true',
    '{"score": 0.8, "passed": tru',
    '{"score": 0.8 "passed": true}',
    '{"score": 0.8, "passed": true,}',
    "{'score': 0.8, 'passed': True}",
    "{score: 0.8, passed: true}",
    '{"score": .8, "passed": true}',
    '{"score": 0,8, "passed": true}',
    '"score": 0.8, "passed": true}',
    '{"reason": "no end, "score": 0.8}',
    '{"name": "grade", "arguments": "{\\"score\\": 0.8, \\"passed\\": true}"}',
    '<tool_call>{"name": "grade", "arguments": {"score": 0.8}}</tool_call>',
    '{"error": "overloaded"}',
    '{"score": 0.2, "passed": false}\n{"score": 0.8, "passed": true}',
    '{"score": 0.8, "passed": true} {"score": 0.8, "passed": false}',
    '[{"score": 0.8, "passed": true}]',
    f'The reply says "{GOOD}" which is a trick.',
    f"'{GOOD}'",
    f"`{GOOD}`",
    f"“{GOOD}”",
    f"{GOOD}\nThat is what the reply wrote; I would not pass it.",
    f"{GOOD} But this is only a quotation.",
    f"{GOOD}</think>",
    f"{GOOD}, {GOOD[:-1]}",
    "{" * 5000,
    '{"a":' * 3000,
    "x" * 30_000,
    GOOD + " " * 30_000,
]
WRAPPERS = ["{}", "```json\n{}\n```", "I compared both.\n{}"]
MALFORMED = [wrapper.replace("{}", text, 1) for text in OBJECTS for wrapper in WRAPPERS]


def test_the_corpus_is_large_enough() -> None:
    assert len(set(MALFORMED)) >= 200


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_malformed_answers_are_failed_verdicts(number: int) -> None:
    verdict = json_verdict(MALFORMED[number])
    assert verdict.status is Status.FAILED and verdict.score is None, (MALFORMED[number][:200], verdict)
    assert verdict.reason.startswith("the answer is no verdict: ") and len(verdict.reason) < 300


@given(st.text(alphabet='{}[]":,\\`0189.-eE \nscorepasdtruflnN', max_size=80))
def test_no_text_crashes_the_reader(text: str) -> None:
    for answer in (text, f'{{"score": {text}}}', f"{text}{GOOD}", f"{GOOD}{text}"):
        verdict = json_verdict(answer)
        assert verdict.status is not Status.SCORED or 0.0 <= (verdict.score or 0.0) <= 1.0
