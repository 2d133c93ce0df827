"""The released grader's verdicts, each worked by hand. Own sentences only."""

import pytest

from llamarl.judges.rules import RULES, Grader

pytest.importorskip("langdetect")
pytest.importorskip("emoji")

LESS, LEAST = "less than", "at least"
CASES = [
    # keywords are regular expressions, found anywhere in either case
    ("keywords:existence", {"keywords": ["cat", "DOG"]}, "Category of dogs", True),
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "only a cat", False),
    ("keywords:existence", {"keywords": ["a.c"]}, "abc", True),
    ("keywords:frequency", {"keyword": "an", "frequency": 2, "relation": LEAST}, "banana", True),
    ("keywords:frequency", {"keyword": "ana", "frequency": 2, "relation": LEAST}, "banana", False),  # no overlaps
    ("keywords:frequency", {"keyword": "(", "frequency": 2, "relation": LESS}, "no bracket", False),  # invalid: fails
    ("keywords:frequency", {"keyword": " ox ", "frequency": 1, "relation": LEAST}, "boxes", True),  # stripped
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "team", True),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "Tea.", False),
    ("keywords:letter_frequency", {"letter": "A", "let_frequency": 3, "let_relation": LESS}, "Aa b", True),
    ("keywords:letter_frequency", {"letter": "a", "let_frequency": 2, "let_relation": LESS}, "Aa b", False),
    ("language:response_language", {"language": "ru"}, "Сегодня очень хорошая погода", True),
    ("language:response_language", {"language": "ko"}, "Bonjour à tous, il fait beau aujourd'hui", False),
    ("language:response_language", {"language": "fr"}, "1234 !", True),  # no n-gram tells it: passes
    # runs of word characters: It, s, 3, 5, km = 5
    ("length_constraints:number_words", {"num_words": 5, "relation": LEAST}, "It's 3.5 km", True),
    ("length_constraints:number_words", {"num_words": 5, "relation": LESS}, "It's 3.5 km", False),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": LEAST}, "One. Two! Three?", True),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": LESS}, "Mr. Fox ran 3.5 km. Yes.", True),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LEAST}, "no end here", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a******b", False),  # blank one in between
    ("length_constraints:number_paragraphs", {"num_paragraphs": 0}, "***", True),  # two blank ends
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Yes"},
        "No.\n\n'yes, it is",
        True,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "yes"},
        "yes\n\nno",
        False,
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [[b] c]", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[a\nb]", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. more", True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye. PS more", False),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p. p. s", True),
    ("detectable_content:postscript", {"postscript_marker": "NB:"}, "so nb: that", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "* a\n\n  - b\n*c\n**d", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "*\n* a", True),  # a lone star takes the next line
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "---\n- a\n- b", False),  # a rule counts
    ("detectable_format:constrained_response", {}, "Well. My answer is no. Sorry", True),
    ("detectable_format:constrained_response", {}, "my answer is no.", False),
    # *a* once; **b** is one empty single span, one double span, one empty single span; "* *" is blank
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b** * *", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 3}, "*a* **b** * *", False),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day 1 x Day2 y", True),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 1}, "DAY 1", False),
    ("detectable_format:multiple_sections", {"section_spliter": "(Day)", "num_sections": 2}, "Day 1", True),  # a group
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', True),
    ("detectable_format:json_format", {}, "3", True),
    ("detectable_format:json_format", {}, "{'a': 1}", False),
    ("detectable_format:title", {}, "<<A title>>\ntext", True),
    ("detectable_format:title", {}, "<< >> <<\nno>>", False),
    ("combination:two_responses", {}, "a****** b", True),
    ("combination:two_responses", {}, "a****** a", False),
    ("combination:two_responses", {}, "a ****** ****** b", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, " SAY IT. Fine.", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "You said: Say it.", False),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So. THE END."\n', True),
    ("startend:end_checker", {"end_phrase": "The end."}, "The end. Bye", False),
    ("startend:quotation", {}, ' "a" ', True),
    ("startend:quotation", {}, "「a」", True),
    ("startend:quotation", {}, '"', False),
    # NASA, DO, N'T, A-B: a contraction is two tokens, a hyphenated word one
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 4, "capital_relation": LEAST},
        "NASA: DON'T A-B",
        True,
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 5, "capital_relation": LEAST},
        "NASA: DON'T A-B",
        False,
    ),
    ("change_case:english_capital", {}, "Ⓐ 1", True),  # a capital; nothing tells the language
    ("change_case:english_capital", {}, "Not capitals", False),
    ("change_case:english_lowercase", {}, "this is what we would call a sentence in lower case", True),
    ("change_case:english_lowercase", {}, "это предложение написано строчными буквами", False),
    ("punctuation:no_comma", {}, "none；of them", True),
    ("punctuation:no_comma", {}, "one, two", False),
]


@pytest.fixture(scope="module")
def grader() -> Grader:
    return Grader("official", sentence_splitter="rules")


@pytest.mark.parametrize(("id", "kwargs", "reply", "verdict"), CASES)
def test_verdict(grader: Grader, id: str, kwargs: dict[str, object], reply: str, verdict: bool) -> None:
    assert grader.grade(reply, [{"id": id, "kwargs": kwargs}]).strict == (verdict,)


def test_every_id_has_a_passing_and_a_failing_case() -> None:
    assert len(RULES) == 25
    assert {(id, verdict) for id, _, _, verdict in CASES} == {
        (id, verdict) for id in RULES for verdict in (True, False)
    }


def test_relations_are_complements_for_every_counting_rule(grader: Grader) -> None:
    counting = {
        "keywords:frequency": ("frequency", "relation", {"keyword": "a"}),
        "keywords:letter_frequency": ("let_frequency", "let_relation", {"letter": "a"}),
        "length_constraints:number_words": ("num_words", "relation", {}),
        "length_constraints:number_sentences": ("num_sentences", "relation", {}),
        "change_case:capital_word_frequency": ("capital_frequency", "capital_relation", {}),
    }
    texts = ["A bat. A cat!", "今天天气很好。我们去3.5公里外的公园", "मैं आज घर जा रहा हूँ। ठीक है!", "ONE two, THREE", "!"]
    for id, (number, relation, rest) in counting.items():
        for text in texts:
            for count in (0, 1, 2, 5, 13):
                pair = [{"id": id, "kwargs": {number: count, relation: word, **rest}} for word in (LESS, LEAST)]
                first, second = grader.grade(text, pair).strict
                assert first is not second, (id, text, count)


def test_thai_is_counted_by_pythainlp_where_it_is_installed() -> None:
    tokenize = pytest.importorskip("pythainlp.tokenize")
    pytest.importorskip("pycrfsuite")
    text = "วันนี้อากาศดีมาก เราไปเดินเล่นที่สวนสาธารณะกันเถอะ ฉันชอบดอกไม้"
    grader = Grader("official", sentence_splitter="rules")
    assert (grader.record()["thai_words"], grader.record()["thai_sentences"]) == ("pythainlp", "pythainlp")
    num_words, num_sentences = len(tokenize.word_tokenize(text)), len(tokenize.sent_tokenize(text))
    assert num_words > 10 and num_sentences > 1  # by blanks there are three words, and a single line
    for id, name, count in (
        ("length_constraints:number_words", "num_words", num_words),
        ("length_constraints:number_sentences", "num_sentences", num_sentences),
    ):
        instructions = [{"id": id, "kwargs": {name: count + more, "relation": LEAST}} for more in (0, 1)]
        assert grader.grade(text, instructions).strict == (True, False)
