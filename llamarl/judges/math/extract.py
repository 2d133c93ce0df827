r"""Finds the answer that a text gives. One extractor for training, evaluation and voting.

    extract_answer("... so the area is \boxed{\frac{1}{2}}.")      # "\frac{1}{2}"
    extract_answer("I think it is 7")                               # None

The first of these forms that the text holds counts, and of that form the last one:

    boxed          \boxed{x} or \fbox{x}, braces balanced; one that is never closed does not count
    final_answer   the sentence "The final answer is x."
    hashes         a line "#### x", as GSM8K writes it
    answer_line    a line "Answer: x" or "Final answer: x"
    last_number    the last number; only where asked for

A sentence or line is taken whole, so that a hedge ("5 or 6") stays a hedge. For the same reason answers of that form
with nothing but marks or "and", "or" between them are one list: `\boxed{1}, \boxed{2}` is "1, 2". Words between them
make it a correction, and the last one counts. Work is linear in the text's length.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Form = Literal["boxed", "final_answer", "hashes", "answer_line", "last_number"]

MAX_TEXT_CHARACTERS = 100_000
"""Characters of a text's end that are read."""
MAX_ANSWER_CHARACTERS = 1_000
"""Something longer is no answer."""
_MAX_ANSWERS = 32
_MAX_GAP = 40

_FINAL_ANSWER = re.compile(r"\bfinal[ \t\n]{1,4}answer[ \t\n]{1,4}is\b(?:[\s:*]|\\\[|\\\()*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s|\n")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_ANSWER_LINE = re.compile(
    r"^[ \t*_#>-]*(?:final[ \t]{1,4})?answer[ \t*_]{0,8}[:=][ \t*_]{0,8}(\S.*)$", re.IGNORECASE | re.MULTILINE
)
_BOX = re.compile(r"\\f?box(?:ed)?[ \t]{0,4}\{")
_GAP = re.compile(r"(?:[\W_]|(?<![a-z])(?:and|or|the|so|answer)(?![a-z]))*", re.IGNORECASE)
"""Pattern of what may stand between the answers of a list."""
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
    """Finds the answer as `extract_answer` does, with its form."""
    text = text[-MAX_TEXT_CHARACTERS:]
    candidates: tuple[tuple[Form, Callable[[str], str | None]], ...] = (
        ("boxed", _find_boxed),
        ("final_answer", last_final_answer),
        ("hashes", lambda text: _last_lines(_HASHES, text)),
        ("answer_line", lambda text: _last_lines(_ANSWER_LINE, text)),
        ("last_number", lambda text: _last_number(text) if use_last_number else None),
    )
    for form, find in candidates:
        answer = find(text)
        if answer is not None:
            return Found(answer, form)
    return None


def last_final_answer(text: str) -> str | None:
    """The x of the last sentence "The final answer is x."; a box around it is taken off."""
    text = text[-MAX_TEXT_CHARACTERS:]
    spans = []
    for match in _FINAL_ANSWER.finditer(text):
        rest = text[match.end() : match.end() + 2 * MAX_ANSWER_CHARACTERS]
        end = _SENTENCE_END.search(rest)
        length = end.start() if end else len(rest)
        spans.append((match.start(), match.end() + length, rest[:length]))
    answer = _last_run(text, spans)
    if answer is not None and "\\boxed" in answer:
        return _find_boxed(answer) or answer
    return answer


def _find_boxed(text: str) -> str | None:
    """The content of the last closed boxes that hold something."""
    spans: list[tuple[int, int, str]] = []
    for match in reversed(list(_BOX.finditer(text))[-_MAX_ANSWERS:]):
        end = _closing_brace(text, match.end())
        is_around = end is not None and bool(spans) and end >= spans[-1][1]  # of a box in a box the inner one counts
        if end is not None and not is_around and _tidy(text[match.end() : end]):
            spans.append((match.start(), end + 1, text[match.end() : end]))
    return _last_run(text, spans[::-1])


def _last_lines(pattern: re.Pattern[str], text: str) -> str | None:
    return _last_run(text, [(match.start(), match.end(), match[1]) for match in pattern.finditer(text)])


def _last_run(text: str, spans: list[tuple[int, int, str]]) -> str | None:
    """The last of several (start, end, answer), or the last of them with nothing to speak of between, as one list."""
    answers: list[str] = []
    last_start = len(text)
    for start, end, content in reversed(spans[-_MAX_ANSWERS:]):
        answer = _tidy(content)
        if answer is None:
            continue
        if answers and not (last_start - end <= _MAX_GAP and _GAP.fullmatch(text, end, last_start)):
            break
        answers.append(answer)
        last_start = start
    return ", ".join(dict.fromkeys(reversed(answers)))[:MAX_ANSWER_CHARACTERS] or None


def _closing_brace(text: str, start: int) -> int | None:
    """Finds where the brace closes that was opened just before `start`."""
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


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers and len(numbers[-1]) <= MAX_ANSWER_CHARACTERS else None


def _tidy(answer: str) -> str | None:
    """Strips the marks around a text; None for nothing, for marks alone, and for what is too long."""
    answer = answer.lstrip(' \t\r\n*_`"').rstrip(' \t\r\n*_`".')
    if len(answer) > MAX_ANSWER_CHARACTERS or not any(c.isalnum() or c in "∅∞π√" for c in answer):
        return None
    return answer
