"""The contents of a page's file, for tests of reports."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class PageReader:
    """The values that a page's script draws.

    Args:
        html: the document.
    """

    def __init__(self, html: str) -> None:
        found = re.findall(r'<script type="application/json" id="values">(.*?)</script>', html, re.DOTALL)
        assert len(found) == 1 and html.count("</script>") == 2  # the values, and our script
        self.values: dict[str, Any] = json.loads(found[0])

    @property
    def texts(self) -> list[str]:
        """Every text on the page."""
        return list(_texts(self.values))

    def parts(self, kind: str) -> list[dict[str, Any]]:
        """The parts of a kind, in order, those of sections among them."""
        return [part for part in _parts(self.values["parts"]) if part["kind"] == kind]


def read_page(path: Path) -> PageReader:
    """The page in a file."""
    return PageReader(path.read_text(encoding="utf-8"))


def _parts(parts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield part
        yield from _parts(part.get("parts", []))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
