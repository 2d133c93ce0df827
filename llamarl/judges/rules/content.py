"""Rules on what a reply must hold and how it is laid out: placeholders, bullets, sections, titles, JSON."""

import json
import re
from typing import Any

from llamarl.judges.rules.base import Arguments, Rule
from llamarl.judges.rules.folding import as_read, fold
from llamarl.judges.rules.patterns import Pattern, compile_pattern
from llamarl.judges.rules.text import Text

_HIGHLIGHT = re.compile(r"\*[^\n*]*\*")
_STRONG_HIGHLIGHT = re.compile(r"\*\*([^\n*]*)\*\*")
_BULLET = re.compile(r"[*-]\s")
_RULE = re.compile(r"([*-])(?:\s*\1){2,}")
_POSTSCRIPTS = {"P.P.S": re.compile(r"p\.\s?p\.\s?s"), "P.S.": re.compile(r"p\.\s?s\.")}
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_OPENING_FENCE = re.compile(r"```(?:json)?(?![a-z])", re.IGNORECASE)
_FENCES = ("```json", "```Json", "```JSON", "```")


class NumberOfPlaceholders(Rule):
    """The reply has at least so many placeholders such as `[name]`."""

    id = "detectable_content:number_placeholders"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.num_placeholders = arguments.count("num_placeholders")

    def describe(self) -> str:
        """One sentence."""
        return f"Write at least {self.num_placeholders} placeholders in square brackets, such as [name]."

    def check_official(self, text: Text) -> bool:
        """Brackets on one line, empty ones too."""
        return sum(len(_brackets(line)) for line in text.raw.split("\n")) >= self.num_placeholders

    def check_fixed(self, text: Text) -> bool:
        """Neither the text of a link `[text](address)` nor an empty pair is a placeholder."""
        num_placeholders = sum(
            _is_placeholder(line, *span) for line in text.raw.split("\n") for span in _brackets(line)
        )
        return num_placeholders >= self.num_placeholders


class Postscript(Rule):
    """A postscript, known by its marker."""

    id = "detectable_content:postscript"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.marker = arguments.text("postscript_marker", can_be_blank=self.mode != "fixed").strip()
        self._folded = fold(self.marker)
        self._pattern: Pattern | None = None
        if self.marker not in _POSTSCRIPTS and self.mode != "fixed":
            self._pattern = compile_pattern(self.id, "postscript_marker", self.marker.lower(), ignore_case=False)

    def describe(self) -> str:
        """One sentence."""
        return f"End with a postscript that starts with {self.marker!r}."

    def check_official(self, text: Text) -> bool:
        """The marker anywhere, in either case; one blank may stand between the letters of P.S. and P.P.S."""
        if self.marker in _POSTSCRIPTS:
            return _POSTSCRIPTS[self.marker].search(text.lower) is not None
        return self._pattern is not None and self._pattern.is_in(text.lower)

    def check_fixed(self, text: Text) -> bool:
        """The marker as it is written; one blank may stand between the letters of P.S. and P.P.S."""
        if self.marker in _POSTSCRIPTS:
            return _POSTSCRIPTS[self.marker].search(text.folded) is not None
        return self._folded in text.folded


class NumberOfBullets(Rule):
    """An exact number of Markdown bullets."""

    id = "detectable_format:number_bullet_lists"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.num_bullets = arguments.count("num_bullets")

    def describe(self) -> str:
        """One sentence."""
        return f"Write exactly {self.num_bullets} bullet points, starting with * or -."

    def check_official(self, text: Text) -> bool:
        """Lines that start with `-`, rules `---` included, or with one `*`, emphasis included."""
        lines = [line.lstrip() for line in text.raw.split("\n")]
        return sum(line.startswith("-") for line in lines) + _count_stars(lines) == self.num_bullets

    def check_fixed(self, text: Text) -> bool:
        """Lines whose `*` or `-` is followed by a blank, but no rules such as `---` or `* * *`."""
        lines = [line.strip() for line in text.raw.split("\n")]
        return sum(bool(_BULLET.match(line)) and not _RULE.fullmatch(line) for line in lines) == self.num_bullets


class ConstrainedResponse(Rule):
    """One of three fixed answers."""

    id = "detectable_format:constrained_response"

    def describe(self) -> str:
        """One sentence."""
        return "Answer with one of: " + " ".join(_ANSWERS)

    def check_official(self, text: Text) -> bool:
        """The answer anywhere in the text."""
        return any(answer in text.raw for answer in _ANSWERS)


class NumberOfHighlights(Rule):
    """The reply has at least so many highlighted passages."""

    id = "detectable_format:number_highlighted_sections"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.num_highlights = arguments.count("num_highlights")

    def describe(self) -> str:
        """One sentence."""
        return f"Highlight at least {self.num_highlights} passages, as in *this*."

    def check_official(self, text: Text) -> bool:
        """Spans between stars on one line that are not blank; single and double stars are counted apart."""
        single = sum(bool(span.strip("*").strip()) for span in _HIGHLIGHT.findall(text.raw))
        double = sum(bool(span.strip()) for span in _STRONG_HIGHLIGHT.findall(text.raw))
        return single + double >= self.num_highlights


class MultipleSections(Rule):
    """The reply has at least so many numbered sections."""

    id = "detectable_format:multiple_sections"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.splitter = arguments.text("section_spliter", can_be_blank=self.mode != "fixed").strip()
        self.num_sections = arguments.count("num_sections")
        keyword = self.splitter if self.mode != "fixed" else re.escape(as_read(self.splitter))
        self._pattern = compile_pattern(
            self.id, "section_spliter", keyword, before=r"\s?", after=r"\s?\d+\s?", ignore_case=False
        )

    def describe(self) -> str:
        """One sentence."""
        return f"Write at least {self.num_sections} sections, starting with {self.splitter} 1, {self.splitter} 2, ..."

    def check_official(self, text: Text) -> bool:
        """Counts the splitter before a number; groups in it, as a regular expression, count as further sections."""
        return self._pattern.count(text.raw) * (1 + self._pattern.regex.groups) >= self.num_sections


class JsonFormat(Rule):
    """Nothing but one JSON value, which may stand in a code fence."""

    id = "detectable_format:json_format"

    def describe(self) -> str:
        """One sentence."""
        return "Write the whole answer as JSON."

    def check_official(self, text: Text) -> bool:
        """Any JSON value."""
        body = text.raw.strip()
        for fence in _FENCES:
            body = body.removeprefix(fence)
        return _is_json(body.removesuffix("```").strip())

    def check_fixed(self, text: Text) -> bool:
        """Any JSON value; neither NaN nor infinities, which JSON has none of; a fence must be closed."""
        body = text.raw.strip()
        if fence := _OPENING_FENCE.match(body):
            if not body.endswith("```") or len(body) < fence.end() + 3:
                return False
            body = body[fence.end() : -3].strip()
        return _is_json(body, parse_constant=_refuse, parse_int=str)


def _is_json(text: str, **options: Any) -> bool:
    try:
        json.loads(text, **options)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class Title(Rule):
    """A title in double angular brackets."""

    id = "detectable_format:title"

    def describe(self) -> str:
        """One sentence."""
        return "Give a title in double angular brackets, such as <<title>>."

    def check_official(self, text: Text) -> bool:
        """Text from the first `<<` to the last `>>` of a line, with something between them."""
        return any(_has_title(line) for line in text.raw.split("\n"))


def _brackets(line: str) -> list[tuple[int, int]]:
    """Finds where a `[` and the next `]` after it stand."""
    spans = []
    start = line.find("[")
    while start >= 0 and (end := line.find("]", start)) >= 0:
        spans.append((start, end))
        start = line.find("[", end)
    return spans


def _is_placeholder(line: str, start: int, end: int) -> bool:
    """Says whether the brackets hold something and are no link `[text](address)`."""
    return bool(line[start + 1 : end].strip()) and line[end + 1 : end + 2] != "("


def _count_stars(lines: list[str]) -> int:
    """Lines that start with one star. A line that is a star alone takes the next line with it, whatever that holds."""
    count, index = 0, 0
    while index < len(lines):
        line = lines[index]
        is_lone = line == "*" and index + 1 < len(lines)
        count += is_lone or (line[:1] == "*" and line[1:2] not in ("", "*"))
        index += 1 + is_lone
    return count


def _has_title(line: str) -> bool:
    start, end = line.find("<<"), line.rfind(">>")
    return 0 <= start < end - 2 and bool(line[start : end + 2].lstrip("<").rstrip(">").strip())
