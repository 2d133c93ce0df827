r"""Equality of two answers, decided by reading both, exactly and in bounded time.

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

from collections.abc import Sequence
from fractions import Fraction

from llamarl.judges.math.clean import clean
from llamarl.judges.math.extract import MAX_ANSWER_CHARACTERS
from llamarl.judges.math.read import Answer, Items, Labelled, Named, Number, Unread, Word, read, says_something


def answers_equal(a: str, b: str) -> bool:
    """Says whether `compare_answers` says True. What it cannot decide counts as different."""
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
    return _same(read(a), read(b))


def _same(a: Answer, b: Answer) -> bool | None:
    """Three-valued and symmetric."""
    if isinstance(a, Labelled) or isinstance(b, Labelled):
        return _same_choice(a, b)
    if isinstance(a, Named) and isinstance(b, Named):
        return _all([a.name == b.name, _same(a.answer, b.answer)])
    if isinstance(a, Named) or isinstance(b, Named):
        return _same(a.answer if isinstance(a, Named) else a, b.answer if isinstance(b, Named) else b)
    if isinstance(a, Unread) or isinstance(b, Unread):
        return True if a == b else None
    if isinstance(a, Number) and isinstance(b, Number):
        return _same_number(a, b)
    if isinstance(a, Items) and isinstance(b, Items):
        return _same_items(a, b)
    return a == b


def _same_choice(a: Answer, b: Answer) -> bool | None:
    """Says whether one of two answers is such as `(C) 12`."""
    if isinstance(a, Labelled) and isinstance(b, Labelled):
        return a.letter == b.letter and _same(a.answer, b.answer) is not False
    labelled, other = (a, b) if isinstance(a, Labelled) else (b, a)
    assert isinstance(labelled, Labelled)
    if isinstance(other, Word) and len(other.text) == 1 and other.text.isupper():
        return labelled.letter == other.text
    return _same(labelled.answer, other)


def _same_number(a: Number, b: Number) -> bool:
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


def _hundredth(number: Number) -> tuple[tuple[tuple[int, int], Fraction], ...]:
    return tuple((key, q / 100) for key, q in number.value)


def _same_items(a: Items, b: Items) -> bool | None:
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


def _point(items: Items) -> Items | None:
    """A tuple as it is; `x = 1, y = 4` as the tuple (1, 4), coordinates in the order of the alphabet."""
    if items.kind == "()":
        return items
    named = [item for item in items.items if isinstance(item, Named)]
    names = [item.name for item in named]
    if items.kind != "set" or len(named) != len(items.items) or len(set(names)) != len(names):
        return None
    return Items("()", tuple(item.answer for item in sorted(named, key=lambda item: item.name)))


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _any(verdicts: Sequence[bool | None]) -> bool | None:
    if True in verdicts:
        return True
    return None if None in verdicts else False
