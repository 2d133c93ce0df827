"""Comparison of a solution's output with the wanted one. Runs outside of the sandbox, on plain data only."""

import math
import re
from typing import Any

from llamarl.judges.code.unit_tests import Comparison

_DECIMAL = re.compile(r"[+-]?(?:\d{1,30}\.\d{0,30}|\.\d{1,30}|\d{1,30})(?:[eE][+-]?\d{1,3})?")


def same_output(actual: str, expected: str, tolerance: float = 1e-6) -> bool:
    """Says whether two standard outputs agree.

    Space at the ends of lines and empty lines at the end do not count. Where a line still differs, its words must agree
    one by one; a word that is wanted with a decimal point may differ by `tolerance`, absolute or relative.
    """
    if actual == expected:
        return True
    got, wanted = _lines(actual), _lines(expected)
    return len(got) == len(wanted) and all(_same_line(a, b, tolerance) for a, b in zip(got, wanted, strict=True))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_line(actual: str, expected: str, tolerance: float) -> bool:
    if actual == expected:
        return True
    got, wanted = actual.split(), expected.split()
    return len(got) == len(wanted) and all(_same_word(a, b, tolerance) for a, b in zip(got, wanted, strict=True))


def _same_word(actual: str, expected: str, tolerance: float) -> bool:
    if actual == expected:
        return True
    if "." not in expected or not _DECIMAL.fullmatch(expected) or not _DECIMAL.fullmatch(actual):
        return False
    # Relative for large numbers, whose last printed digits differ; absolute near 0, where nothing is relatively close.
    return math.isclose(float(actual), float(expected), rel_tol=tolerance, abs_tol=tolerance)


def same_value(actual: Any, expected: Any, comparison: Comparison) -> bool:
    """Says whether a call's value is the wanted one.

    Args:
        actual: plain data.
        expected: plain data.
        comparison: `equal` is Python's `==`; `is` also wants the type; `true` and `false` want the truth value; `json`
            is `==` between what both would be as JSON (tuples are lists, keys are texts), or with the one element of a
            wanted list.

    What cannot be compared is not the wanted value: a signalling NaN raises, and so does a text of too many digits.
    """
    try:
        match comparison:
            case "equal":
                return bool(actual == expected)
            case "is":
                return actual is expected
            case "true" | "false":
                return bool(actual) is expected
        got, wanted = _as_json(actual), _as_json(expected)
        return bool(got == wanted or (isinstance(wanted, list) and len(wanted) == 1 and got == wanted[0]))
    except (ArithmeticError, ValueError, TypeError, RecursionError):
        return False


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return value
