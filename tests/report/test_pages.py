import re
from pathlib import Path

import pytest

from llamarl.core.errors import ConfigError
from llamarl.report.figures import Curve, Dot, LineChart, Row, RowChart
from llamarl.report.page import (
    Mark,
    MarkedText,
    Notes,
    Page,
    Section,
    Table,
    Verdict,
    page_values,
    parts_of,
    render_page,
    write_page,
)
from tests.pages import PageReader

EVIL = '"></script><script>alert(1)</script><img src=http://example.org/x onerror=alert(2)>&amp;\x1b[2J'


def build(text: str = EVIL) -> Page:
    curves = LineChart(text, [Curve(text, [(0, 1.0)])], x=text, x_names=[text], y=text, caption=text)
    rows = RowChart(text, [Row(text, [Dot(0.5, text=text, series=text)])], series=[text], caption=text)
    return Page(
        title=text,
        subtitle=text,
        footer=text,
        parts=[
            Verdict("bad", text, text),
            Section(text, [text, Table([text, "n"], [[text, text]], text), Notes([text])]),
            MarkedText([Mark(text), Mark(text, "bad", 0.5, text, text)]),
            Section("Figures", [curves, rows]),
        ],
    )


# golden


def test_curves_share_their_places_and_a_step_keeps_both_of_its_ends() -> None:
    chart = LineChart(
        "t", [Curve("a", [(0, 0.0), (1, 0.5), (1, 0.9)], [(0, 1), (0, 1), (0, 1)]), Curve("b", [(0.5, 2.0)])], "x"
    )
    table = chart.as_dict({"a": 0, "b": 1})["table"]
    assert table["steps"] == [0, 0.5, 1, 1]
    assert table["values"] == {"0": [0.0, None, 0.5, 0.9], "1": [None, 2.0, None, None]}
    assert table["band"] == {"0": [[0, None, 0, 0], [1, None, 1, 1]]}


def test_a_name_has_one_colour_on_a_page_and_lines_to_compare_with_have_none() -> None:
    curves = [Curve("warm", [(0, 1)]), Curve("warm, chosen", [(0, 1)], style="dots", colour="warm")]
    chance = Curve("by chance", [(0, 0), (1, 1)], style="dashed")
    rows = RowChart("r", [Row("x", [Dot(1.0, series="warm"), Dot(2.0, series="cool")])], series=["warm", "cool"])
    page = page_values(Page("t", [LineChart("l", [*curves, chance], "x"), Section("s", [rows])]))
    lines, section = page["parts"]
    warm, chosen, dashed = (curve["colour"] for curve in lines["curves"])
    assert warm == chosen and dashed is None
    series = {each["label"]: each["colour"] for each in section["parts"][0]["series"]}
    assert series["warm"] == warm != series["cool"]


def test_tables_and_texts_of_a_terminal_become_parts() -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title="official mode")
    shown.add_column("of\nwhat")
    shown.add_column("n")
    shown.add_row("a ", "1")
    assert list(parts_of([shown, Text("said", style="dim"), Text()])) == [
        Table(["of what", "n"], [("a", "1")], "official mode"),
        "said",
        "",
    ]


def test_a_value_without_bounds_keeps_its_sides_and_infinity_is_no_bound() -> None:
    (row,) = RowChart("t", [Row("a", [Dot(2.0, (1.0, float("inf")))])]).as_dict({"mean": 0})["rows"]
    assert (row["dots"][0]["low"], row["dots"][0]["high"]) == (1.0, None)


# invariance


def test_other_peoples_text_is_only_text() -> None:
    html = render_page(build())
    assert "<script>alert" not in html and "<img" not in html and "\x1b" not in html
    assert PageReader(html).texts.count(EVIL) == len(re.findall("alert\\(1\\)", html)) - 1  # the title of the window


def test_a_page_asks_nobody_for_anything() -> None:
    html = render_page(build("plain"))
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert len(policy) == 1 and policy[0].startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy[0] and "unsafe" not in policy[0]
    assert not re.findall(r"<(?:link|img|iframe|object)\b|<script[^>]*\bsrc=|url\(|@import", html)


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
