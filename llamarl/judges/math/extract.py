r"""Finds the answer that a text gives. One extractor for training, evaluation and voting.

    extract_answer("... so the area is \boxed{\frac{1}{2}}.")      # "\frac{1}{2}"
    extract_answer("I think it is 7")                               # None

The first of these forms that the text holds counts, and of that form the last one:

    boxed          \boxed{x} or \fbox{x}, braces balanced; one that is never closed does not count
    final_answer   the sentence "The final answer is x."
    hashes         a line "#### x", as GSM8K writes it
    answer_line    a line "Answer: x" or "Final answer: x"
    last_number    the last number; only where asked for

A sentence or line is taken whole, so that a hedge ("5 or 6") stays a hedge. Work is linear in the text's length.
"""

import re
from dataclasses import dataclass
from typing import Literal

Form = Literal["boxed", "final_answer", "hashes", "answer_line", "last_number"]

MAX_TEXT_CHARACTERS = 100_000
"""Only this much of a text's end is read."""
MAX_ANSWER_CHARACTERS = 1_000
"""Something longer is no answer."""
_MAX_BOXES = 32

_FINAL_ANSWER = re.compile(r"\bfinal[ \t\n]{1,4}answer[ \t\n]{1,4}is\b(?:[\s:*]|\\\[|\\\()*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s|\n")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_ANSWER_LINE = re.compile(
    r"^[ \t*_#>-]*(?:final[ \t]{1,4})?answer[ \t*_]{0,8}[:=][ \t*_]{0,8}(\S.*)$", re.IGNORECASE | re.MULTILINE
)
_NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?")


@dataclass(frozen=True, slots=True)
class Found:
    """An answer and the form that it was given in."""

    answer: str
    form: Form


def extract_answer(text: str, *, use_last_number: bool = False) -> str | None:
    """The answer that `text` gives, or None (forms and their order: module's docstring)."""
    found = find_answer(text, use_last_number=use_last_number)
    return found.answer if found else None


def find_answer(text: str, *, use_last_number: bool = False) -> Found | None:
    """As `extract_answer`, with the form."""
    text = text[-MAX_TEXT_CHARACTERS:]
    candidates = (
        ("boxed", _boxed),
        ("final_answer", last_final_answer),
        ("hashes", lambda text: _last(_HASHES, text)),
        ("answer_line", lambda text: _last(_ANSWER_LINE, text)),
        ("last_number", lambda text: _last_number(text) if use_last_number else None),
    )
    for form, find in candidates:
        answer = find(text)
        if answer is not None:
            return Found(answer, form)  # type: ignore[arg-type]
    return None


def last_final_answer(text: str) -> str | None:
    """The x of the last sentence "The final answer is x."; a box around it is taken off."""
    answer = None
    text = text[-MAX_TEXT_CHARACTERS:]
    for match in _FINAL_ANSWER.finditer(text):
        rest = text[match.end() : match.end() + 2 * MAX_ANSWER_CHARACTERS]
        end = _SENTENCE_END.search(rest)
        answer = _tidy(rest[: end.start()] if end else rest) or answer
    if answer is not None and "\\boxed" in answer:
        return _boxed(answer) or answer
    return answer


def _boxed(text: str) -> str | None:
    """The content of the last closed box that holds something."""
    starts = [match.end() for match in re.finditer(r"\\f?box(?:ed)?[ \t]{0,4}\{", text)]
    for start in reversed(starts[-_MAX_BOXES:]):
        end = _closing_brace(text, start)
        if end is not None and (answer := _tidy(text[start:end])):
            return answer
    return None


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace closes that was opened just before `start`."""
    depth, position = 1, start
    end = min(len(text), start + MAX_ANSWER_CHARACTERS)
    while position < end:
        match text[position]:
            case "\\":
                position += 1  # an escaped brace does not count
            case "{":
                depth += 1
            case "}":
                depth -= 1
                if depth == 0:
                    return position
        position += 1
    return None


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    answer = None
    for match in pattern.finditer(text):
        answer = _tidy(match[1]) or answer
    return answer


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers and len(numbers[-1]) <= MAX_ANSWER_CHARACTERS else None


def _tidy(answer: str) -> str | None:
    """Without the marks around it; None for nothing, for marks alone, and for what is too long."""
    answer = answer.lstrip(' \t\r\n*_`"').rstrip(' \t\r\n*_`".')
    if len(answer) > MAX_ANSWER_CHARACTERS or not any(c.isalnum() or c in "∅∞π√" for c in answer):
        return None
    return answer
