"""Where Google's IFEval grader differs from the one released with Multi-IF (multi-if, section 3.3), and where not."""

import pytest

from llamarl.judges.rules import RULES, Grader, build_rule

pytest.importorskip("langdetect")
pytest.importorskip("emoji")

CHINESE = "今天天气很好。我们去公园散步吧！"  # 14 Han characters, 2 sentences
DIFFERENCES = [
    # runs of word characters: 2, where Multi-IF counts 14 characters
    ("length_constraints:number_words", {"num_words": 5, "relation": "at least"}, CHINESE, True, False),
    ("length_constraints:number_words", {"num_words": 5, "relation": "less than"}, CHINESE, False, True),
    # no full stop with a blank behind it: 1 sentence, where Multi-IF finds 2
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, CHINESE, True, False),
    ("startend:quotation", {}, "“All of it is quoted.”", True, False),
    ("startend:quotation", {}, ' "All of it is quoted." ', True, True),
    # a reply of blanks follows nothing
    ("punctuation:no_comma", {}, "   ", True, False),
    ("punctuation:no_comma", {}, "no comma here", True, True),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "three plain words", True, True),
]


@pytest.mark.parametrize(("id", "kwargs", "reply", "official", "google"), DIFFERENCES)
def test_documented_differences(id: str, kwargs: dict, reply: str, official: bool, google: bool) -> None:
    for mode, expected in (("official", official), ("google", google)):
        grade = Grader(mode, sentence_splitter="rules").grade(reply, [{"id": id, "kwargs": kwargs}])
        assert grade.strict == (expected,), mode


def test_only_three_rules_differ() -> None:
    own = {id for id, rule in RULES.items() if "check_google" in vars(rule)}
    assert own == {
        "length_constraints:number_words",
        "length_constraints:number_sentences",
        "startend:quotation",
    }


def test_wrong_arguments_are_not_followed_as_in_official_mode() -> None:
    grade = Grader("google", sentence_splitter="rules").grade("a reply", [{"id": "startend:end_checker", "kwargs": {}}])
    assert grade.strict == (False,) and 0 in grade.ungradable


def test_keywords_are_regular_expressions_as_released() -> None:
    rule = {"id": "keywords:existence", "kwargs": {"keywords": ["r.ver"]}}
    verdicts = {m: Grader(m, sentence_splitter="rules").grade("a river", [rule]).strict for m in ("google", "fixed")}
    assert verdicts == {"google": (True,), "fixed": (False,)}
    assert build_rule("keywords:existence", {"keywords": ["x"]}, "google").mode == "google"
