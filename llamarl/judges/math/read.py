r"""Reads a cleaned answer: a number, words, a choice, a list, tuple, set or interval, or something with a name.

read(clean("x < 3"))           # Named("x", Items("()", (Word("-infinity"), Number of 3)))
read(clean("(C) 12"))          # Labelled("C", Number of 12)
read(clean("x^2 + 2x"))        # Unread("x^2+2x")
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from llamarl.judges.math.clean import clean
from llamarl.judges.math.exact import Exact, read_exact
from llamarl.judges.math.units import split_nouns, split_scale, split_unit

MAX_ITEMS = 50
"""Items of a list; a longer one is not read."""
_MAX_DEPTH = 5

_NAME = re.compile(r"([A-Za-z](?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?) ?(?:=|\\in(?![a-z]) ?)([^=]+)")
_WORD = re.compile(r"[A-Za-z][A-Za-z' .-]*")
_POINT = re.compile(r"\([A-Za-z](?:,[A-Za-z]){1,4}\) ?= ?(?=\()")
_CHOICE = re.compile(r"\(([A-Za-z])\)|([A-Z])\)")
_LABELLED = re.compile(r"(?:\(([A-J])\)|([A-J])[).:]) ?(?=[\w\\$£€.]|-[\d\\.])(.+)")
_OTHER_LABEL = re.compile(r"\([A-J]\)|(?<![A-Za-z])(?:or|and)(?![A-Za-z])")
_BASED = re.compile(
    r"\(?([0-9A-Fa-f]+)\)?"
    r"(?:_\(?\{? ?([0-9]{1,2}|[a-z]{3,7}) ?\}?\)?| ?\(?base ([0-9]{1,2}|[a-z]{3,7})\)?)"
)
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TIME = re.compile(r"(\d{1,2}):(\d\d)(?: ?([ap])\.? ?m\.?)?", re.IGNORECASE)
_RELATION = re.compile(r"(<|>|\\[lgn]eq(?![a-z]))")
_REVERSED = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq", "\\neq": "\\neq"}
_OPENINGS, _CLOSINGS = {">": "(", "\\geq": "["}, {"<": ")", "\\leq": "]"}
_OR = re.compile(r" ?,? ?(?<![a-z])or(?![a-z]) ?")
_AND = re.compile(r" ?,? ?(?<![a-z])and(?![a-z]) ?")
_BUILDER = re.compile(r"\\?\{ ?(?:[a-z]|[a-z] ?\\in ?\\mathbb\{?R\}?) ?(?:\||:|\\mid(?![a-z])) ?(.+?)\\?\}")
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:alpha|beta|gamma|theta|lambda|phi)")
_INFINITY = re.compile(r"([+-]?)\\infty")
_CONJUNCTION = re.compile(r"(?:,|;)? ?(?<![A-Za-z])(?:or|and)(?![A-Za-z]) ?")
_BRACKETS = {"(": ")]", "[": ")]", "{": "}"}
_NUMERAL = re.compile(
    r"[+-]? ?(?:[\d.,]+(?:[eE][+-]?\d+)?(?: ?/ ?-?[\d.,]+)?|\d* ?\\frac(?:\{ ?-?[\d.,]+\}\{ ?-?[\d.,]+\}|\d\d)"
    r"|\d+ \d+/\d+|[\d.]+\*10\^(?:\d|\{-?\d+\})|\d*\.\d*(?: ?\\(?:overline|bar) ?(?:\{\d+\}|\d)|\(\d+\)))"
)
_SHORT_WORDS = frozenset({"yes", "no", "odd", "all", "red"})
"""Other strings of two or three letters are taken for products of variables."""
_CONSTANTS = frozenset({"e"})
_NOTHING = frozenset({"\\emptyset", "empty set", "the empty set", "no solution", "no solutions", "none"})
_REALS = frozenset({"\\mathbb{R}", "\\mathbb R", "all real numbers", "all reals", "(-\\infty,\\infty)"})


@dataclass(frozen=True, slots=True)
class Number:
    """A number of `exact`, with its unit."""

    value: tuple[tuple[tuple[int, int], Fraction], ...]
    unit: str = ""
    nouns: tuple[str, ...] = ()
    """Things that are counted, where the text says it after the number."""


@dataclass(frozen=True, slots=True)
class Word:
    """Something that equals itself only: a word, a letter, a time of day, infinity."""

    text: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A choice with its letter, `(C) 12`."""

    letter: str
    answer: "Answer"


@dataclass(frozen=True, slots=True)
class Items:
    """Several answers together."""

    kind: str
    """`set`, `union`, or the brackets of a tuple or interval."""
    items: "tuple[Answer, ...]"


@dataclass(frozen=True, slots=True)
class Named:
    """An answer that says what it is of, `x = 5`."""

    name: str
    answer: "Answer"


@dataclass(frozen=True, slots=True)
class Unread:
    """A text beyond reading."""

    text: str


Answer = Number | Word | Labelled | Items | Named | Unread


def read(text: str, depth: int = 0) -> Answer:
    """The answer that a cleaned text (`clean`) says; `depth` counts the lists around it."""
    text = _POINT.sub("", text.strip())
    if depth > _MAX_DEPTH:
        return Unread(text)
    readers: tuple[Callable[[str, int], Answer | None], ...] = (
        _fixed_words,
        _number,
        _choice,
        _relation,
        _read_name,
        _union,
        _items,
        _signs,
        _word,
    )
    for reader in readers:
        answer = reader(text, depth)
        if answer is not None:
            return answer
    return Unread(text)


def says_something(text: str) -> bool:
    """Says whether there is a letter or digit: marks alone are no answer."""
    return any(character.isalnum() for character in text)


def is_numeral(text: str) -> bool:
    """Says whether an answer is a number that is worked out: digits, one fraction, a power of ten; not `6 * 7`."""
    number, _ = split_scale(_split_words(without_name(clean(text)))[0])
    return bool(_NUMERAL.fullmatch(number)) and read_exact(number) is not None


def without_name(text: str) -> str:
    """Returns what an answer that begins with `x =` says of x."""
    return split_name(text)[1]


def split_name(text: str) -> tuple[str, str]:
    """`x = 5` as ("x", "5"); an answer without a name as ("", answer)."""
    match = _NAME.fullmatch(text)
    return (match[1], match[2]) if match else ("", text)


def without_label(text: str) -> str:
    """Returns what the choice says that an answer such as `(C) 12` names."""
    match = _LABELLED.fullmatch(clean(text))
    return match[3] if match else text


def is_readable(text: str) -> bool:
    """Says whether an answer is read as a whole, so that others than its own spelling equal it without algebra."""
    return _is_read(read(clean(text)))


def _is_read(answer: Answer) -> bool:
    if isinstance(answer, Items):
        return all(map(_is_read, answer.items))
    if isinstance(answer, Named | Labelled):
        return _is_read(answer.answer)
    return not isinstance(answer, Unread)


def _fixed_words(text: str, depth: int) -> Answer | None:
    """Sets that have a name, infinity, times of day, numerals of other bases."""
    if match := _INFINITY.fullmatch(text):
        return Word("-infinity" if match[1] == "-" else "infinity")
    if text.casefold() in _NOTHING:
        return Word("empty set")
    if text in _REALS:
        return Word("all real numbers")
    if match := _TIME.fullmatch(text):
        return Word(f"{match[1]}:{match[2]} {(match[3] or '').lower()}")
    if match := _BASED.fullmatch(text):
        base = match[2] or match[3]
        if base in _BASES:
            base = str(_BASES.index(base) + 2)
        return Word(f"{match[1].lstrip('0').upper()} in base {base}") if base.isdigit() else None
    return None


def _number(text: str, depth: int) -> Answer | None:
    value = read_exact(text)
    if value is not None:
        return Number(_freeze(value))
    number, unit, nouns = _split_words(text)
    number, factor = split_scale(number)
    value = read_exact(number) if unit or nouns or factor > 1 else None
    return None if value is None else Number(_freeze(value, factor), unit, nouns)


def _split_words(text: str) -> tuple[str, str, tuple[str, ...]]:
    """A cleaned text as number, unit, and words of what is counted."""
    number, unit = split_unit(text)
    if unit:
        return number, unit, ()
    number, nouns = split_nouns(text)
    number, unit = split_unit(number)
    return number, unit, nouns


def _freeze(value: Exact, factor: int = 1) -> tuple[tuple[tuple[int, int], Fraction], ...]:
    return tuple(sorted((key, factor * q) for key, q in value.items()))


def _choice(text: str, depth: int) -> Answer | None:
    if match := _CHOICE.fullmatch(text):
        return Word(match[1] or match[2])
    match = _LABELLED.fullmatch(text)
    if match is None or _OTHER_LABEL.search(match[3]):
        return None
    return Labelled(match[1] or match[2], read(match[3], depth + 1))


def _relation(text: str, depth: int) -> Answer | None:
    """Inequalities of one variable, as intervals."""
    if match := _BUILDER.fullmatch(text):
        text = match[1]
    if not _RELATION.search(text):
        return None
    alternatives = _OR.split(text)
    found = [_intervals(alternative, depth) for alternative in alternatives[:MAX_ITEMS]]
    names = {name for name, _ in found}
    intervals = tuple(interval for _, each in found for interval in each)
    if len(names) > 1 or len(alternatives) > MAX_ITEMS or not all(each for _, each in found):
        return None
    return Named(names.pop(), intervals[0] if len(intervals) == 1 else Items("union", intervals))


def _intervals(text: str, depth: int) -> tuple[str, tuple[Items, ...]]:
    """Variable and interval of `x < 3`, `1 < x < 3`, `x > 1 and x < 3`; two intervals of `x != 3`, none of others."""
    conditions = [condition for part in _AND.split(text)[:3] for condition in _conditions(part)]
    bounds = {relation: read(bound, depth + 1) for _, relation, bound in conditions}
    names = {name for name, _, _ in conditions}
    if len(names) != 1 or len(bounds) != len(conditions) or not all(map(_is_bound, bounds.values())):
        return "", ()
    name = names.pop()
    least, most = Word("-infinity"), Word("infinity")
    if "\\neq" in bounds:
        hole = bounds["\\neq"]
        return name, (Items("()", (least, hole)), Items("()", (hole, most))) if len(bounds) == 1 else ()
    lows = [(_OPENINGS[relation], bound) for relation, bound in bounds.items() if relation in _OPENINGS]
    highs = [(_CLOSINGS[relation], bound) for relation, bound in bounds.items() if relation in _CLOSINGS]
    if len(lows) > 1 or len(highs) > 1:
        return "", ()
    (opening, low), (closing, high) = (lows or [("(", least)])[0], (highs or [(")", most)])[0]
    return name, (Items(opening + closing, (low, high)),)


def _conditions(text: str) -> list[tuple[str, str, str]]:
    """(variable, relation, bound) of one or two relations, the variable on the left."""
    parts = [part.strip() for part in _RELATION.split(text)]
    if len(parts) == 3 and _VARIABLE.fullmatch(parts[0]):
        return [(parts[0], parts[1], parts[2])]
    if len(parts) == 3 and _VARIABLE.fullmatch(parts[2]):
        return [(parts[2], _REVERSED[parts[1]], parts[0])]
    if len(parts) == 5 and _VARIABLE.fullmatch(parts[2]):
        return [(parts[2], _REVERSED[parts[1]], parts[0]), (parts[2], parts[3], parts[4])]
    return []


def _is_bound(answer: Answer) -> bool:
    return isinstance(answer, Number) or answer in (Word("infinity"), Word("-infinity"))


def _read_name(text: str, depth: int) -> Answer | None:
    match = _NAME.fullmatch(text)
    if not match or len(_split(_separate(match[2]))) > 1:
        return None
    return Named(match[1], read(match[2], depth + 1))


def _union(text: str, depth: int) -> Answer | None:
    parts = [part for part in re.split(r"\\cup(?![a-z])", text) if part.strip()]
    if not 1 < len(parts) <= MAX_ITEMS:
        return None
    return Items("union", tuple(read(part, depth + 1) for part in parts))


def _items(text: str, depth: int) -> Answer | None:
    text = text.replace("\\{", "{").replace("\\}", "}")
    kind, inner = "set", _separate(text)
    if len(text) > 2 and text[-1] in _BRACKETS.get(text[0], "") and _is_one_bracket(text):
        kind, inner = ("set", text[1:-1]) if text[0] == "{" else (text[0] + text[-1], text[1:-1])
    parts = _split(inner)
    if len(parts) > MAX_ITEMS or (len(parts) < 2 and not text.startswith("{")):
        return None
    return Items(kind, tuple(read(part, depth + 1) for part in parts))


def _separate(text: str) -> str:
    """`or` and `and` between answers are commas."""
    return _CONJUNCTION.sub(",", text) if any(character.isdigit() for character in text) else text


def _signs(text: str, depth: int) -> Answer | None:
    if text.count("\\pm") != 1:
        return None
    both = (re.sub(r"\\pm ?", sign, text) for sign in "+-")
    return Items("set", tuple(read(part.removeprefix("+"), depth + 1) for part in both))


def _word(text: str, depth: int) -> Answer | None:
    if not _WORD.fullmatch(text) or text in _CONSTANTS:
        return None
    if len(text) == 1:
        return Word(text)
    is_word = len(text) > 3 or text.casefold() in _SHORT_WORDS
    return Word(text.casefold()) if is_word else None


def _is_one_bracket(text: str) -> bool:
    """Says whether the first bracket closes with the last character, as in `(1, 2)` but not in `(1)(2)`."""
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
