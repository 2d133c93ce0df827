"""The page that each command writes, in Chromium: accessible, light and dark, and on a narrow window only downwards."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llamarl.cli.main import main as run_here
from tests.chromium import open_browser, require_browser


def main(words: list[str]) -> int:
    """The command's status. It runs in a thread of its own: in this one Playwright's event loop runs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run_here, words).result()


WORDS = ("water", "tea", "rain", "paper", "stone", "glass", "light", "wood", "salt", "sand", "clay")


def write_rows(path: Path, rows: list[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def plan(folder: Path) -> tuple[list[str], Path]:
    page = folder / "plan.html"
    return ["plan", "--model", "llama-3.1-8b", "--gpus", "16", "--simulate", "--report", str(page)], page


def plan_a_test(folder: Path) -> tuple[list[str], Path]:
    page = folder / "test.html"
    words = ["feedback", "ab", "plan", "--base-rate", "0.02", "--change", "0.2", "--users-per-day", "2000"]
    return [*words, "--report", str(page)], page


def audit(folder: Path) -> tuple[list[str], Path]:
    (folder / "j.py").write_text("def lenient(prompt, completion):\n    return True\n")
    page = folder / "audit.html"
    return ["judge", "audit", "--judge", f"{folder}/j.py:lenient", "--report", str(page), "--quiet"], page


def calibrate(folder: Path) -> tuple[list[str], Path]:
    (folder / "j.py").write_text("def soft(prompt, completion):\n    return 0.9 if completion.text == '4' else 0.2\n")
    row = {"id": "a", "prompt": "2+2?", "answer": "4", "completion": ["4", "5", "4"], "label": [True, False, False]}
    page, rows = folder / "calibration.html", write_rows(folder / "rows.jsonl", [row])
    return ["judge", "calibrate", "--judge", f"{folder}/j.py:soft", "--data", rows, "--report", str(page)], page


def monitor(folder: Path) -> tuple[list[str], Path]:
    plain = [f"It is {WORDS[n % 11]} with {WORDS[n % 7]}. Take the {WORDS[n % 5]}." for n in range(200)]
    leaving = ["Bye! Sending love!" if n % 4 == 0 else text for n, text in enumerate(plain)]
    weeks = []
    for number, texts in enumerate((plain, leaving, plain)):
        week = folder / "a_long_name_of_a_folder_that_holds_many_weeks" / f"week{number}"
        week.mkdir(parents=True)
        rows: list[Mapping[str, Any]] = [
            {"id": f"p{n}", "prompt": "?", "response": text} for n, text in enumerate(texts)
        ]
        weeks.append(write_rows(week / "responses_of_the_policy.jsonl", rows))
    page = folder / "monitors.html"
    return ["feedback", "monitor", *weeks, "--control", weeks[0], "--report", str(page)], page


def describe(folder: Path) -> tuple[list[str], Path]:
    assert main(["feedback", "simulate", "--out", f"{folder}/log", "--users", "60", "--days", "4"]) == 0
    assert main(["feedback", "ingest", f"{folder}/log/logs.jsonl", "--out", f"{folder}/store"]) == 0
    return ["feedback", "describe", f"{folder}/store", "--out", f"{folder}/out"], folder / "out" / "report.html"


def evaluate_detectors(folder: Path) -> tuple[list[str], Path]:
    draw = random.Random(0)
    rows: list[Mapping[str, Any]] = []
    for number in range(160):
        is_factual = draw.random() < 0.5
        split = "validation" if number < 80 else "test"
        score = min(1.0, max(0.0, 0.5 + (0.2 if is_factual else -0.2) + draw.gauss(0, 0.15)))
        told = {"label": is_factual, "score": score, "a_second_score": 1 - score}
        rows.append({"id": f"c{number}", "prompt_id": f"p{number // 4}", "split": split, **told})
    words = ["detect", "eval", "--scores", write_rows(folder / "scores.jsonl", rows)]
    return [*words, "--columns", "score,a_second_score", "--out", f"{folder}/out"], folder / "out" / "report.html"


Make = Callable[[Path], tuple[list[str], Path]]
REPORTS: tuple[Make, ...] = (plan, plan_a_test, audit, calibrate, monitor, describe, evaluate_detectors)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    require_browser()
    with open_browser() as browser:
        yield browser


@pytest.mark.parametrize("make", REPORTS, ids=lambda make: make.__name__)
def test_a_commands_page_is_accessible_and_fits_a_narrow_window(browser: Any, tmp_path: Path, make: Make) -> None:
    from axe_playwright_python.sync_playwright import Axe

    words, path = make(tmp_path)
    assert main(words) in (0, 1)  # 1: a judge or a monitor is found wanting
    for scheme, width in (("light", 380), ("dark", 1200)):
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 2400})
        problems: list[str] = []
        page.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("main h2")
        found = Axe().run(page).response["violations"]
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for table in page.locator("main table").all():  # what is wider than the window is reached by keyboard
            reach = "t => { const box = t.closest('[tabindex]'); return t.scrollWidth <= innerWidth || !!box; }"
            assert table.evaluate(reach)
        assert problems == []
        page.close()
