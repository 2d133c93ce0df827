"""Keywords as the released grader uses them: as regular expressions that nobody escaped.

Most keywords hold no operator, or harmless ones (`C++`, `what?`, `e.g.`). A few could make Python's engine run for
years. Before a search its number of steps is bounded from the parsed pattern: with `k` unbounded repeats one after the
other, and a factor for the bounded ones, a text of n characters takes at most about factor * n^(k + 1) steps. With one
repeat of a single character that is too much by far: it starts only where the literal text before it stands, and goes
no further than a run of that character does, so there the text is asked. A search over `MAX_STEPS` is refused, for the
same texts on every machine.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from llamarl.core.errors import ConfigError, JudgeError

MAX_STEPS = 1e8
"""Upper bound of a search's steps: about a second."""

INVALID = (re.error, OverflowError, RecursionError)
"""Errors that compiling an invalid regular expression may raise."""

operators: Any = import_module("re._constants")  # none of them has type stubs
parser: Any = import_module("re._parser")
compiler: Any = import_module("re._compiler")
_CHARACTERS = {operators.LITERAL, operators.NOT_LITERAL, operators.ANY, operators.IN}
_REPEATS = {operators.MAX_REPEAT, operators.MIN_REPEAT, operators.POSSESSIVE_REPEAT}


class Pattern:
    """A keyword as a regular expression, with a bound on what a search may cost."""

    def __init__(self, keyword: str, *, before: str = "", after: str = "", ignore_case: bool = True) -> None:
        """Compiles `before + keyword + after`, both of them free of unbounded repeats that could fail.

        Raises:
            re.error: it is no valid regular expression.
        """
        self.keyword = keyword
        self.regex = re.compile(before + keyword + after, re.IGNORECASE if ignore_case else 0)
        parsed = parser.parse(keyword)
        self._factor, self._degree = _cost(parsed)
        self._single = _single_repeat(parsed, before, after, self.regex.flags) if self._degree == 1.0 else None

    def count(self, text: str) -> int:
        """Number of matches that don't overlap. Raises `JudgeError` where that could take too long."""
        self._check_cost(text)
        return sum(1 for _ in self.regex.finditer(text))

    def is_in(self, text: str) -> bool:
        """Says whether it matches anywhere. Raises `JudgeError` where that could take too long."""
        self._check_cost(text)
        return self.regex.search(text) is not None

    def _check_cost(self, text: str) -> None:
        if self._factor > 1 or self._degree > 0:
            try:
                steps = self._factor * float(max(len(text), 1)) ** (self._degree + 1)
            except OverflowError:
                steps = float("inf")
            if steps > MAX_STEPS and self._single is not None:
                steps = self._factor * self._single.steps(text)
            if steps > MAX_STEPS:
                raise JudgeError(
                    f"the keyword {self.keyword!r}, as a regular expression on {len(text)} characters, could take "
                    f"{steps:.0e} steps (limit {MAX_STEPS:.0e}); mode 'fixed' takes keywords literally"
                )


@dataclass(frozen=True)
class _SingleRepeat:
    """A pattern whose only unbounded repeat is that of a single character."""

    start: re.Pattern[str]
    """Matches, without taking anything, where the pattern may begin."""
    body: re.Pattern[str]
    """The character that repeats."""
    can_fail: bool
    """True if something stands behind the repeat; else every start is a hit, and each character is read once."""

    def steps(self, text: str) -> float:
        """Bound on the steps of a search."""
        if not self.can_fail:
            return 2.0 * len(text)
        num_starts = sum(1 for _ in self.start.finditer(text))
        repeating = {character for character in set(text) if self.body.fullmatch(character)}
        run = longest = 0
        for character in text:
            run = run + 1 if character in repeating else 0
            longest = max(longest, run)
        return len(text) + float(num_starts) * (longest + 1)


def _single_repeat(parsed: Any, before: str, after: str, flags: int) -> _SingleRepeat | None:
    """Tells how far the text bounds the pattern; None where its repeat stands inside of something else."""
    items = list(parsed)
    positions = [index for index, (operator, argument) in enumerate(items) if _is_unbounded(operator, argument)]
    if not positions:
        return None
    (_, _, body), position = items[positions[0]][1], positions[0]
    if len(body) != 1 or body[0][0] not in _CHARACTERS:
        return None
    literals = itertools.takewhile(lambda item: item[0] is operators.LITERAL, items[:position])
    prefix = "".join(re.escape(chr(code)) for _, code in literals)
    return _SingleRepeat(
        start=re.compile(f"{before}(?={prefix})", flags),
        body=compiler.compile(body, flags),
        can_fail=bool(after) or position + 1 < len(items),
    )


def _is_unbounded(operator: Any, argument: Any) -> bool:
    return operator in _REPEATS and argument[1] is operators.MAXREPEAT


def compile_pattern(id: str, name: str, keyword: str, **options: Any) -> Pattern:
    """The pattern of one argument. Raises `ConfigError` that names it where it is no valid regular expression."""
    try:
        return Pattern(keyword, **options)
    except INVALID as error:
        raise ConfigError(
            f"{id}: {name}={keyword!r} is no valid regular expression ({error}); mode 'fixed' takes it literally"
        ) from None


def _cost(items: Iterable[Any]) -> tuple[float, float]:
    """Bound on the ways to match a parsed sequence from one place: (factor, degree), meaning factor * n^degree."""
    factor, degree = 1.0, 0.0
    for operator, argument in items:
        item_factor, item_degree = _cost_of_item(operator, argument)
        factor, degree = factor * item_factor, degree + item_degree
    return factor, degree


def _cost_of_item(operator: Any, argument: Any) -> tuple[float, float]:
    if operator in _REPEATS:
        return _cost_of_repeat(*argument)
    if operator is operators.BRANCH:
        costs = [_cost(branch) for branch in argument[1]]
        return sum(factor for factor, _ in costs), max(degree for _, degree in costs)
    nested = [part for part in _flatten(argument) if isinstance(part, parser.SubPattern)]
    return _cost([item for part in nested for item in part])


def _cost_of_repeat(least: int, most: int, body: Any) -> tuple[float, float]:
    factor, degree = _cost(body)
    if most is operators.MAXREPEAT:
        return (1.0, 1.0) if (factor, degree) == (1.0, 0.0) else (1.0, float("inf"))
    if factor == 1.0 and degree == 0.0:
        return float(most - least + 1), 0.0
    try:
        return float(most - least + 1) * factor**most, degree * most
    except OverflowError:
        return 1.0, float("inf")


def _flatten(argument: Any) -> list[Any]:
    """The parts of an operator's argument; sub-patterns stay whole."""
    if isinstance(argument, list | tuple):
        return [part for item in argument for part in _flatten(item)]
    return [argument]
