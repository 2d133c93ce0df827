"""Probabilities as models write them: `0.8`, `80 %`, `Probability: 8/10`, `ninety percent`.

What states no probability, or several, is None and never a number: 0 would call a claim hallucinated.
"""

import re
import unicodedata
from collections.abc import Iterator

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: number for number, word in enumerate(_SMALL)}
_WORDS |= {word: 10 * number for number, word in enumerate(_TENS, start=2)}
_WORD = "|".join(sorted([*_WORDS, "hundred"], key=len, reverse=True))
_NUMBER = r"[-+]?(?:\d+(?:[.,]\d+)?|[.,]\d+)(?:e[-+]?\d+)?"
_STATED = re.compile(
    rf"(?<![\w.,/])(?:(?P<part>{_NUMBER})\s*(?:/|out\s+of)\s*(?P<whole>{_NUMBER})|(?P<number>{_NUMBER})"
    rf"|(?P<words>(?:{_WORD})(?:[\s-]+(?:{_WORD}))*\b|half\b))(?![\d/]|[.,]\d)\s*(?P<percent>%|٪|per\s?cent\b)?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^[^\d:=]{1,60}[:=]")
_DECORATION = " \t*`\"'“”[]()$"
_NAMED = re.compile(r"\b(?:probability|confidence|likelihood|chance)\b[^.\d\n]{0,40}$", re.IGNORECASE)
_REVERSED = re.compile(r"\b(?:false|untrue|incorrect|inaccurate|wrong|not|unlikely|error)\b|n['’]t\b", re.IGNORECASE)


def read_probability(text: str) -> float | None:
    """The probability that an answer states, in [0, 1]; None where it states none, or several that differ.

    Lines that are nothing but a number, maybe behind a label and a colon, count before all others; a bare number above
    10 is a percentage there. In running text a number counts if it has a decimal point, a percent sign or a whole that
    it is a part of, or stands behind a word such as `probability`; and none counts in a sentence that speaks of what is
    false or not so, since the probability may be that of the contrary.
    """
    answer = unicodedata.normalize("NFKC", text.rpartition("</think>")[2])
    values = set(_read_lines(answer)) or set(_read_sentences(answer))
    value = values.pop() if len(values) == 1 else None
    return value if value is not None and 0.0 <= value <= 1.0 else None


def _read_lines(answer: str) -> Iterator[float | None]:
    """Yields the values of the lines that hold nothing else; None for one that is no probability."""
    for line in answer.splitlines():
        rest = _LABEL.sub("", line.strip(_DECORATION)).lstrip(_DECORATION).rstrip(_DECORATION + ".")
        if match := _STATED.fullmatch(rest):
            value = _value_of(match)
            is_bare = match["whole"] is None and match["percent"] is None and match["words"] != "half"
            yield value / 100 if is_bare and 10 < value <= 100 else value


def _read_sentences(answer: str) -> Iterator[float]:
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", answer):
        if _REVERSED.search(sentence):
            continue
        for match in _STATED.finditer(sentence):
            is_marked = match["whole"] or match["percent"] or re.search(r"\d[.,]\d|^[.,]\d", match["number"] or "")
            if is_marked or (match["number"] and _NAMED.search(sentence, 0, match.start())):
                value = _value_of(match)
                if is_marked and not match["whole"] and not match["percent"] and value > 1.0:
                    continue  # a height or a price
                yield value


def _value_of(match: re.Match[str]) -> float:
    """The stated number; a part of nothing is none."""
    if match["whole"] is not None:
        whole = _parse(match["whole"])
        value = _parse(match["part"]) / whole if whole else float("nan")
    elif match["words"] is not None:
        value = _spell(match["words"])
    else:
        value = _parse(match["number"])
    return value / 100 if match["percent"] else value


def _parse(number: str) -> float:
    return float(number.replace(",", "."))


def _spell(words: str) -> float:
    if words.lower() == "half":
        return 0.5
    total = 0.0
    for word in re.split(r"[\s-]+", words.lower()):
        total = max(1.0, total) * 100 if word == "hundred" else total + _WORDS[word]
    return total
