"""Room that the numbers of several instructions leave each other: 8 bullets do not fit into fewer than 3 sentences.

Estimates on the safe side, in words and sentences that a plain text would need; no list that passes is impossible.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamarl.tasks.instructions.catalog import Instruction

_Kwargs = Mapping[str, Any]

_WORDS: Mapping[str, Callable[[_Kwargs], int]] = {
    "keywords:existence": lambda kwargs: 2 * len(kwargs["keywords"]),
    "keywords:frequency": lambda kwargs: 2 * _least(kwargs, "frequency"),
    "keywords:letter_frequency": lambda kwargs: 2 * _least(kwargs, "let_frequency", "let_relation"),
    "length_constraints:number_sentences": lambda kwargs: 6 * _least(kwargs, "num_sentences"),
    "length_constraints:number_paragraphs": lambda kwargs: 6 * kwargs["num_paragraphs"],
    "length_constraints:nth_paragraph_first_word": lambda kwargs: 6 * kwargs["num_paragraphs"],
    "detectable_content:number_placeholders": lambda kwargs: 2 * kwargs["num_placeholders"],
    "detectable_content:postscript": lambda kwargs: 6,
    "detectable_format:number_bullet_lists": lambda kwargs: 5 * kwargs["num_bullets"],
    "detectable_format:constrained_response": lambda kwargs: 4,
    "detectable_format:number_highlighted_sections": lambda kwargs: 2 * kwargs["num_highlights"],
    "detectable_format:multiple_sections": lambda kwargs: 7 * kwargs["num_sections"],
    "detectable_format:title": lambda kwargs: 3,
    "combination:two_responses": lambda kwargs: 12,
    "combination:repeat_prompt": lambda kwargs: 2 * len(kwargs["prompt_to_repeat"].split()),
    "startend:end_checker": lambda kwargs: 6,
    "change_case:capital_word_frequency": lambda kwargs: _least(kwargs, "capital_frequency", "capital_relation"),
}
"""Words that an instruction takes up beside others."""

_SENTENCES: Mapping[str, Callable[[_Kwargs], int]] = {
    "length_constraints:number_paragraphs": lambda kwargs: 2 * kwargs["num_paragraphs"],
    "length_constraints:nth_paragraph_first_word": lambda kwargs: kwargs["num_paragraphs"],
    "detectable_content:postscript": lambda kwargs: 2,
    "detectable_format:number_bullet_lists": lambda kwargs: kwargs["num_bullets"],
    "detectable_format:multiple_sections": lambda kwargs: 2 * kwargs["num_sections"],
    "detectable_format:title": lambda kwargs: 1,
    "combination:two_responses": lambda kwargs: 3,
    "combination:repeat_prompt": lambda kwargs: 2,
    "startend:end_checker": lambda kwargs: 1,
}
"""Sentences that an instruction takes up beside others; a line such as a heading or `***` counts as one,
as the official checker counts in Chinese."""

_WORDS_IN_A_SENTENCE = 25
COUNTED_TWICE = ("hi", "zh")
"""A Chinese word has about two characters, which are counted; the official checker cuts Hindi words at vowel signs."""


def have_room(instructions: Sequence[Instruction], language: str) -> bool:
    """Says whether a reply can keep to all numbers and words of the instructions at once."""
    by_id = {instruction["id"]: instruction["kwargs"] for instruction in instructions}
    scale = 2 if language in COUNTED_TWICE else 1
    words = by_id.get("length_constraints:number_words", {})
    sentences = by_id.get("length_constraints:number_sentences", {})
    num_words = max(scale * _total(_WORDS, by_id), _least(words, "num_words"))
    num_sentences = _total(_SENTENCES, by_id)
    if _is_less(words) and 5 * num_words > 4 * words["num_words"]:
        return False
    if _is_less(sentences):
        spare = sentences["num_sentences"] - 1 - num_sentences
        if spare < 1 or num_words > _WORDS_IN_A_SENTENCE * scale * (sentences["num_sentences"] - 1):
            return False
    return not _is_prescribed_forbidden(by_id)


def _total(costs: Mapping[str, Callable[[_Kwargs], int]], by_id: Mapping[str, _Kwargs]) -> int:
    return sum(costs[id](kwargs) for id, kwargs in by_id.items() if id in costs)


def _is_less(kwargs: _Kwargs, relation: str = "relation") -> bool:
    return kwargs.get(relation) == "less than"


def _least(kwargs: _Kwargs, name: str, relation: str = "relation") -> int:
    """The number where it is a lower bound, else 0."""
    return 0 if _is_less(kwargs, relation) else int(kwargs.get(name, 0))


def _is_prescribed_forbidden(by_id: Mapping[str, _Kwargs]) -> bool:
    """Says whether text that one instruction prescribes breaks another."""
    text = _required_text(by_id)
    frequency = by_id.get("keywords:frequency", {})
    letter = by_id.get("keywords:letter_frequency", {})
    forbidden = by_id.get("keywords:forbidden_words", {}).get("forbidden_words", ())
    return (
        any(word.lower() in text for word in forbidden)
        or (_is_less(frequency) and text.count(frequency["keyword"].lower()) + 1 > frequency["frequency"])
        or (_is_less(letter, "let_relation") and text.count(letter["letter"]) + 1 > letter["let_frequency"])
        or ("punctuation:no_comma" in by_id and any(comma in text for comma in ",，、"))
    )


def _required_text(by_id: Mapping[str, _Kwargs]) -> str:
    """Joins all texts that a reply must contain, in lower case."""
    parts: list[str] = []
    for id, kwargs in by_id.items():
        parts += kwargs.get("keywords", ())
        parts += [kwargs[name] for name in ("end_phrase", "first_word", "postscript_marker") if name in kwargs]
        parts += [kwargs.get("prompt_to_repeat", "")]
        parts += [kwargs.get("section_spliter", "")] * kwargs.get("num_sections", 0)
        parts += [kwargs.get("keyword", "")] * _least(kwargs, "frequency")
        parts += ["my answer is maybe."] if id == "detectable_format:constrained_response" else []
    return "\n".join(parts).lower()
