r"""Whether two answers are the same, decided by reading both, exactly and in bounded time.

    answers_equal("\frac12", "0.5")             # True
    answers_equal("5 or 6", "5")                   # False
    compare_answers("x^2+2x", "x(x+2)")            # None: needs algebra (`MathJudge` asks math-verify then)

    numbers        exactly: 1/2 = 0.5 = 50 %; 1,234 = 1234; no rounding: 0.33 is not 1/3
    percent        50 % equals 1/2 and, for answers that leave the sign out, 50
    units          and words for what is counted may be left out on one side; where both have some they must agree
    other bases    digit by digit: 1011_2 is neither 1011 nor 11
    tuples         item by item, in order; brackets of intervals must agree: (1, 2] is not [1, 2]
    inequalities   are intervals: x < 3 is (-\infty, 3), x < 1 or x > 4 is a union
    lists, sets    in any order: {1, 2}, "2, 1", "x = 1 or x = 2", "1 \pm 1" where that is meant
    words          without regard to case; single letters with it
    choices        by their letter: C, (C), "(C) 12"; where one side has none, by what it stands before
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
from llamarl.judges.math.units import split_nouns, split_scale, split_unit

_MAX_ITEMS = 50
_MAX_DEPTH = 5

_NAME = re.compile(r"([A-Za-z](?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?) ?(?:=|\\in(?![a-z]) ?)([^=]+)")
_WORD = re.compile(r"[A-Za-z][A-Za-z' .-]*")
_POINT = re.compile(r"\([A-Za-z](?:,[A-Za-z]){1,4}\) ?= ?(?=\()")
_CHOICE = re.compile(r"\(([A-Za-z])\)|([A-Z])\)")
_LABELLED = re.compile(r"(?:\(([A-J])\)|([A-J])[).:]) ?(?=[\w\\$£€.]|-[\d\\.])(.+)")
_OTHER_LABEL = re.compile(r"\([A-J]\)|(?<![A-Za-z])(?:or|and)(?![A-Za-z])")
_BASED = re.compile(
    r"\(?([0-9A-Fa-f]+)\)?(?:_\(?\{? ?([0-9]{1,2}|[a-z]{3,7}) ?\}?\)?| ?\(?base ([0-9]{1,2}|[a-z]{3,7})\)?)"
)
_BASES = ("two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen").split()
_TIME = re.compile(r"(\d{1,2}):(\d\d)(?: ?([ap])\.? ?m\.?)?", re.IGNORECASE)
_RELATION = re.compile(r"(<|>|\\[lgn]eq(?![a-z]))")
_REVERSED = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}
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
_CONSTANTS = frozenset({"e", "E", "I"})
_NOTHING = frozenset({"\\emptyset", "empty set", "the empty set", "no solution", "no solutions", "none"})
_REALS = frozenset({"\\mathbb{R}", "\\mathbb R", "all real numbers", "all reals", "(-\\infty,\\infty)"})


@dataclass(frozen=True, slots=True)
class _Number:
    value: tuple[tuple[tuple[int, int], Fraction], ...]
    unit: str
    nouns: tuple[str, ...] = ()
    """What is counted, where the text says it after the number."""


@dataclass(frozen=True, slots=True)
class _Word:
    text: str


@dataclass(frozen=True, slots=True)
class _Labelled:
    letter: str
    answer: "_Answer"


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


_Answer = _Number | _Word | _Labelled | _Items | _Named | _Unread


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
    number, _ = split_scale(_split_words(without_name(clean(text)))[0])
    return bool(_NUMERAL.fullmatch(number)) and read_exact(number) is not None


def without_name(text: str) -> str:
    """What an answer that begins with `x =` says of x."""
    return split_name(text)[1]


def split_name(text: str) -> tuple[str, str]:
    """`x = 5` as ("x", "5"); an answer without a name as ("", answer)."""
    match = _NAME.fullmatch(text)
    return (match[1], match[2]) if match else ("", text)


def without_label(text: str) -> str:
    """What the choice says that an answer such as `(C) 12` names."""
    match = _LABELLED.fullmatch(clean(text))
    return match[3] if match else text


def is_readable(text: str) -> bool:
    """Whether an answer is read as a whole, so that it equals others than its own spelling without any algebra."""
    return _is_read(_read(clean(text)))


def _is_read(answer: _Answer) -> bool:
    if isinstance(answer, _Items):
        return all(map(_is_read, answer.items))
    if isinstance(answer, _Named | _Labelled):
        return _is_read(answer.answer)
    return not isinstance(answer, _Unread)


def _read(text: str, depth: int = 0) -> _Answer:
    """The answer that a cleaned text says."""
    text = _POINT.sub("", text.strip())
    if depth > _MAX_DEPTH:
        return _Unread(text)
    readers: tuple[Callable[[str, int], _Answer | None], ...] = (
        _fixed_words,
        _number,
        _choice,
        _relation,
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


def _fixed_words(text: str, depth: int) -> _Answer | None:
    """Sets that have a name, infinity, times of day, numerals of other bases."""
    if match := _INFINITY.fullmatch(text):
        return _Word("-infinity" if match[1] == "-" else "infinity")
    if text.casefold() in _NOTHING:
        return _Word("empty set")
    if text in _REALS:
        return _Word("all real numbers")
    if match := _TIME.fullmatch(text):
        return _Word(f"{match[1]}:{match[2]} {(match[3] or '').lower()}")
    if match := _BASED.fullmatch(text):
        base = match[2] or match[3]
        if base in _BASES:
            base = str(_BASES.index(base) + 2)
        return _Word(f"{match[1].lstrip('0').upper()} in base {base}") if base.isdigit() else None
    return None


def _number(text: str, depth: int) -> _Answer | None:
    value, unit, nouns = read_exact(text), "", ()
    if value is None:
        number, unit, nouns = _split_words(text)
        number, factor = split_scale(number)
        value = read_exact(f"({number})*{factor}") if unit or nouns or factor > 1 else None
    return None if value is None else _Number(_frozen(value), unit, nouns)


def _split_words(text: str) -> tuple[str, str, tuple[str, ...]]:
    """A cleaned text as number, unit, and words of what is counted."""
    number, unit = split_unit(text)
    if unit:
        return number, unit, ()
    number, nouns = split_nouns(text)
    number, unit = split_unit(number)
    return number, unit, nouns


def _frozen(value: Exact) -> tuple[tuple[tuple[int, int], Fraction], ...]:
    return tuple(sorted(value.items()))


def _choice(text: str, depth: int) -> _Answer | None:
    if match := _CHOICE.fullmatch(text):
        return _Word(match[1] or match[2])
    match = _LABELLED.fullmatch(text)
    if match is None or _OTHER_LABEL.search(match[3]):
        return None
    return _Labelled(match[1] or match[2], _read(match[3], depth + 1))


def _relation(text: str, depth: int) -> _Answer | None:
    """Inequalities of one variable, as intervals."""
    if match := _BUILDER.fullmatch(text):
        text = match[1]
    if not _RELATION.search(text):
        return None
    alternatives = [
        _interval(part, depth) for part in re.split(r" ?,? ?(?<![a-z])or(?![a-z]) ?", text)[: _MAX_ITEMS + 1]
    ]
    if not all(alternatives) or len(alternatives) > _MAX_ITEMS:
        return None
    names = {name for each in alternatives if each for name, _ in each}
    intervals = tuple(interval for each in alternatives if each for _, interval in each)
    if len(names) > 1:
        return None
    return _Named(names.pop(), intervals[0] if len(intervals) == 1 else _Items("union", intervals))


def _interval(text: str, depth: int) -> list[tuple[str, _Items]]:
    """(variable, interval) of `x < 3`, `1 \\leq x < 3` and `x > 1 and x < 3`; two intervals of `x \\neq 3`."""
    parts = [part.strip() for part in _RELATION.split(text)]
    low: tuple[str, _Answer] = ("(", _Word("-infinity"))
    high: tuple[str, _Answer] = (")", _Word("infinity"))
    if (
        len(parts) == 3
        and _VARIABLE.fullmatch(parts[2])
        and not _VARIABLE.fullmatch(parts[0])
        and parts[1] in _REVERSED
    ):
        parts = [parts[2], _REVERSED[parts[1]], parts[0]]
    if len(parts) == 3 and _VARIABLE.fullmatch(parts[0]):
        name, relation, bound = parts[0], parts[1], _read(parts[2], depth + 1)
        if not isinstance(bound, _Number):
            return []
        if relation == "\\neq":
            return [(name, _Items("()", (low[1], bound))), (name, _Items("()", (bound, high[1])))]
        if relation in ("<", "\\leq"):
            high = (")" if relation == "<" else "]", bound)
        else:
            low = ("(" if relation == ">" else "[", bound)
    elif len(parts) == 5 and _VARIABLE.fullmatch(parts[2]):
        if parts[1] in (">", "\\geq"):
            parts = [parts[4], _REVERSED.get(parts[3], ""), parts[2], _REVERSED[parts[1]], parts[0]]
        ends = _read(parts[0], depth + 1), _read(parts[4], depth + 1)
        if not {parts[1], parts[3]} <= {"<", "\\leq"} or not all(isinstance(end, _Number | _Word) for end in ends):
            return []
        name = parts[2]
        low, high = ("(" if parts[1] == "<" else "[", ends[0]), (")" if parts[3] == "<" else "]", ends[1])
    else:
        return []
    return [(name, _Items(low[0] + high[0], (low[1], high[1])))]


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
    if isinstance(a, _Labelled) or isinstance(b, _Labelled):
        return _same_choice(a, b)
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


def _same_choice(a: _Answer, b: _Answer) -> bool | None:
    """Of answers such as `(C) 12`, at least one."""
    if isinstance(a, _Labelled) and isinstance(b, _Labelled):
        return a.letter == b.letter and _same(a.answer, b.answer) is not False
    labelled, other = (a, b) if isinstance(a, _Labelled) else (b, a)
    assert isinstance(labelled, _Labelled)
    if isinstance(other, _Word) and len(other.text) == 1 and other.text.isupper():
        return labelled.letter == other.text
    return _same(labelled.answer, other)


def _same_number(a: _Number, b: _Number) -> bool:
    one_counts = bool(a.unit and not a.nouns and b.nouns and not b.unit) or bool(
        b.unit and not b.nouns and a.nouns and not a.unit
    )
    are_nouns_apart = a.nouns and b.nouns and not (set(a.nouns) <= set(b.nouns) or set(b.nouns) <= set(a.nouns))
    if one_counts or are_nouns_apart or (a.unit and b.unit and a.unit != b.unit):
        return False
    return a.value == b.value or (
        a.unit != b.unit
        and (_hundredth(a) if a.unit == "percent" else a.value) == (_hundredth(b) if b.unit == "percent" else b.value)
    )


def _hundredth(number: _Number) -> tuple[tuple[tuple[int, int], Fraction], ...]:
    return tuple((key, q / 100) for key, q in number.value)


def _same_items(a: _Items, b: _Items) -> bool | None:
    if a.kind != b.kind:
        points = [_point(each) for each in (a, b)]
        if points[0] is None or points[1] is None:
            return False
        a, b = points[0], points[1]
    if a.kind not in ("set", "union"):
        if len(a.items) != len(b.items):
            return False
        return _all([_same(x, y) for x, y in zip(a.items, b.items, strict=True)])
    return _all(
        [_any([_same(x, y) for y in b.items]) for x in a.items]
        + [_any([_same(x, y) for x in a.items]) for y in b.items]
    )


def _point(items: _Items) -> _Items | None:
    """A tuple as it is; `x = 1, y = 4` as the tuple (1, 4), coordinates in the order of the alphabet."""
    if items.kind == "()":
        return items
    named = [item for item in items.items if isinstance(item, _Named)]
    names = [item.name for item in named]
    if items.kind != "set" or len(named) != len(items.items) or len(set(names)) != len(names):
        return None
    return _Items("()", tuple(item.answer for item in sorted(named, key=lambda item: item.name)))


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _any(verdicts: Sequence[bool | None]) -> bool | None:
    if True in verdicts:
        return True
    return None if None in verdicts else False
