"""A report of one page: HTML that opens by double click, asks nobody for anything, and is legible light and dark.

    page = Page(
        title="A/B test of three policies",
        subtitle="1 to 14 March 2025",
        parts=[
            Verdict("good", "warm raised the love rate", "by 9.7 %, between 4.1 % and 15.6 %."),
            Section("Love rate", ["Reactions by messages shown.", Table(["arm", "rate"], [["warm", "2.1 %"]])]),
            Section("By day", [Figure(render_svg(draw, 9, 3.2), "The love rate by day", "Both lines rise.")]),
        ],
    )
    write_page("report.html", page)

All text is escaped: names of arms, models and columns are anybody's. The page allows itself no script and no request
(its content policy), so that it can be mailed, archived and opened years later.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from llamarl.core.errors import ConfigError
from llamarl.report.files import write_text
from llamarl.report.text import visible

SUFFIXES = (".html", ".htm")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""No script, no frame, no request; only this file's own styles, and images that it holds."""

MIN_TINT, MAX_TINT = 12, 45
"""Percent of colour behind a marked piece of text."""

Tone = Literal["good", "bad", "unsure"]


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
class Figure:
    """A drawing of `report.plots.render_svg`."""

    svg: str
    """Markup, not escaped: only what `render_svg` returns."""
    title: str
    """A name of what is drawn, also for those who don't see it."""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Notes:
    """A list of sentences."""

    items: Sequence[str]


Part = str | Verdict | Table | MarkedText | Figure | Notes
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
    footer: str = ""


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
    body = "\n".join(_render(part) for part in page.parts)
    subtitle = f'<p class="subtitle">{_text(page.subtitle)}</p>' if page.subtitle else ""
    footer = f"<footer>{_text(page.footer)}</footer>" if page.footer else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{_text(page.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header><h1>{_text(page.title)}</h1>{subtitle}</header>
{body}
{footer}
</main>
</body>
</html>
"""


def _text(text: str) -> str:
    return escape(visible(text))


def _render(part: Part | Section) -> str:
    if isinstance(part, Section):
        inner = "\n".join(_render(each) for each in part.parts)
        return f"<section>\n<h2>{_text(part.title)}</h2>\n{inner}\n</section>"
    if isinstance(part, Verdict):
        text = f"<p>{_text(part.text)}</p>" if part.text else ""
        return f'<div class="verdict {part.tone}"><strong>{_text(part.title)}</strong>{text}</div>'
    if isinstance(part, Table):
        return "\n".join(_render_table(part))
    if isinstance(part, MarkedText):
        return f'<div class="marked">{"".join(map(_render_mark, part.pieces))}</div>'
    if isinstance(part, Figure):
        caption = f"<figcaption>{_text(part.caption)}</figcaption>" if part.caption else ""
        return f'<figure role="img" aria-label="{_text(part.title)}">{part.svg}{caption}</figure>'
    if isinstance(part, Notes):
        return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in part.items) + "</ul>"
    return f"<p>{_text(part)}</p>"


def _render_mark(mark: Mark) -> str:
    note = f"<sup>{_text(mark.note)}</sup>" if mark.note else ""
    if mark.tone is None:
        return _text(mark.text) + note
    title = f' title="{_text(mark.title)}"' if mark.title else ""
    tint = f' style="--tint: {round(MIN_TINT + (MAX_TINT - MIN_TINT) * mark.strength)}%"'
    return f'<mark class="{mark.tone}"{tint}{title}>{_text(mark.text)}</mark>{note}'


def _render_table(table: Table) -> Iterator[str]:
    yield f'<div class="table"><table{" class=prose" if table.is_prose else ""}>'
    if table.caption:
        yield f"<caption>{_text(table.caption)}</caption>"
    yield "<thead><tr>" + "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns) + "</tr></thead>"
    yield "<tbody>"
    for first, *others in table.rows:
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in others)
        yield f'<tr><th scope="row">{_text(first)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #222222; --muted: #666666; --line: #e2e2e2;
  --good: #00734f; --bad: #b34400; --unsure: #7a5a00; --tint: #f6f7f9; --blue: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14161a; --ink: #e8e8e8; --muted: #a0a4ab; --line: #343941;
    --good: #4cc9a0; --bad: #ff9a5c; --unsure: #e6c25a; --tint: #1d2127; --blue: #4aa8e0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
.subtitle, figcaption, caption, footer { color: var(--muted); font-size: .9rem; }
.verdict { margin: 1rem 0; padding: .7rem 1rem; background: var(--tint); border-left: 5px solid; border-radius: 4px; }
.verdict strong { font-size: 1.1rem; }
.verdict p { color: var(--ink); margin: .2rem 0 0; }
.good { border-color: var(--good); } .good strong { color: var(--good); }
.bad { border-color: var(--bad); } .bad strong { color: var(--bad); }
.unsure { border-color: var(--unsure); } .unsure strong { color: var(--unsure); }
.table { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child { text-align: left; }
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 600; }
tbody th, td { white-space: nowrap; }
.prose th, .prose td { text-align: left; white-space: normal; }
.prose tbody td:not(:last-child), .prose thead th { white-space: nowrap; }
.prose tbody th { font-weight: 400; }
.marked { white-space: pre-wrap; max-width: 46rem; margin: .8rem 0; padding: .7rem 1rem; background: var(--tint);
  border-radius: 4px; line-height: 1.75; }
mark { color: inherit; background: color-mix(in srgb, var(--tone) var(--tint), transparent); border-radius: 3px;
  padding: .1em .15em; border-bottom: 2px solid transparent; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; }
mark.good { --tone: var(--good); border-color: transparent; }
mark.bad { --tone: var(--bad); border-bottom: 2px solid var(--bad); }
mark.unsure { --tone: var(--unsure); border-bottom: 2px dotted var(--unsure); }
sup { color: var(--muted); font-size: .72rem; font-variant-numeric: tabular-nums; margin-left: .15em; }
figure { margin: .8rem 0; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 32rem; height: auto; }
figcaption { margin-top: .3rem; max-width: 46rem; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .8rem; }
@media print { main { max-width: none; } section { break-inside: avoid; } }
"""
