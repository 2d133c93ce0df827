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
    *(
        (f"a forbidden word in disguise: {reply!r}", "keywords:forbidden_words", {"forbidden_words": ["bad"]}, *rest)
        for reply, *rest in (
            ("so _bad_ it is", "so _bad_ it is", True, False),
            ("__bad__", "__bad__", True, False),
            ("ba\\u200bd", "a ba\u200bd idea", True, False),
            ("ba\\u00add", "a ba\u00add idea", True, False),
            ("word joiner", "a ba\u2060d idea", True, False),
            ("tag", "a ba\U000e0064d idea", True, False),
            ("variation selector", "a b\ufe0fad idea", True, False),
            ("strokes", "a b\u0336a\u0336d\u0336 idea", True, False),
            ("full width", "a ｂａｄ idea", True, False),
            ("emphasis inside", "a b**ad** idea", True, False),
            ("a longer name", "a foo_bad_bar", True, True),
            ("a longer word", "a badger _badge_", True, True),
        )
    ),
    *(
        (f"one apostrophe: {word!r} in {reply!r}", "keywords:existence", {"keywords": [word]}, reply, False, True)
        for word, reply in (
            ("don't", "I don\u2019t know"),
            ("l'été", "C\u2019est l\u2019été"),
            ("aujourd'hui", "aujourd\u02bchui"),
            ("rock\u2019n\u2019roll", "rock'n'roll"),
            ("café", "un cafe\u0301"),
            ("cafe\u0301", "un café"),
            ("well-known", "a well\u2011known fact"),
            ("New York", "in New\u00a0York"),
            ("New York", "in New\nYork"),
            ("Ångström", "one A\u030angstro\u0308m"),
        )
    ),
    (
        "hits of any make are counted",
        "keywords:frequency",
        {"keyword": "l'eau", "frequency": 2, "relation": LEAST},
        "l\u2019eau, l'eau",
        False,
        True,
    ),
    (
        "a ban with another apostrophe",
        "keywords:forbidden_words",
        {"forbidden_words": ["don't"]},
        "I don\u2019t know",
        True,
        False,
    ),
    (
        "a letter with its accent composed",
        "keywords:letter_frequency",
        {"letter": "é", "let_frequency": 2, "let_relation": LEAST},
        "e\u0301te\u0301",
        False,
        True,
    ),
    *(
        (
            f"paragraphs parted by {gap!r}",
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "two"},
            f"One.{gap}Two.",
            False,
            True,
        )
        for gap in ("\r\n\r\n", "\n \n", "\n\t\n", "\r\r", "\n\u200b\n", "\u2029\u2029", "\n\n \n")
        if gap != "\n\n \n"
    ),
    (
        "a first word with another apostrophe",
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "aujourd'hui"},
        "Aujourd\u2019hui il pleut.",
        False,
        True,
    ),
    (
        "a paragraph that nobody sees",
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "a***\u200b",
        True,
        False,
    ),
    ("JSON has no NaN", "detectable_format:json_format", {}, '{"a": NaN}', True, False),
    ("nor infinities", "detectable_format:json_format", {}, "[-Infinity]", True, False),
    ("a fence that is never closed", "detectable_format:json_format", {}, '```json\n{"a": 1}', True, False),
    ("a long number is JSON", "detectable_format:json_format", {}, "[" + "9" * 5000 + "]", False, True),
    ("a mark before JSON", "detectable_format:json_format", {}, '\ufeff{"a": 1}', False, True),
    ("answers that look the same", "combination:two_responses", {}, "Yes.******\u200bYes.", True, False),
    (
        "a placeholder that nobody sees",
        "detectable_content:number_placeholders",
        {"num_placeholders": 1},
        "[\u200b]",
        True,
        False,
    ),
    ("a title that nobody sees", "detectable_format:title", {}, "<<\u200b>>", True, False),
    (
        "a soft hyphen parts no word",
        "length_constraints:number_words",
        {"num_words": 2, "relation": LEAST},
        "co\u00adope\u00adrate",
        True,
        False,
    ),
    (
        "an end phrase with another apostrophe",
        "startend:end_checker",
        {"end_phrase": "That's all."},
        "That\u2019s all.",
        False,
        True,
    ),
    (
        "a request with other blanks",
        "combination:repeat_prompt",
        {"prompt_to_repeat": "It's so."},
        "It\u2019s\u00a0so. Yes",
        False,
        True,
    ),
    (
        "a marker in full width",
        "detectable_content:postscript",
        {"postscript_marker": "N.B."},
        "Ｎ.Ｂ. so",
        False,
        True,
    ),
    ("a reply that nobody sees", "punctuation:no_comma", {}, "\u200b\u2060", True, False),
    ("Armenian commas", "punctuation:no_comma", {}, "այո՝ ոչ", True, False),
    *(
        (
            f"no sentence ends in {reply!r}",
            "length_constraints:number_sentences",
            {"num_sentences": count + 1, "relation": LESS},
            reply,
            False,
            True,
        )
        for reply, count in (
            ("Ud. tiene razón.", 1),
            ("Vivo en EE. UU. desde hace años.", 1),
            ("Mme. Curie est là. Elle parle.", 2),
            ("Vgl. Abb. Drei. Gut.", 2),
            ("Er kam am 3. Mai an.", 1),
            ("Il sig. Rossi parla. Ciao!", 2),
            ("A Dra. Ana saiu.", 1),
            ("Он жил на ул. Мира. Да.", 2),
            ("Ở TP. Hồ Chí Minh có mưa.", 1),
        )
    ),
    (
        "nor at a Hindi title",
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": LESS},
        "डॉ. शर्मा आज अस्पताल में हैं।",
        True,
        True,
    ),
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
