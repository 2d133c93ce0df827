r"""Whether two answers are the same, decided by reading both, exactly and in bounded time.

    answers_equal("\frac12", "0.5")             # True
    answers_equal("5 or 6", "5")                   # False
    compare_answers("x^2+2x", "x(x+2)")            # None: needs algebra (`MathJudge` asks math-verify then)

    numbers        exactly: 1/2 = 0.5 = 50 %; 1,234 = 1234; no rounding: 0.33 is not 1/3
    percent        50 % equals 1/2 and, for answers that leave the sign out, 50
    units          the known ones may be left out on one side; where both have one they must agree
    tuples         item by item, in order; brackets of intervals must agree: (1, 2] is not [1, 2]
    lists, sets    in any order: {1, 2}, "2, 1", "x = 1 or x = 2", "1 \pm 1" where that is meant
    words          without regard to case; single letters with it; (C) is C
    [42]           is 42; so is every single answer in square brackets
    x = 5          is 5; but not y = 5

Equality is reflexive on answers that say something, and symmetric. It is not transitive: 50 % = 50, 50 % = 0.5.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from llamarl.judges.math.clean import clean
from llamarl.judges.math.exact import Exact, read_exact
from llamarl.judges.math.extract import MAX_ANSWER_CHARACTERS
from llamarl.judges.math.units import split_unit

_MAX_ITEMS = 50
_MAX_DEPTH = 5

_NAME = re.compile(r"([A-Za-z](?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?) ?(?:=|\\in(?![a-z]) ?)([^=]+)")
_WORD = re.compile(r"[A-Za-z][A-Za-z' .-]*")
_CHOICE = re.compile(r"\(([A-Za-z])\)|([A-Z])\)")
_INFINITY = re.compile(r"([+-]?)\\infty")
_CONJUNCTION = re.compile(r"(?:,|;)? ?(?<![A-Za-z])(?:or|and)(?![A-Za-z]) ?")
_BRACKETS = {"(": ")]", "[": ")]", "{": "}"}
_NUMERAL = re.compile(
    r"[+-]? ?(?:[\d.,]+(?:[eE][+-]?\d+)?(?: ?/ ?[\d.,]+)?|\d* ?\\frac(?:\{ ?-?[\d.,]+\}\{[\d.,]+\}|\d\d)"
    r"|\d+ \d+/\d+|[\d.]+\*10\^(?:\d|\{-?\d+\}))"
)
_SHORT_WORDS = frozenset({"yes", "no", "odd", "all", "red"})
"""Other strings of two or three letters are taken for products of variables."""
_CONSTANTS = frozenset({"e", "i", "E", "I"})


@dataclass(frozen=True, slots=True)
class _Number:
    value: tuple[tuple[tuple[int, int], Fraction], ...]
    unit: str


@dataclass(frozen=True, slots=True)
class _Word:
    text: str


@dataclass(frozen=True, slots=True)
class _Items:
    kind: str
    """`set`, `union`, or the brackets of a tuple or interval."""
    items: "tuple[_Answer, ...]"


@dataclass(frozen=True, slots=True)
class _Named:
    name: str
    answer: "_Answer"


@dataclass(frozen=True, slots=True)
class _Unread:
    text: str


_Answer = _Number | _Word | _Items | _Named | _Unread


def answers_equal(a: str, b: str) -> bool:
    """Whether `compare_answers` says True. What it cannot decide counts as different."""
    return compare_answers(a, b) is True


def compare_answers(a: str, b: str) -> bool | None:
    """True or False where reading decides; None where algebra would be needed. An empty answer equals nothing."""
    if max(len(a), len(b)) > MAX_ANSWER_CHARACTERS:
        return a == b and bool(a.strip())
    a, b = clean(a), clean(b)
    if not (says_something(a) and says_something(b)):
        return False
    if a == b:
        return True
    return _same(_read(a), _read(b))


def says_something(text: str) -> bool:
    """Whether there is a letter or digit: marks alone are no answer."""
    return any(character.isalnum() for character in text)


def is_numeral(text: str) -> bool:
    """Whether an answer is a number that is worked out: digits, one fraction, a power of ten; not `6 * 7`."""
    number, _ = split_unit(without_name(clean(text)))
    return bool(_NUMERAL.fullmatch(number)) and read_exact(number) is not None


def without_name(text: str) -> str:
    """What an answer that begins with `x =` says of x."""
    match = _NAME.fullmatch(text)
    return match[2] if match else text


def _read(text: str, depth: int = 0) -> _Answer:
    """The answer that a cleaned text says."""
    text = text.strip()
    if depth > _MAX_DEPTH:
        return _Unread(text)
    readers: tuple[Callable[[str, int], _Answer | None], ...] = (
        _number,
        _choice,
        _named,
        _union,
        _items,
        _signs,
        _word,
    )
    for reader in readers:
        answer = reader(text, depth)
        if answer is not None:
            return answer
    return _Unread(text)


def _number(text: str, depth: int) -> _Answer | None:
    if match := _INFINITY.fullmatch(text):
        return _Word("-infinity" if match[1] == "-" else "infinity")
    if text == "\\emptyset":
        return _Word("empty set")
    value, unit = read_exact(text), ""
    if value is None:
        number, unit = split_unit(text)
        value = read_exact(number) if unit else None
    return None if value is None else _Number(_frozen(value), unit)


def _frozen(value: Exact) -> tuple[tuple[tuple[int, int], Fraction], ...]:
    return tuple(sorted(value.items()))


def _choice(text: str, depth: int) -> _Answer | None:
    match = _CHOICE.fullmatch(text)
    return _Word(match[1] or match[2]) if match else None


def _named(text: str, depth: int) -> _Answer | None:
    match = _NAME.fullmatch(text)
    if not match or len(_split(_listed(match[2]))) > 1:
        return None
    return _Named(match[1], _read(match[2], depth + 1))


def _union(text: str, depth: int) -> _Answer | None:
    parts = [part for part in re.split(r"\\cup(?![a-z])", text) if part.strip()]
    if not 1 < len(parts) <= _MAX_ITEMS:
        return None
    return _Items("union", tuple(_read(part, depth + 1) for part in parts))


def _items(text: str, depth: int) -> _Answer | None:
    text = text.replace("\\{", "{").replace("\\}", "}")
    kind, inner = "set", _listed(text)
    if len(text) > 2 and text[-1] in _BRACKETS.get(text[0], "") and _is_one_bracket(text):
        kind, inner = ("set", text[1:-1]) if text[0] == "{" else (text[0] + text[-1], text[1:-1])
    parts = _split(inner)
    if len(parts) > _MAX_ITEMS or (len(parts) < 2 and not text.startswith("{")):
        return None
    return _Items(kind, tuple(_read(part, depth + 1) for part in parts))


def _listed(text: str) -> str:
    """`or` and `and` between answers are commas."""
    return _CONJUNCTION.sub(",", text) if any(character.isdigit() for character in text) else text


def _signs(text: str, depth: int) -> _Answer | None:
    if text.count("\\pm") != 1:
        return None
    both = (re.sub(r"\\pm ?", sign, text) for sign in "+-")
    return _Items("set", tuple(_read(part.removeprefix("+"), depth + 1) for part in both))


def _word(text: str, depth: int) -> _Answer | None:
    if not _WORD.fullmatch(text) or text in _CONSTANTS:
        return None
    if len(text) == 1:
        return _Word(text)
    is_word = len(text) > 3 or text.casefold() in _SHORT_WORDS
    return _Word(text.casefold()) if is_word else None


def _is_one_bracket(text: str) -> bool:
    """Whether the first bracket closes with the last character, as in `(1, 2)` but not in `(1)(2)`."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth <= 0:
            return position == len(text) - 1
    return False


def _split(text: str) -> list[str]:
    """The parts between commas and semicolons outside of brackets."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


def _same(a: _Answer, b: _Answer) -> bool | None:
    """Three-valued and symmetric."""
    if isinstance(a, _Named) and isinstance(b, _Named):
        return _all([a.name == b.name, _same(a.answer, b.answer)])
    if isinstance(a, _Named) or isinstance(b, _Named):
        return _same(a.answer if isinstance(a, _Named) else a, b.answer if isinstance(b, _Named) else b)
    if isinstance(a, _Unread) or isinstance(b, _Unread):
        return True if a == b else None
    if isinstance(a, _Number) and isinstance(b, _Number):
        return _same_number(a, b)
    if isinstance(a, _Items) and isinstance(b, _Items):
        return _same_items(a, b)
    return a == b


def _same_number(a: _Number, b: _Number) -> bool:
    if a.unit == b.unit:
        return a.value == b.value
    if a.unit and b.unit:
        return False
    return a.value == b.value or (_hundredth(a) if a.unit == "percent" else a.value) == (
        _hundredth(b) if b.unit == "percent" else b.value
    )


def _hundredth(number: _Number) -> tuple[tuple[tuple[int, int], Fraction], ...]:
    return tuple((key, q / 100) for key, q in number.value)


def _same_items(a: _Items, b: _Items) -> bool | None:
    if a.kind != b.kind:
        return False
    if a.kind not in ("set", "union"):
        if len(a.items) != len(b.items):
            return False
        return _all([_same(x, y) for x, y in zip(a.items, b.items, strict=True)])
    return _all(
        [_any([_same(x, y) for y in b.items]) for x in a.items]
        + [_any([_same(x, y) for x in a.items]) for y in b.items]
    )


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _any(verdicts: Sequence[bool | None]) -> bool | None:
    if True in verdicts:
        return True
    return None if None in verdicts else False
