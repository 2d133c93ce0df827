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
from llamarl.core.judge import Judge
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.math.read import split_name

_MAX_CHARACTERS = 300
_MAX_DEPTH = 10
_ALLOWED = re.compile(r"(?:[A-Za-z0-9\s+\-*/^=<>|(){}\[\].,!&\\]|(?<=log)_)+")
_WORDS = frozenset(
    (
        *("frac", "sqrt", "infty", "binom", "mod", "overline", "mathbb", "emptyset"),
        *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
        *("log", "exp", "cup", "cap", "leq", "geq", "neq", "begin", "end", "pmatrix", "bmatrix", "vmatrix", "matrix"),
        *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"),
        *("xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "varphi", "varepsilon", "vartheta"),
        *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega"),
    )
)
"""Runs of three or more letters that are mathematics; others are prose."""
_LARGE = re.compile(r"\d{21,}|\d{3,} ?!|[)}!\]] ?!|\*\*|\d{4,} ?\} ?\{ ?\d{3,}")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?) degrees")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_EXPONENT = re.compile(r" ?(?:-? ?[\w.]+|\\[a-z]+)")
_LARGE_EXPONENT = re.compile(r"\^|!|\d{3,}")


def is_bounded(text: str) -> bool:
    """Says whether a cleaned text is mathematics that algebra can deal with: no prose, no towers of powers."""
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
    """Says whether the exponent that `rest` begins with is itself a power, or has three digits."""
    rest = rest.lstrip()
    if rest[:1] in ("{", "("):
        end = closing_bracket(rest)
        return end is None or bool(_LARGE_EXPONENT.search(rest[:end])) or rest[end + 1 :].lstrip().startswith("^")
    match = _EXPONENT.match(rest)
    return match is None or bool(_LARGE_EXPONENT.search(match[0])) or rest[match.end() :].lstrip().startswith("^")


def closing_bracket(text: str) -> int | None:
    """Finds where the bracket closes that `text` begins with."""
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
    a, b = _in_radians(a), _in_radians(b)
    if not (is_bounded(a) and is_bounded(b)):
        return None
    (name, value), (other_name, other_value) = split_name(a), split_name(b)
    if value.count("=") == other_value.count("=") <= 1 and (name == other_name or not (name and other_name)):
        return value, other_value
    return (a, b) if a.count("=") == b.count("=") == 1 else None


def is_algebra(text: str) -> bool:
    """Says whether algebra may compare a cleaned answer with others."""
    return is_bounded(_in_radians(text)) and text.count("=") <= 1


def _in_radians(text: str) -> str:
    """Degrees under a trigonometric function, as algebra knows them."""
    return _DEGREES.sub(r"(\1*\\pi/180)", text) if _TRIGONOMETRIC.search(text) else text


class SymbolicJudge(Judge):
    """Passes a completion whose text equals the prompt's answer in math-verify's eyes. Runs inside a worker."""

    name = "math-verify"

    def load(self) -> None:
        """Imports math-verify, so that a worker's start pays for it and not the first call."""
        import math_verify  # type: ignore[import-untyped]  # noqa: F401

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion; both texts are cleaned and bounded."""
        equal = [symbolically_equal(prompt.answer, completion.text) for completion in completions]
        return [Verdict.scored(float(is_equal), passed=is_equal) for is_equal in equal]


def symbolically_equal(reference: str, candidate: str) -> bool:
    """Asks math-verify about two LaTeX texts, to 12 decimals where it calculates. May take for ever.

    Two equations are the same where the differences of their sides are, but for a factor: `2x - y = 7`, `y = 2x - 7`.
    """
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
    if reference.count("=") == candidate.count("=") == 1:
        return _same_equation(*map(_difference, (reference, candidate)))
    gold, guess = _parse(reference), _parse(candidate)
    return bool(gold and guess) and bool(math_verify.verify(gold, guess, float_rounding=12, timeout_seconds=None))


def _parse(text: str) -> list[Any]:
    import math_verify

    config = (math_verify.LatexExtractionConfig(),)
    return list(
        math_verify.parse(f"${text}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
    )


def _difference(equation: str) -> Any:
    """Left side minus right side, as sympy has it; None where one of them is no expression."""
    import sympy  # type: ignore[import-untyped]

    left, right = ([each for each in _parse(side) if isinstance(each, sympy.Expr)] for side in equation.split("="))
    return left[0] - right[0] if left and right else None


def _same_equation(a: Any, b: Any) -> bool:
    import sympy

    if a is None or b is None or not a.free_symbols or not b.free_symbols:
        return False
    ratio = sympy.simplify(a / b)
    return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero)
