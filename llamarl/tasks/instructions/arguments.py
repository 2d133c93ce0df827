"""Draws the arguments of an instruction from sensible ranges."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamarl.tasks.instructions.catalog import Instruction
from llamarl.tasks.instructions.room import COUNTED_TWICE
from llamarl.tasks.instructions.wordings import Texts, Topic

COMMON_LETTERS, RARE_LETTERS = "aeinorst", "jkqvwxyz"
LATIN = ("en", "fr", "it", "pt", "es")
CASELESS = ("hi", "zh")
"""Languages whose script has no capitals: only Latin abbreviations have them."""


@dataclass(frozen=True, slots=True)
class Draw:
    """All that the arguments of one instruction may depend on."""

    texts: Texts
    topic: Topic
    task: str
    earlier: Sequence[Instruction]
    """The conversation's instructions so far."""
    rng: random.Random

    def keywords(self, least: int, most: int) -> list[str]:
        """Keywords of the topic that no earlier instruction has taken."""
        taken = str([instruction["kwargs"] for instruction in self.earlier])
        left = [keyword for keyword in self.topic.keywords if repr(keyword) not in taken]
        return self.rng.sample(left, self.rng.randint(least, most))

    def limit(self, name: str, relation: str, less: Sequence[int], least: Sequence[int]) -> dict[str, Any]:
        """A number with its relation, from the numbers that suit each relation; none suits where they are empty."""
        chosen = self.rng.choice([word for word, numbers in (("less than", less), ("at least", least)) if numbers])
        return {name: self.rng.choice(less if chosen == "less than" else least), relation: chosen}


def draw_kwargs(id: str, draw: Draw) -> dict[str, Any]:
    """The arguments of one instruction."""
    return _ARGUMENTS[id](draw) if id in _ARGUMENTS else {}


def _frequency(draw: Draw) -> dict[str, Any]:
    return {"keyword": draw.keywords(1, 1)[0], **draw.limit("frequency", "relation", range(2, 5), range(2, 5))}


def _letter(draw: Draw) -> dict[str, Any]:
    if draw.texts.language not in LATIN:  # the official checker counts Latin letters only
        return {
            "letter": draw.rng.choice("abcdst"),
            "let_frequency": draw.rng.randint(2, 4),
            "let_relation": "at least",
        }
    limit = draw.limit("let_frequency", "let_relation", range(3, 7), range(8, 21, 2))
    return {"letter": draw.rng.choice(COMMON_LETTERS if limit["let_relation"] == "at least" else RARE_LETTERS), **limit}


def _words(draw: Draw) -> dict[str, Any]:
    most = 2 if draw.texts.language in COUNTED_TWICE else 1
    least = 2 if draw.texts.language == "zh" else 1
    return draw.limit("num_words", "relation", range(60 * most, 160 * most, 10), range(40 * least, 160 * least, 10))


def _capital_words(draw: Draw) -> dict[str, Any]:
    is_caseless = draw.texts.language in CASELESS
    less, least = (range(0), range(2, 4)) if is_caseless else (range(4, 9), range(2, 6))
    return draw.limit("capital_frequency", "capital_relation", less, least)


def _first_word(draw: Draw) -> dict[str, Any]:
    num_paragraphs = draw.rng.randint(2, 4)
    nth_paragraph = draw.rng.randint(1, num_paragraphs)
    first_word = draw.rng.choice(draw.texts.first_words)
    return {"num_paragraphs": num_paragraphs, "nth_paragraph": nth_paragraph, "first_word": first_word}


def _sections(draw: Draw) -> dict[str, Any]:
    return {"section_spliter": draw.rng.choice(draw.texts.sections), "num_sections": draw.rng.randint(2, 4)}


_ARGUMENTS: Mapping[str, Callable[[Draw], dict[str, Any]]] = {
    "keywords:existence": lambda draw: {"keywords": draw.keywords(2, 3)},
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": lambda draw: {"forbidden_words": draw.keywords(2, 3)},
    "keywords:letter_frequency": _letter,
    "language:response_language": lambda draw: {"language": draw.rng.choice(tuple(draw.texts.languages))},
    "length_constraints:number_sentences": lambda draw: draw.limit(
        "num_sentences", "relation", range(5, 11), range(3, 9)
    ),
    "length_constraints:number_paragraphs": lambda draw: {"num_paragraphs": draw.rng.randint(2, 4)},
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda draw: {"num_placeholders": draw.rng.randint(2, 4)},
    "detectable_content:postscript": lambda draw: {"postscript_marker": draw.rng.choice(draw.texts.postscripts)},
    "detectable_format:number_bullet_lists": lambda draw: {"num_bullets": draw.rng.randint(2, 6)},
    "detectable_format:number_highlighted_sections": lambda draw: {"num_highlights": draw.rng.randint(2, 4)},
    "detectable_format:multiple_sections": _sections,
    "combination:repeat_prompt": lambda draw: {"prompt_to_repeat": draw.task},
    "startend:end_checker": lambda draw: {"end_phrase": draw.rng.choice(draw.texts.end_phrases)},
    "change_case:capital_word_frequency": _capital_words,
}
