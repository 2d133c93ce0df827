import math

import pytest
from valid_arguments import VALID

from llamarl.core.errors import ConfigError
from llamarl.judges.rules import RULES, build_rule
from llamarl.tasks.instructions.catalog import IDS


def test_each_instruction_that_prompts_may_ask_for_has_its_checker() -> None:
    assert tuple(RULES) == IDS


@pytest.mark.parametrize("id", RULES)
@pytest.mark.parametrize("mode", ["official", "fixed"])
def test_valid_arguments_build_a_rule_that_describes_itself(id: str, mode: str) -> None:
    rule = build_rule(id, VALID[id], mode)  # type: ignore[arg-type]
    sentence = rule.describe()
    assert sentence[0].isupper() and "\n" not in sentence
    for value in VALID[id].values():
        values = value if isinstance(value, list) else [value]
        assert all(str(item) in sentence for item in values) or id in (
            "combination:repeat_prompt",
            "language:response_language",
        )


@pytest.mark.parametrize("id", RULES)
def test_a_missing_or_null_or_unknown_argument_is_named(id: str) -> None:
    for name in VALID[id]:
        others = {key: value for key, value in VALID[id].items() if key != name}
        for kwargs in (others, {**others, name: None}):
            with pytest.raises(ConfigError, match=f"{id}: {name} is missing; give "):
                build_rule(id, kwargs)
    with pytest.raises(ConfigError, match=f"{id}: unknown argument 'colour'"):
        build_rule(id, {**VALID[id], "colour": 1})
    assert build_rule(id, {**VALID[id], "colour": None}).id == id  # null columns of flat tables


@pytest.mark.parametrize(
    ("id", "changes", "message"),
    [
        ("length_constraints:number_words", {"num_words": -1}, "num_words=-1; give a whole number of at least 0"),
        ("length_constraints:number_words", {"num_words": "9"}, "num_words='9'; give a whole number"),
        ("length_constraints:number_words", {"num_words": True}, "num_words=True; give a whole number"),
        ("length_constraints:number_words", {"num_words": 2.5}, "num_words=2.5; give a whole number"),
        ("length_constraints:number_words", {"num_words": math.nan}, "num_words=nan; give a whole number"),
        (
            "length_constraints:number_words",
            {"relation": "at most"},
            "relation='at most'; give one of 'less than', 'at",
        ),
        ("length_constraints:nth_paragraph_first_word", {"nth_paragraph": 3}, "nth_paragraph=3; .* at most 2"),
        ("length_constraints:nth_paragraph_first_word", {"nth_paragraph": 0}, "nth_paragraph=0; .* at least 1"),
        ("keywords:letter_frequency", {"letter": "ab"}, "letter='ab'; give one character"),
        ("keywords:existence", {"keywords": []}, r"keywords=\[\]; give a list of at least one text"),
        ("keywords:existence", {"keywords": "river"}, "keywords='river'; give a list"),
        ("keywords:existence", {"keywords": ["a", " "]}, ".*, none of them blank"),
        ("keywords:forbidden_words", {"forbidden_words": ["a", 3]}, ".*; give a list of at least one text"),
        ("keywords:frequency", {"keyword": ""}, "keyword=''; give a text that is not blank"),
        ("language:response_language", {"language": "xx"}, "language='xx'; give one of 'ar'"),
        ("startend:end_checker", {"end_phrase": 3}, "end_phrase=3; give a text"),
    ],
)
def test_a_bad_argument_is_refused_with_what_is_allowed(id: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{id}: {message}"):
        build_rule(id, {**VALID[id], **changes})


def test_official_arguments_are_those_that_the_released_grader_takes_without_drawing() -> None:
    for id, changes in [
        ("keywords:existence", {"keywords": ["", "a"]}),
        ("keywords:frequency", {"keyword": " "}),
        ("startend:end_checker", {"end_phrase": ""}),
        ("change_case:capital_word_frequency", {"capital_frequency": -1}),
    ]:
        build_rule(id, {**VALID[id], **changes}, "official")
        with pytest.raises(ConfigError):
            build_rule(id, {**VALID[id], **changes}, "fixed")
    for id, changes in [
        ("keywords:letter_frequency", {"letter": "é"}),
        ("keywords:letter_frequency", {"letter": "#"}),
        ("language:response_language", {"language": "zh"}),
        ("keywords:existence", {"keywords": ["("]}),
        ("keywords:forbidden_words", {"forbidden_words": ["*"]}),
        ("detectable_format:multiple_sections", {"section_spliter": "["}),
        ("detectable_content:postscript", {"postscript_marker": "(N"}),
    ]:
        build_rule(id, {**VALID[id], **changes}, "fixed")
        with pytest.raises(ConfigError, match=id):
            build_rule(id, {**VALID[id], **changes}, "official")


def test_an_unknown_instruction_suggests_the_near_one() -> None:
    with pytest.raises(
        ConfigError, match=r"no instruction 'punctuation:no_commas'\. Did you mean 'punctuation:no_comma'"
    ):
        build_rule("punctuation:no_commas")
    with pytest.raises(ConfigError, match="no_comma: kwargs=3; give a table"):
        build_rule("punctuation:no_comma", 3)  # type: ignore[arg-type]


def test_whole_floats_of_json_are_numbers() -> None:
    assert build_rule("detectable_format:number_bullet_lists", {"num_bullets": 3.0}).describe().count("3 ") == 1
