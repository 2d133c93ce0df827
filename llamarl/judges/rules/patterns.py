"""Keywords as the released grader uses them: as regular expressions that nobody escaped.

Most keywords hold no operator, or harmless ones (`C++`, `what?`, `e.g.`). A few could make Python's engine run for
years. Before a search its number of steps is bounded from the parsed pattern: with `k` unbounded repeats one after the
other, and a factor for the bounded ones, a text of n characters takes at most about factor * n^(k + 1) steps. A search
over `MAX_STEPS` is refused, for the same texts on every machine.
"""

import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from llamarl.core.errors import ConfigError, JudgeError

MAX_STEPS = 1e8
"""Upper bound of a search's steps: about a second."""

INVALID = (re.error, OverflowError, RecursionError)
"""What compiling an invalid regular expression may raise."""

operators: Any = import_module("re._constants")  # neither has type stubs
parser: Any = import_module("re._parser")
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
        self._factor, self._degree = _cost(parser.parse(keyword))

    def count(self, text: str) -> int:
        """Number of matches that don't overlap. Raises `JudgeError` where that could take too long."""
        self._check_cost(text)
        return sum(1 for _ in self.regex.finditer(text))

    def is_in(self, text: str) -> bool:
        """Whether it matches anywhere. Raises `JudgeError` where that could take too long."""
        self._check_cost(text)
        return self.regex.search(text) is not None

    def _check_cost(self, text: str) -> None:
        if self._factor > 1 or self._degree > 0:
            try:
                steps = self._factor * float(max(len(text), 1)) ** (self._degree + 1)
            except OverflowError:
                steps = float("inf")
            if steps > MAX_STEPS:
                raise JudgeError(
                    f"the keyword {self.keyword!r}, as a regular expression on {len(text)} characters, could take "
                    f"{steps:.0e} steps (limit {MAX_STEPS:.0e}); mode 'fixed' takes keywords literally"
                )


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
