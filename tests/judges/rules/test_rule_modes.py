"""Where the fixed mode repairs the released grader: one row each, official verdict then fixed verdict."""

import pytest

from llamarl.judges.rules import Grader

pytest.importorskip("langdetect")
pytest.importorskip("lingua")
pytest.importorskip("emoji")

LESS, LEAST = "less than", "at least"
DIFFERENCES = [
    ("a keyword is no regular expression", "keywords:existence", {"keywords": ["a.c"]}, "abc", True, False),
    ("an invalid regular expression means itself", "keywords:existence", {"keywords": [":("]}, "sad :(", False, True),
    (
        "an invalid regular expression is counted",
        "keywords:frequency",
        {"keyword": ":(", "frequency": 2, "relation": LESS},
        "sad :(",
        False,
        True,
    ),
    (
        "a word inside running Chinese",
        "keywords:forbidden_words",
        {"forbidden_words": ["天气"]},
        "今天天气好",
        True,
        False,
    ),
    (
        "a word that ends in a vowel sign",
        "keywords:forbidden_words",
        {"forbidden_words": ["पानी"]},
        "पानी दो",
        True,
        False,
    ),
    (
        "a word that ends in punctuation",
        "keywords:forbidden_words",
        {"forbidden_words": ["wow!"]},
        "Wow! Yes",
        True,
        False,
    ),
    (
        "not inside a longer Hindi word",
        "keywords:forbidden_words",
        {"forbidden_words": ["पान"]},
        "पानी दो",
        False,
        True,
    ),
    (
        "any character can be counted",
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": LEAST},
        "#a #b",
        False,
        True,
    ),
    (
        "Chinese can be asked for",
        "language:response_language",
        {"language": "zh"},
        "今天天气很好，我们去公园散步。",
        False,
        True,
    ),
    (
        "a text without letters is in no language",
        "language:response_language",
        {"language": "fr"},
        "1234 !",
        True,
        False,
    ),
    # 13 words; `re` cuts them into 20 at vowel signs
    (
        "marks belong to words",
        "length_constraints:number_words",
        {"num_words": 14, "relation": LEAST},
        "मैं और मेरी बहन कल सुबह नदी पर नाव देखने पैदल जाएँगे भाई",
        True,
        False,
    ),
    (
        "an apostrophe joins",
        "length_constraints:number_words",
        {"num_words": 2, "relation": LESS},
        "l'école",
        False,
        True,
    ),
    (
        "a decimal point ends no Chinese sentence",
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": LEAST},
        "这本书的价格是3.5元，比昨天便宜一点",
        True,
        False,
    ),
    (
        "a full stop ends a Hindi sentence",
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": LEAST},
        "मैं आज घर जा रहा हूँ. आप कहाँ जा रहे हैं",
        False,
        True,
    ),
    (
        "a list number is no sentence",
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": LESS},
        "1. Wash it. 2. Dry it.",
        False,
        True,
    ),
    (
        "a blank paragraph does not shift the others",
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "so"},
        "\n\nSo it is.\n\nGood.",
        False,
        True,
    ),
    (
        "a first word may be several",
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "il est"},
        "Il est tard.",
        False,
        True,
    ),
    (
        "Chinese has no blanks between words",
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "首先"},
        "首先我们出发",
        False,
        True,
    ),
    (
        "a link is no placeholder",
        "detectable_content:number_placeholders",
        {"num_placeholders": 1},
        "[a](b)",
        True,
        False,
    ),
    (
        "a marker is no regular expression",
        "detectable_content:postscript",
        {"postscript_marker": "N.B"},
        "nxb",
        True,
        False,
    ),
    (
        "nor is a section's name",
        "detectable_format:multiple_sections",
        {"section_spliter": "Day.", "num_sections": 1},
        "Days 2",
        True,
        False,
    ),
    ("a rule is no bullet", "detectable_format:number_bullet_lists", {"num_bullets": 1}, "---\n- a", False, True),
    ("emphasis is no bullet", "detectable_format:number_bullet_lists", {"num_bullets": 1}, "*a* b\n- c", False, True),
    ("guillemets are quotation marks", "startend:quotation", {}, "« Oui »", False, True),
    ("low quotation marks too", "startend:quotation", {}, "„Ja“", False, True),
    (
        "curly quotes may follow the end",
        "startend:end_checker",
        {"end_phrase": "The end."},
        "“So. The end.”",
        False,
        True,
    ),
    (
        "a contraction is one word",
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LESS},
        "DON'T do it",
        False,
        True,
    ),
    ("full-width commas", "punctuation:no_comma", {}, "你好，世界", True, False),
    ("ideographic commas", "punctuation:no_comma", {}, "红、绿", True, False),
    ("Arabic commas", "punctuation:no_comma", {}, "نعم، لا", True, False),
    ("a blank reply follows nothing", "punctuation:no_comma", {}, "  \n", True, False),
    ("capitals that tell no language", "change_case:english_capital", {}, "Ⓐ", True, False),
]


@pytest.fixture(scope="module")
def graders() -> tuple[Grader, Grader]:
    return Grader("official", sentence_splitter="rules"), Grader("fixed")


@pytest.mark.parametrize(
    ("id", "kwargs", "reply", "official", "fixed"),
    [case[1:] for case in DIFFERENCES],
    ids=[case[0] for case in DIFFERENCES],
)
def test_difference(
    graders: tuple[Grader, Grader], id: str, kwargs: dict[str, object], reply: str, official: bool, fixed: bool
) -> None:
    verdicts = [grader.grade(reply, [{"id": id, "kwargs": kwargs}]).strict[0] for grader in graders]
    assert verdicts == [official, fixed]
