"""A pattern that reads completions takes work in proportion to their length, whatever they hold."""

import itertools
import random
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from regex_steps import StepCounter, pieces

LONG = [
    *("rules.content", "rules.folding", "rules.keywords", "rules.length", "rules.sentences", "rules.words"),
    *("rules.languages", "math.extract", "code.extract", "llm.answers", "voting"),
]
"""Modules whose patterns read whole completions."""
SHORT = ["math.clean", "math.symbolic"]
"""Those that search answers, which have at most 1,000 characters."""
ANCHORED = ["math.exact", "math.read", "math.units"]
"""Those that answers match from their beginning to their end."""
BOUNDED = {"_URL", "_MAIL", "_CLOSING"}
"""Langdetect's own two, for its verdicts: each repeat is bounded, so the work is in proportion, but to a large number.
And what looks at one tag of a vote."""


Count = Callable[[re.Pattern[str], str], int]


def _patterns(value: Any) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(_patterns, value.values()))
    elif isinstance(value, tuple | list):
        yield from itertools.chain.from_iterable(map(_patterns, value))


def patterns_of(module: ModuleType) -> Iterator[tuple[str, re.Pattern[str]]]:
    for name, value in vars(module).items():
        for index, pattern in enumerate(_patterns(value)):
            yield f"{name}[{index}]" if index else name, pattern


def patterns(modules: list[str]) -> list[Any]:
    return [
        pytest.param(pattern, id=f"{module}.{name}")
        for module in modules
        for name, pattern in patterns_of(import_module(f"llamarl.judges.{module}"))
        if name not in BOUNDED
    ]


def texts(pattern: re.Pattern[str], size: int, most: int = 6) -> Iterator[str]:
    """Each piece of the pattern repeated, between each two of its first pieces, and some drawn; alike for all sizes."""
    generator = random.Random(pattern.pattern)
    found = [*pieces(pattern)[:40], " ", "\n", "a", "1"]
    first = list(dict.fromkeys(found))[:most]
    for unit, before, after in itertools.product(first, ["", *(3 * piece for piece in first)], ["!", *first]):
        yield before + (unit * size)[:size] + after
    for _ in range(60):
        before, unit, after = (generator.choice(found) for _ in range(3))
        unit += generator.choice(["", generator.choice(found)])
        yield before + (unit * size)[:size] + after


def steps(pattern: re.Pattern[str], text: str) -> int:
    counter = StepCounter(pattern, text)
    for _ in counter.spans():
        pass
    return counter.steps


def anchored_steps(pattern: re.Pattern[str], text: str) -> int:
    counter = StepCounter(pattern, text)
    counter.fullmatch()
    return counter.steps


def growth(pattern: re.Pattern[str], size: int, steps: Count = steps) -> Iterator[tuple[int, int, str]]:
    """Steps on each text that is some work, and on its like of three times the size, with the larger text."""
    for small, large in zip(texts(pattern, size), texts(pattern, 3 * size), strict=True):
        if (few := steps(pattern, small)) > 4 * len(small):
            yield few, steps(pattern, large), large


@pytest.fixture(autouse=True)
def deep_recursion() -> Iterator[None]:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("pattern", patterns(LONG))
def test_work_is_in_proportion_to_the_text(pattern: re.Pattern[str]) -> None:
    for small, large, text in growth(pattern, 24):
        assert large < 4.5 * small, text  # a quadratic pattern takes nine times the work


@pytest.mark.parametrize("pattern", patterns(SHORT))
def test_short_answers_are_little_work(pattern: re.Pattern[str]) -> None:
    for small, large, text in growth(pattern, 12):
        assert large < 9.5 * small, text  # at most quadratic: some millions of steps for the longest answer


@pytest.mark.parametrize("pattern", patterns(ANCHORED))
def test_reading_an_answer_is_little_work(pattern: re.Pattern[str]) -> None:
    for small, large, text in growth(pattern, 24, anchored_steps):
        assert large < 9.5 * small, text


def test_a_quadratic_pattern_is_found() -> None:
    pattern = re.compile(r"^[ ]{0,3}(`{3,})[ \t]*([^`\n]*)$", re.MULTILINE)  # of three backticks, blanks, a backtick
    assert max(large / small for small, large, _ in growth(pattern, 24)) > 6


@pytest.mark.parametrize("pattern", patterns(LONG + SHORT + ANCHORED))
def test_the_counter_matches_as_re_does(pattern: re.Pattern[str]) -> None:
    for text in texts(pattern, 9, most=3):
        assert list(StepCounter(pattern, text).spans()) == [match.span() for match in pattern.finditer(text)], text
        match = pattern.fullmatch(text)
        assert StepCounter(pattern, text).fullmatch() == (match.end() if match else None), text
