import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Canvas

from llamarl.core.errors import ConfigError
from llamarl.report.page import Figure, Mark, MarkedText, Notes, Page, Section, Table, Verdict, render_page, write_page
from llamarl.report.plots import BLUE, GREY, render_svg

EVIL = '"><script>alert(1)</script></svg><img src=http://example.org/x onerror=alert(2)>&amp;\x1b[2J'


class Reader(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def draw(figure: Canvas) -> None:
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], "o-", color=BLUE, label=EVIL)
    axes.axhline(3, color=GREY)
    axes.set_title("$x$ by day")
    axes.legend()


def build(text: str = EVIL) -> Page:
    return Page(
        title=text,
        subtitle=text,
        footer=text,
        parts=[
            Verdict("bad", text, text),
            Section(text, [text, Table([text, "n"], [[text, text]], text), Notes([text])]),
            MarkedText([Mark(text), Mark(text, "bad", 0.5, text, text)]),
            Section("Figures", [Figure(render_svg(draw, 6, 3), text, text), Figure(render_svg(draw, 6, 3), text)]),
        ],
    )


# golden


def test_a_marked_text_keeps_its_lines_and_colours_pieces() -> None:
    pieces = [Mark("It is\nin "), Mark("Spain", "bad", 0.0, "0.12", "doubtful"), Mark("."), Mark("x", "good", 1.0)]
    html = render_page(Page("Title", [MarkedText(pieces)]))
    assert (
        '<div class="marked">It is\nin <mark class="bad" style="--tint: 12%" title="doubtful">Spain</mark>'
        '<sup>0.12</sup>.<mark class="good" style="--tint: 45%">x</mark></div>'
    ) in html


def test_a_page_says_what_its_parts_say() -> None:
    page = Page("Title", [Verdict("good", "Up", "by 3 %"), Section("Rates", ["Two arms.", Table(["arm"], [["a"]])])])
    read = Reader(render_page(page))
    assert [text for text in read.texts if text.strip()][-6:] == ["Up", "by 3 %", "Rates", "Two arms.", "arm", "a"]
    assert ("class", "verdict good") in read.attributes


# invariance


def test_other_peoples_text_is_only_text() -> None:
    read = Reader(render_page(build()))
    assert not {"script", "img", "iframe", "link", "object"} & set(read.tags)
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert any("<script>alert(1)</script>" in text for text in read.texts)
    assert "\x1b" not in "".join(read.texts)


def test_a_page_asks_nobody_for_anything() -> None:
    html = render_page(build("plain"))
    read = Reader(html)
    policies = [value for name, value in read.attributes if name == "content" and "src" in value]
    assert policies and policies[0].startswith("default-src 'none'; ")
    links = [value for name, value in read.attributes if name in ("href", "src", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    assert not re.findall(r"url\((?!#)", html)
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", "http://example.org/x"}  # the last in EVIL
    assert set(re.findall(r"https?://[^\"\s]+", html)) <= names


def test_figures_take_the_colours_of_the_page_and_equal_ones_are_equal() -> None:
    svg = render_svg(draw, 6, 3)
    assert svg == render_svg(draw, 6, 3)
    assert svg.startswith("<svg") and "var(--ink)" in svg and "var(--blue)" in svg
    assert not re.findall(r"#(333333|8a8a8a|ffffff)\b", svg, re.IGNORECASE)
    assert "x$ by day" in svg  # text, not outlines


# rejects


@pytest.mark.parametrize("name", ["data.jsonl", "report", "report.html.parquet"])
def test_a_name_that_is_no_page_is_left_alone(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("somebody's data")
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        write_page(path, build())
    assert path.read_text() == "somebody's data"


def test_a_page_replaces_the_one_before_in_one_step(tmp_path: Path) -> None:
    path = write_page(tmp_path / "new" / "report.html", Page("one", []))
    assert write_page(path, Page("two", [])).read_text().count("<title>two</title>") == 1
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
