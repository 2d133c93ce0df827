"""Reports as people meet them: opened in Chromium, light and dark, narrow, by keyboard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamarl.report.figures import Curve, Dot, LineChart, Row, RowChart
from llamarl.report.page import Mark, MarkedText, Notes, Page, Section, Table, Verdict, write_page
from tests.chromium import open_browser, require_browser

HOSTILE = "</script><script>window.stolen=1</script><img src=x onerror='window.stolen=1'>\u202eevil\x1b[2J"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    require_browser()
    with open_browser() as browser:
        yield browser


def write_report(path: Path, text: str = "cool") -> Path:
    days = [f"2026-03-{day:02}" for day in range(1, 15)]
    course = Curve(text, [(place, place / 100) for place in range(14)], [(-0.1, 0.2)] * 14, style="marked")
    scatter = [Curve("all", [(0.1, 0.2), (0.4, 0.9), (1.0, 1.0)]), Curve("chance", [(0, 0), (1, 1)], style="dashed")]
    monitor = LineChart(
        "Monitor",
        [Curve("times", [(0, 0.0), (1, 3.0)], [(0.0, 0.5), (1.0, 90.0)])],
        x="",
        x_names=["week1", "week2"],
        unit="×",
        limits=(0.5, 4.0),
        is_doubling=True,
        y_marks={1.0: "control", 2.0: "stops"},
    )
    dots = [
        Dot(0.05, (-0.1, 0.2), "+5%", "first", limit=-0.05),
        Dot(0.1, (-0.3, None), "+10%", "second", is_open=True),
    ]
    rows = [["warm", "1,204", "9.7%", "held"], [text, "87", "–", "open"], ["base", "31,003", "-4.1%", "held"]]
    marks = [
        Mark("It is\nin "),
        Mark("Spain", "bad", 1.0, "0.12", text),
        Mark(", on Mars", "unsure"),
        Mark(".", "good"),
    ]
    return write_page(
        path,
        Page(
            "A test",
            [
                Verdict("good", f"{text} is better", text),
                Verdict("unsure", "perhaps"),
                Section("Rates", [Table(["arm", "messages", "change", "says"], rows, "by arm"), Notes([text])]),
                Section(
                    "Figures",
                    [
                        RowChart(
                            "Change",
                            [Row(text, dots), Row("all", dots[:1], is_total=True)],
                            unit="%",
                            marks=[0.0, 0.1],
                            is_signed=True,
                            series=["first", "second"],
                        ),
                        LineChart("Day by day", [course], x="", x_names=days, unit="%", y_marks=[0.0]),
                        LineChart("ROC", scatter, x="false", limits=(0, 1)),
                        monitor,
                    ],
                ),
                MarkedText(marks),
            ],
            subtitle=text,
        ),
    )


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    pages = []

    def open_page(path: Path, **options: Any) -> Any:
        page = browser.new_page(**options)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url == path.as_uri() else problems.append(request.url))
        pages.append((page, problems))
        page.goto(path.as_uri())
        page.wait_for_selector("main h2")
        return page

    yield open_page
    for page, problems in pages:
        page.close()
        assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_a_report_is_accessible_and_scrolls_only_downwards(
    opened: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(
        write_report(tmp_path / "report.html"), color_scheme=scheme, viewport={"width": width, "height": 2400}
    )
    page.wait_for_selector(".plot .u-over")
    found = Axe().run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_click_on_a_column_sorts_by_its_numbers(opened: Any, tmp_path: Path) -> None:
    page = opened(write_report(tmp_path / "report.html"))
    table = page.locator("table", has_text="by arm")
    first = lambda: table.locator("tbody th").all_inner_texts()  # noqa: E731
    assert first() == ["warm", "cool", "base"]
    table.get_by_role("button", name="messages").click()
    assert first() == ["cool", "warm", "base"]
    page.keyboard.press("Enter")  # the button keeps the focus
    assert first() == ["base", "warm", "cool"]
    assert table.locator("thead th[aria-sort=descending]").inner_text().startswith("messages")
    table.get_by_role("button", name="change").click()
    assert first() == ["base", "warm", "cool"]  # a dash stands last, whatever the direction
    table.get_by_role("button", name="change").click()
    assert first() == ["warm", "base", "cool"]
    table.get_by_role("button", name="arm").click()
    assert first() == ["base", "cool", "warm"]


def test_charts_are_read_by_keyboard_and_dots_lie_where_their_values_are(opened: Any, tmp_path: Path) -> None:
    page = opened(write_report(tmp_path / "report.html"), viewport={"width": 1280, "height": 2400})
    page.wait_for_selector(".plot .u-over")
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".readout").first.inner_text() == "2026-03-13\ncool 12% (-10% to 20%)"
    place = lambda element: (box := element.bounding_box())["x"] + box["width"] / 2  # noqa: E731
    zero, tenth = (place(page.locator(".rows tbody .track").first.locator(".mark").nth(index)) for index in (0, 1))
    five = place(page.locator(".rows .disc").first)
    assert five == pytest.approx((zero + tenth) / 2, abs=1.5)
    assert page.locator(".rows .disc.open").count() == 1
    page.locator(".plot").last.focus()  # an axis of doublings has no place for 0, and still says it
    page.keyboard.press("Home")
    assert page.locator(".readout").last.inner_text() == "week1\ntimes 0 (0 to 0.500)"


def test_hostile_text_is_shown_and_never_runs(opened: Any, tmp_path: Path) -> None:
    page = opened(write_report(tmp_path / "report.html", HOSTILE))
    shown = page.locator("main").inner_text()
    assert "</script><script>" in shown and "‹U+202E›" in shown and "␛[2J" in shown
    assert page.evaluate("window.stolen") is None and page.locator("#page img").count() == 0
