"""Finds the program that a text gives. One extractor for training and evaluation.

A program is a fenced block of lines: three or more backticks with `python`, `py` or `python3` behind them, or with
nothing; then code; then a line of at least as many backticks alone. Of the complete blocks marked as Python the last
(or first) counts; where there is none, that of the unmarked ones. A block that is never closed is no program: the
answer was cut off.
"""

import re
from typing import Literal

Which = Literal["last", "first"]

MAX_CODE_CHARACTERS = 100_000
"""Something longer is no program."""

_FENCE = re.compile(r"^[ ]{0,3}(`{3,})([^`\n]*)$", re.MULTILINE)
_PYTHON = frozenset({"python", "py", "python3"})


def extract_code(text: str, which: Which = "last") -> str | None:
    """The program that `text` gives, or None."""
    marked: list[str] = []
    unmarked: list[str] = []
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif len(fence[1]) >= len(opening[1]) and not fence[2].strip():
            language = opening[2].strip().lower()
            blocks = marked if language in _PYTHON else unmarked if not language else None
            code = text[opening.end() + 1 : fence.start()]
            if blocks is not None and code.strip() and len(code) <= MAX_CODE_CHARACTERS:
                blocks.append(code)
            opening = None
    blocks = marked or unmarked
    return blocks[-1 if which == "last" else 0] if blocks else None
