"""Conflicts of instructions that cannot stand together in one conversation, where the instructions of all turns add up.

Two instructions conflict where no reply can follow both, or where a reader would find them contradictory although some
text passes both checkers (JSON that is divided by `***`). An instruction conflicts with itself: none is given twice.
Whether numbers leave each other room (400 words in fewer than 3 sentences) is not decided here but in `room`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from llamarl.tasks.instructions.catalog import IDS

_ANSWER = "detectable_format:constrained_response"
_BULLETS = "detectable_format:number_bullet_lists"
_CAPITAL_WORDS = "change_case:capital_word_frequency"
_CAPITALS = "change_case:english_capital"
_END = "startend:end_checker"
_EXISTENCE = "keywords:existence"
_FIRST_WORD = "length_constraints:nth_paragraph_first_word"
_FORBIDDEN = "keywords:forbidden_words"
_FREQUENCY = "keywords:frequency"
_HIGHLIGHTS = "detectable_format:number_highlighted_sections"
_JSON = "detectable_format:json_format"
_LANGUAGE = "language:response_language"
_LETTER = "keywords:letter_frequency"
_LOWERCASE = "change_case:english_lowercase"
_NO_COMMA = "punctuation:no_comma"
_PARAGRAPHS = "length_constraints:number_paragraphs"
_PLACEHOLDERS = "detectable_content:number_placeholders"
_POSTSCRIPT = "detectable_content:postscript"
_QUOTATION = "startend:quotation"
_REPEAT = "combination:repeat_prompt"
_SECTIONS = "detectable_format:multiple_sections"
_SENTENCES = "length_constraints:number_sentences"
_TITLE = "detectable_format:title"
_TWO = "combination:two_responses"

FIRST_TURN_ONLY = frozenset({_ANSWER, _REPEAT})
"""Instructions about the request itself: a yes-or-no question, or the sentence to repeat."""

_BESIDE_AN_ANSWER = {_HIGHLIGHTS, _TITLE, _POSTSCRIPT, _END, _QUOTATION, _NO_COMMA}
"""All that may stand beside one of three fixed sentences: nothing that counts, and no keywords of another topic."""

_IN_THE_LANGUAGE = {
    *(_EXISTENCE, _FREQUENCY, _FORBIDDEN, _LETTER, _END, _FIRST_WORD, _SECTIONS, _POSTSCRIPT, _REPEAT),
    *(_ANSWER, _CAPITAL_WORDS),
}  # fmt: skip
"""Instructions whose arguments belong to the conversation's language, so the reply cannot be in another."""

_TABLE: Mapping[str, set[str]] = {
    _ANSWER: set(IDS) - _BESIDE_AN_ANSWER,
    _LANGUAGE: {*_IN_THE_LANGUAGE, _CAPITALS, _LOWERCASE},
    # An exact phrase, a marker or a sentence to repeat has its own case.
    _CAPITALS: {_LOWERCASE, _CAPITAL_WORDS, _SECTIONS, _END, _REPEAT},
    _LOWERCASE: {_CAPITAL_WORDS, _SECTIONS, _END, _REPEAT, _POSTSCRIPT},
    # JSON is one whole: nothing before, between or after; and hardly any without a comma.
    _JSON: {
        *(_PARAGRAPHS, _FIRST_WORD, _SENTENCES, _BULLETS, _HIGHLIGHTS, _POSTSCRIPT, _TWO, _REPEAT, _END, _QUOTATION),
        _NO_COMMA,
    },
    # Divided texts: by ***, by blank lines, by ******, by headings. "***" is found inside "******".
    _PARAGRAPHS: {_FIRST_WORD, _TWO, _SECTIONS, _REPEAT},
    _FIRST_WORD: {_TWO, _SECTIONS, _REPEAT, _TITLE},
    # "Exactly 3 bullets" of two answers: in each, or in all?
    _TWO: {_SECTIONS, _BULLETS, _REPEAT},
    # The repeated sentence brings its own commas, letters and words, and stands before any quotation mark.
    _REPEAT: {_NO_COMMA, _QUOTATION},
}  # fmt: skip


def _complete() -> dict[str, frozenset[str]]:
    pairs = {(one, other) for one, others in _TABLE.items() for other in others} | {(id, id) for id in IDS}
    return {id: frozenset({b for a, b in pairs if a == id} | {a for a, b in pairs if b == id}) for id in IDS}


CONFLICTS: Mapping[str, frozenset[str]] = MappingProxyType(_complete())
"""Id -> the ids it cannot stand with, in an English conversation; itself among them."""


def are_compatible(one: str, other: str, language: str = "en") -> bool:
    """Says whether two instructions may stand in one conversation of a language.

    Capitals and lower case are asked for in English, so in other languages they exclude what an answer in another
    language excludes.
    """
    if other in CONFLICTS[one]:
        return False
    if language == "en":
        return True
    return not any(a in (_CAPITALS, _LOWERCASE) and b in _IN_THE_LANGUAGE for a, b in ((one, other), (other, one)))
