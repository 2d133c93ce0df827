import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.report.charts import line_chart, resample, sparkline
from llamarl.report.text import format_bytes, format_number, format_seconds, name_files, one_line, visible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (math.nan, "–"), (math.inf, "∞"), (0, "0"), (0.0, "0"), (12345, "12,345"), (12345.6, "12,346"),
        (0.1234, "0.123"), (1.0, "1.00"), (99.95, "100.0"), (-2.5, "-2.50"), (0.00123, "0.00123"), (1.23e-6, "1.2e-6"),
    ],
)  # fmt: skip
def test_format_number(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0.0031, "3.10 ms"), (4.2, "4.2 s"), (30, "30 s"), (200, "3m 20s"), (7500, "2h 05m"),
        (273_600, "3d 04h"), (59.99, "60 s"),
    ],
)  # fmt: skip
def test_format_seconds(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_format_bytes() -> None:
    assert [format_bytes(count) for count in (None, 5, 812 * 2**20, 3 * 2**30)] == ["–", "5 B", "812 MiB", "3.00 GiB"]


@given(st.text())
def test_visible_text_cannot_steer_a_terminal(text: str) -> None:
    shown = visible(text)
    assert all(character == "\n" or 0x20 <= ord(character) < 0x7F or ord(character) > 0x9F for character in shown)
    shown.encode()
    assert "\n" not in one_line(text)


def test_visible_keeps_ordinary_text_of_any_language() -> None:
    text = "Grüße, 世界, नमस्ते, مرحبا 🎉"
    assert visible(text) == text
    assert visible("\x1b[2J\t\u202ex") == "␛[2J    \N{REPLACEMENT CHARACTER}x"


def test_one_line_cuts_with_an_ellipsis() -> None:
    assert one_line("ab\ncd") == "ab ⏎ cd"
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"


def test_sparkline_golden() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([1.0, None, 2.0], 9) == "▁ █"
    assert sparkline([3.0, 3.0], 9) == "▁▁"
    assert sparkline([0.1] * 7, 3) == "▁▁▁"  # equal but for rounding in the means
    assert sparkline([None, math.nan], 9) == sparkline([], 9) == ""


def test_resample_takes_bucket_means_and_lines_in_between() -> None:
    assert resample([1, 3, 5, 7], 2) == [2, 6]
    assert resample([1, None, 5, 7], 2) == [1, 6]
    assert resample([0, 4], 5, stretch=True) == [0, 1, 2, 3, 4]
    assert resample([0, None], 3, stretch=True) == [0, None, None]


def test_line_chart_golden() -> None:
    # 7 columns less gutter 3, space and axis: 2 braille cells = 4 dots wide; 2 rows = 8 dots high. The values 0, 1/3,
    # 2/3, 1 lie on dot rows 7, 5, 2, 0 from the top; a run of dots climbs to each: rows 7 | 6, 5 | 4, 3, 2 | 1, 0.
    # Upper cells: nothing; left rows 2, 3 (04 + 40) and right rows 0, 1 (08 + 10) = 5c.
    # Lower cells: left row 3 (40) and right rows 1, 2 (10 + 20) = 70; left row 0 = 01.
    assert line_chart([0.0, 1.0], 7, 2) == ["1.0 ┤\u2800\u285c", "0.0 ┤\u2870\u2801", "    └──", "     step 12"]


@given(
    values=st.lists(st.none() | st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=200),
    width=st.integers(24, 120),
    height=st.integers(1, 12),
)
def test_line_chart_always_fits(values: list[float | None], width: int, height: int) -> None:
    lines = line_chart(values, width, height)
    assert all(len(line) <= width for line in lines)
    if any(value is not None and math.isfinite(value) for value in values):
        assert len(lines) == height + 2
        dots = "".join(lines[:height])
        assert any(0x2800 < ord(character) < 0x2900 for character in dots)


def test_files_have_short_names_that_tell_them_apart() -> None:
    assert name_files(["/a/week0.json", "/a/week1.json"]) == ["week0", "week1"]
    assert name_files(["/a/x.json", "/a/x.csv"]) == ["x.json", "x.csv"]
    assert name_files(["/r/one/out.json", "/r/two/out.json"]) == ["one/out.json", "two/out.json"]
    assert name_files(["/a/x.json", "/a/y.json", "/a/x.json"]) == ["x", "y", "x (2)"]
    assert name_files(["x", "/x"]) == ["x", "/x"]
