"""A report of one page: HTML that opens by double click, asks nobody for anything, and is legible light and dark.

    page = Page(
        title="A/B test of three policies",
        subtitle="1 to 14 March 2025",
        parts=[
            Verdict("good", "warm raised the love rate", "by 9.7%, between 4.1% and 15.6%."),
            Section("Love rate", ["Reactions by messages shown.", Table(["arm", "rate"], [["warm", "2.1%"]])]),
            Section("By day", [LineChart("Love rate", [Curve("warm", [(0, 0.02), (1, 0.021)])], x="day", unit="%")]),
        ],
    )
    write_page("report.html", page)

The parts are those of the run page (`report.site`): its style sheet, its charts, its tables that sort by a click on a
column. All text stays text: names of arms, models and columns are anybody's. The page makes no request (its content
policy), so that it can be mailed, archived and opened years later.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from llamarl.core.errors import ConfigError
from llamarl.report.colours import colour_indices
from llamarl.report.figures import Figure, LineChart, RowChart, Tone
from llamarl.report.files import write_text
from llamarl.report.site.shell import render_document

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gist for a reader, first of all."""

    tone: Tone
    title: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts. The first column stands left, the others, numbers mostly, right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    is_prose: bool = False
    """Cells are sentences: all stand left, and long ones are broken."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A piece of a text."""

    text: str
    tone: Tone | None = None
    """None: not marked."""
    strength: float = 1.0
    """Strength of the colour from 0, hardly seen, to 1."""
    note: str = ""
    """A word in small print behind the piece."""
    title: str = ""
    """Shown where a pointer rests on the piece."""


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A text with its line breaks, pieces of it coloured."""

    pieces: Sequence[Mark]


@dataclass(frozen=True, slots=True)
class Notes:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Who worked when."""

    values: Mapping[str, Any]
    """Of `site.overview.describe_timeline`."""


Part = str | Verdict | Table | MarkedText | Figure | Notes | Timeline
"""A text is a paragraph."""


@dataclass(frozen=True, slots=True)
class Section:
    """Parts under a heading."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Page:
    """A report."""

    title: str
    parts: Sequence[Part | Section]
    subtitle: str = ""
    subtitle_note: str = ""
    """Shown where a pointer rests on the subtitle: the whole paths of the files that it names."""
    footer: str = ""
    footer_note: str = ""
    """Shown where a pointer rests on the footer: the whole path of the file that it names."""


def check_page_path(path: str | Path) -> Path:
    """The path of a page. Raises `ConfigError` for a name that is none, before a report replaces somebody's data."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"report: {path}: a report is a page; give a name that ends in .html")
    if path.is_dir():
        raise ConfigError(f"report: {path} is a directory; give the name of a file")
    return path


def write_page(path: str | Path, page: Page) -> Path:
    """Writes a page in one step: a crash leaves the old file or the new one. Returns the path."""
    path = check_page_path(path)
    write_text(path, render_page(page))
    return path


def render_page(page: Page) -> str:
    """The HTML document of a page."""
    return render_document(page.title, page_values(page))


def page_values(page: Page) -> dict[str, Any]:
    """The values that the page's script draws. A name has one colour in all figures of the page."""
    colours = colour_indices(name for figure in _figures(page.parts) for name in figure.names())
    return {
        "mode": "report",
        "title": page.title,
        "subtitle": page.subtitle,
        "subtitle_note": page.subtitle_note,
        "footer": page.footer,
        "footer_note": page.footer_note,
        "parts": [_describe(part, colours) for part in page.parts],
    }


def _figures(parts: Sequence[Part | Section]) -> Iterator[Figure]:
    for part in parts:
        if isinstance(part, LineChart | RowChart):
            yield part
        elif isinstance(part, Section):
            yield from _figures(part.parts)


def _describe(part: Part | Section, colours: Mapping[str, int]) -> dict[str, Any]:
    if isinstance(part, Section):
        return {"kind": "section", "title": part.title, "parts": [_describe(each, colours) for each in part.parts]}
    if isinstance(part, LineChart | RowChart):
        return part.as_dict(colours)
    if isinstance(part, str):
        return {"kind": "text", "text": part}
    return {"kind": _KINDS[type(part)], **asdict(part)}


_KINDS = {Verdict: "verdict", Table: "table", MarkedText: "marked", Notes: "notes", Timeline: "timeline"}


def parts_of(shown: Iterable[Any]) -> Iterator[Part]:
    """Yields the page's form of the tables and texts of a terminal report (rich); an empty text stays one."""
    for part in shown:
        if isinstance(part, RichTable):
            columns = [[str(cell).strip() for cell in column.cells] for column in part.columns]
            heads = [" ".join(str(column.header).split()) for column in part.columns]
            yield Table(heads, list(zip(*columns, strict=True)), str(part.title or ""))
        else:
            yield str(part)
