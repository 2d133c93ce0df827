"""Algebra by the package math-verify, in worker processes that are killed at the deadline.

math-verify's own time-outs use an alarm signal: they break on threads, and they read a time-out as "different". Here
they are off. What goes to a worker is bounded first (`is_bounded`), so that a policy cannot choose to be unjudgeable
by writing a tower of powers; the deadline is for what the bounds let through.
"""

import importlib.util
import logging
import re
from collections.abc import Sequence
from typing import Any

from llamarl.core.errors import MissingDependencyError
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.math.equality import without_name

_MAX_CHARACTERS = 300
_MAX_DEPTH = 10
_ALLOWED = re.compile(r"(?:[A-Za-z0-9\s+\-*/^=<>|(){}\[\].,!&\\]|(?<=log)_)+")
_WORDS = frozenset(
    (
        *("frac", "sqrt", "infty", "binom", "mod", "overline", "mathbb", "emptyset"),
        *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
        *("log", "exp", "cup", "cap", "leq", "geq", "neq", "begin", "end", "pmatrix", "bmatrix", "vmatrix", "matrix"),
        *("alpha", "beta", "gamma", "delta", "theta", "lambda", "phi", "omega"),
    )
)
"""Runs of three or more letters that are mathematics; others are prose."""
_LARGE = re.compile(r"\d{21,}|\d{3,} ?!|[)}!\]] ?!|\*\*|\d{4,} ?\} ?\{ ?\d{3,}")
_EXPONENT = re.compile(r" ?(?:-? ?[\w.]+|\\[a-z]+)")
_LARGE_EXPONENT = re.compile(r"\^|!|\d{3,}")


def is_bounded(text: str) -> bool:
    """Whether a cleaned text is mathematics of a size that algebra can deal with: no prose, no towers of powers."""
    if len(text) > _MAX_CHARACTERS or not _ALLOWED.fullmatch(text) or _LARGE.search(text):
        return False
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    words = re.findall(r"[A-Za-z]{3,}", text)
    is_mathematics = deepest <= _MAX_DEPTH and all(word in _WORDS for word in words)
    return is_mathematics and not any(_is_large_power(text[match.end() :]) for match in re.finditer(r"\^", text))


def _is_large_power(rest: str) -> bool:
    """Whether the exponent that `rest` begins with is itself a power, or has three digits."""
    rest = rest.lstrip()
    if rest[:1] in ("{", "("):
        end = closing_bracket(rest)
        return end is None or bool(_LARGE_EXPONENT.search(rest[:end])) or rest[end + 1 :].lstrip().startswith("^")
    match = _EXPONENT.match(rest)
    return match is None or bool(_LARGE_EXPONENT.search(match[0])) or rest[match.end() :].lstrip().startswith("^")


def closing_bracket(text: str) -> int | None:
    """Where the bracket closes that `text` begins with."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return position
    return None


def check_installed() -> None:
    """Raises `MissingDependencyError` where math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise MissingDependencyError.for_extra("math-verify", "math")


def algebra_pair(a: str, b: str) -> tuple[str, str] | None:
    """Two cleaned answers as algebra may compare them: without the name in `y = 2x`; None where it should not.

    An equation is compared with an equation only: of `5 = x + 1` and `x + 1`, math-verify would take the right side.
    """
    if not (is_bounded(a) and is_bounded(b)):
        return None
    a, b = without_name(a), without_name(b)
    return (a, b) if a.count("=") == b.count("=") <= 1 else None


class SymbolicJudge:
    """Passes a completion whose text equals the prompt's answer in math-verify's eyes. Runs inside a worker."""

    name = "math-verify"

    def __setstate__(self, state: Any) -> None:
        import math_verify  # type: ignore[import-untyped]  # noqa: F401  # here, so that a worker's start pays for the import and not the first call

    def __getstate__(self) -> dict[str, bool]:
        return {"is_worker": True}  # an empty state would not be restored

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion; both texts are cleaned and bounded."""
        return [_verdict(symbolically_equal(prompt.answer, completion.text)) for completion in completions]


def _verdict(is_equal: bool) -> Verdict:
    return Verdict.scored(float(is_equal), passed=is_equal)


def symbolically_equal(reference: str, candidate: str) -> bool:
    """What math-verify says of two LaTeX texts, to 12 decimals where it calculates. May take for ever."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
    config = (math_verify.LatexExtractionConfig(),)
    gold, guess = (
        math_verify.parse(f"${text}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
        for text in (reference, candidate)
    )
    if not gold or not guess:
        return False
    return bool(math_verify.verify(gold, guess, float_rounding=12, timeout_seconds=None))
