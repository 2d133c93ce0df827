"""Which numbers of a page's results stand in the result file, and which don't.

A number counts as a result where it has a decimal point, a sign or a unit (`%`, `points`), and stands in the text after
its section's table. It is sourced where a number of the file, or of a sentence in its `notes`, reads the same when it
is rounded to as many digits, as it is or times 100.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SECTION = re.compile(
    r"^<!-- experiment: (\w+) -->\n.*?^<!-- end -->\n(.*?)(?=^## |^<!-- |\Z)", re.DOTALL | re.MULTILINE
)
NUMBER = re.compile(r"(?<![\w.])([-+]?)(\d*\.?\d+)(?![\w.]*\w)(\s*(?:%|points?\b))?")
NO_RESULT = re.compile(
    r"q\+ [\d.]+(?:(?:, [\d.]+)* and [\d.]+)?|W\s=\s[\d.]+|W of [\d., and]+|95 % interval"
    r"|`[^`]*`|\]\([^)]*\)|^\| the paper.*$",
    re.MULTILINE,
)
"""Settings, code, links and the papers' own numbers."""


def unsourced(page: str) -> list[tuple[str, str]]:
    """Experiment and number of each result in the text that its file does not hold."""
    found = []
    for name, text in SECTION.findall(page):
        path = RESULTS / f"{name}.json"
        values = set(_numbers(json.loads(path.read_text()))) if path.exists() else set()
        found += [(name, number) for number in _claims(text) if not _is_among(number, values)]
    return found


def _claims(text: str) -> Iterator[str]:
    """Numbers of the text that are results."""
    for sign, digits, unit in NUMBER.findall(NO_RESULT.sub(" ", text)):
        if sign or "." in digits or unit:
            yield digits


def _is_among(number: str, values: set[float]) -> bool:
    places = len(number.partition(".")[2])
    return any(
        f"{abs(value) * scale:.{places}f}" == f"{float(number):.{places}f}" for value in values for scale in (1, 100)
    )


def _numbers(value: Any) -> Iterator[float]:
    """All numbers of a result file."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key not in ("environment", "date", "settings", "seed", "seeds"):
                yield from _numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, str):
        yield from (float(number) for number in re.findall(r"\d+\.?\d*", value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)
