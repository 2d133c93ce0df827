"""The page as people meet it: opened in Chromium, by pointer and by keyboard, light and dark, wide and narrow."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamarl.report.files import encode
from llamarl.report.site.document import write_run_page
from llamarl.report.site.rollouts import Filter, RolloutIndex
from llamarl.report.site.server import Site, SiteServer
from tests.chromium import open_browser, require_browser

HOSTILE = "</script><script>window.stolen=1</script><img src=x onerror='window.stolen=1'>\u202eevil\x1b[2J\ud83d"
VIEWS = ("overview", "curves", "rollouts", "timeline", "setup")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    require_browser()
    with open_browser() as browser:
        yield browser


def write_run(run_dir: Path, steps: int = 40, *, seed: int = 0, text: str = "moon tree") -> Path:
    """A run of two tasks with a constraint, evaluations, an alarm, a restart and token detail."""
    judges = [{"function": "format"}, {"function": "x.py:polite", "role": "constraint"}]
    tasks = [{"name": name, "judges": judges, "algorithm": {"type": "crpg"}} for name in ("short", "long")]
    run_dir.mkdir(parents=True)
    recipe = {"model": "m/tiny", "tasks": tasks, "schedule": {"steps": steps}, "seed": seed}
    (run_dir / "recipe.json").write_text(json.dumps(recipe))
    changes = [{"name": "model"}, {"name": "schedule.steps", "default": 100}]
    (run_dir / "changes.json").write_text(json.dumps({"settings": changes}))
    start, metrics, groups, spans = 1_767_225_600.0, [], [], []
    for step in range(1, steps + 1):
        reward = 0.2 + 0.6 * step / steps + 0.02 * seed
        record = {
            "step": step, "time": start + step, "rollout/reward/mean": reward, "train/loss": -reward,
            "train/kl_ref": step / 100,
            "train/entropy": 1.0 - step / 100, "rollout/response_len/mean": 12.0, "rollout/response_len/max": 20.0,
            "rollout/staleness/mean": 0.5, "rollout/staleness/max": 1.0, "train/mismatch_kl": 1e-6,
            "train/mismatch_prob_max": 1e-5, "perf/tokens_per_second": 900.0, "time/sync": 0.01,
            "weights/probe_gap": 1e-6,
            "watch/alarms": float(step > steps // 2),
        }  # fmt: skip
        for name in ("short", "long"):
            record |= {f"task/{name}/rollout/reward/mean": reward, f"task/{name}/judge/polite/violation_rate": 0.1}
            record |= {f"task/{name}/judge/polite/error_rate": 0.0, f"task/{name}/algorithm/violation_rate": 0.1}
        metrics.append(record)
        if step % 20 == 0 or step == 1:
            metrics.append({"step": step, "time": start + step, "eval/reward/mean": reward, "eval/reward/count": 900})
        spans += [
            ("generator-0", "generate", step, 0.6),
            ("trainer", "wait", step, 0.5),
            ("trainer", "train", step + 0.5, 0.4),
        ]
        if step % 5 == 0:
            samples = [
                {
                    "text": text, "reward": reward, "finish_reason": "stop", "staleness": 1,
                    "advantage": -0.5 + position, "versions": [[step - 2, 1], [step - 1, 2]],
                    "token_ids": [7, 8, 9], "tokens": [text, "\n", "<eos>"],
                    "logprobs": [-9.5, -2.5, -0.01], "trainer_logprobs": [-9.5, -2.4, -0.01],
                    "verdicts": {"polite": {"status": "scored", "score": 1.0, "passed": position == 0, "reason": text,
                                            "cost": 0.001, "seconds": 0.2}},
                }
                for position in range(2)
            ]  # fmt: skip
            head = {
                "step": step,
                "version": step - 1,
                "group": step,
                "epoch": 0,
                "prompt_id": f"p{step}",
                "answer": None,
            }
            task = "short" if step % 2 else "long"
            messages = [{"role": "user", "content": f"prompt {step}"}]
            groups.append({**head, "task": task, "messages": messages, "samples": samples})
    lines = [
        {"executor": name, "activity": activity, "start": start + begin, "end": start + begin + length}
        for name, activity, begin, length in spans
    ]
    for name, records in (("metrics", metrics), ("rollouts", groups), ("timeline", lines)):
        (run_dir / f"{name}.jsonl").write_bytes(b"".join(encode(record) + b"\n" for record in records))
    (run_dir / "messages.log").write_text("2026-01-01T00:00:10 judge lost (time-out); starting it again\n")
    return run_dir


class Opened:
    """A page with everything that went wrong on it, and every address that it asked for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("main h2")

    def view(self, name: str) -> Any:
        self.page.evaluate("view => { location.hash = view }", f"#{name}")
        self.page.wait_for_selector(f"nav a[aria-current=page][href='#{name.split('?')[0]}']")
        self.page.wait_for_selector("main h2")
        return self.page


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    pages: list[Opened] = []

    def open_page(url: str, **options: Any) -> Opened:
        pages.append(Opened(browser, url, **options))
        return pages[-1]

    yield open_page
    for each in pages:
        each.page.close()
        assert each.problems == []


def wait_for_count(page: Any, selector: str, count: int) -> None:
    """Waits until so many elements fit. (A wait for a script's value would need the page to allow evaluation.)"""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(count)


def serious(page: Any) -> list[str]:
    """What axe-core finds of serious or critical impact."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_of_a_file_is_drawn_asks_nobody_and_is_accessible(
    opened: Callable[..., Opened], tmp_path: Path, scheme: str
) -> None:
    page = write_run_page(write_run(tmp_path / "run"))
    run = opened(page.as_uri(), color_scheme=scheme, viewport={"width": 1280, "height": 900})
    assert run.page.locator(".answer .figure").inner_text().startswith("0.215 → 0.800")
    for view in VIEWS:
        assert serious(run.view(view)) == [], view
    assert run.requests == [page.as_uri()]


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_window_scrolls_only_downwards(opened: Callable[..., Opened], tmp_path: Path, view: str) -> None:
    run = opened(write_run_page(write_run(tmp_path / "run")).as_uri(), viewport={"width": 380, "height": 700})
    page = run.view(view)
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_hostile_text_is_shown_and_never_runs(opened: Callable[..., Opened], tmp_path: Path) -> None:
    run = opened(write_run_page(write_run(tmp_path / "run", 10, text=HOSTILE)).as_uri())
    for view in VIEWS:
        run.view(view)
    page = run.view("rollouts")
    shown = page.locator(".sample .tokens").first.inner_text()
    assert "</script><script>" in shown and "‹U+202E›" in shown and "␛[2J" in shown and "‹U+D83D›" in shown
    assert "onerror" in page.locator(".reason").first.inner_text()
    assert page.evaluate("window.stolen") is None and page.locator("#page img").count() == 0


def test_a_click_on_a_step_leads_to_its_rollouts_and_their_tokens(
    opened: Callable[..., Opened], tmp_path: Path
) -> None:
    run = opened(write_run_page(write_run(tmp_path / "run")).as_uri(), viewport={"width": 1280, "height": 900})
    plot = run.page.locator(".plot .u-over").first
    box = plot.bounding_box()
    run.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 40)
    run.page.wait_for_selector(".group h2")
    assert run.page.locator(".group h2").inner_text().startswith("Step 20")
    colours = lambda: [  # noqa: E731
        token.evaluate("e => getComputedStyle(e).backgroundColor")
        for token in run.page.locator(".tokens").first.locator("span").all()
    ]
    by_logprob = colours()
    assert len(set(by_logprob)) > 1  # the unlikely token stands out
    run.page.locator(".group .tools select").select_option("version")
    assert colours() != by_logprob
    run.page.locator(".tokens span").nth(1).hover()
    readout = run.page.locator(".group .readout").inner_text()
    assert "token 2 of 3" in readout and "id 8" in readout and "gap 0.1" in readout and "version 19" in readout


def test_filters_narrow_the_list_down(opened: Callable[..., Opened], tmp_path: Path) -> None:
    run = opened(write_run_page(write_run(tmp_path / "run")).as_uri())
    page = run.view("rollouts")
    assert page.locator(".groups li").count() == 8
    page.locator("select[name=task]").select_option("short")
    wait_for_count(page, ".groups li", 4)
    page.locator("input[name=step_from]").fill("20")
    page.keyboard.press("Enter")
    wait_for_count(page, ".groups li", 2)
    page.get_by_role("button", name="Clear").click()
    wait_for_count(page, ".groups li", 8)
    page.locator("select[name=alarm]").select_option(label="step 21: alarms: 1")
    wait_for_count(page, ".groups li", 2)


@pytest.mark.parametrize("is_served", [True, False])
def test_an_alarms_mark_leads_to_its_rollouts_by_pointer_and_by_keyboard(
    opened: Callable[..., Opened], tmp_path: Path, is_served: bool
) -> None:
    run_dir = write_run(tmp_path / "run")
    key = "task/short/watch/monitor/canary/level"
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    (run_dir / "metrics.jsonl").write_text(
        "".join(json.dumps(each | {key: float(each["step"] >= 34)}) + "\n" for each in lines)
    )
    server = SiteServer(Site(run_dir))
    server.start()
    try:
        url = server.url if is_served else write_run_page(run_dir).as_uri()
        page = opened(url, viewport={"width": 1280, "height": 900}).page
        steps = lambda: page.locator(".groups .where").all_inner_texts()  # noqa: E731
        chosen = lambda: page.locator("select[name=alarm] option:checked").inner_text()  # noqa: E731
        page.get_by_role("button", name="rollouts of step 21: alarms: 1").first.click()
        wait_for_count(page, ".groups li", 2)
        assert chosen() == "step 21: alarms: 1" and steps() == ["step 25, short", "step 20, long"]
        page.go_back()
        page.locator(".plot").first.focus()
        page.wait_for_selector(".plot .u-over")
        page.keyboard.press("a")
        page.keyboard.press("a")
        assert page.locator(".readout").first.inner_text().startswith("step 34")
        page.keyboard.press("Enter")
        wait_for_count(page, ".groups li", 1)  # of the alarm's task
        assert chosen().startswith("step 34: ") and steps() == ["step 35, short"]
        page.locator("select[name=alarm]").select_option("any")
        wait_for_count(page, ".groups li", 4)
        page.evaluate("location.hash = '#rollouts?alarm=99 gone'")
        page.get_by_text("Nothing fits these filters.").wait_for()
    finally:
        server.stop()


def test_the_keyboard_reaches_everything(opened: Callable[..., Opened], tmp_path: Path) -> None:
    run = opened(write_run_page(write_run(tmp_path / "run")).as_uri())
    page = run.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(5):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Setup"
    page.locator(".plot").first.focus()
    page.wait_for_selector(".plot .u-over")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert "step 39" in page.locator(".readout").first.inner_text()
    page.keyboard.press("Enter")
    page.wait_for_selector(".tokens")
    assert page.locator(".group h2").inner_text().startswith("Step 40")
    page.locator(".tokens").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "token 2 of 3" in page.locator(".group .readout").inner_text()
    page = run.view("timeline")
    page.locator("canvas").focus()
    before = page.locator("canvas").screenshot()
    page.keyboard.press("+")
    assert page.locator("canvas").screenshot() != before


def test_a_served_run_is_the_same_and_grows(opened: Callable[..., Opened], tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    server = SiteServer(Site(run_dir))
    server.start()
    try:
        run = opened(server.url)
        for view in VIEWS:
            run.view(view)
        page = run.view("rollouts")
        wait_for_count(page, ".groups li", 8)
        page.locator("input[name=text]").fill("PROMPT 35")
        page.keyboard.press("Enter")
        wait_for_count(page, ".groups li", 1)
        page = run.view("overview")
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 41, "time": 1767225641.0, "rollout/reward/mean": 0.9}\n')
        page.get_by_text("step 41 of 40").wait_for()
        assert all(url.startswith(server.url) for url in run.requests)
    finally:
        server.stop()


def test_a_long_runs_steps_are_seen_by_zooming_in_and_a_file_says_what_it_shows(
    opened: Callable[..., Opened], tmp_path: Path
) -> None:
    run_dir = write_run(tmp_path / "run", 40)
    lines = [
        encode({"step": step, "time": 1_767_225_600.0 + step, "rollout/reward/mean": step % 2, "train/loss": 0.0})
        for step in range(1, 5001)
    ]
    (run_dir / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    server = SiteServer(Site(run_dir))
    server.start()
    try:
        page = opened(server.url, viewport={"width": 1280, "height": 900}).page
        page.get_by_text("Each point is the mean of 3 steps; zoom in to see each.").wait_for()
        plot = page.locator(".plot").first
        plot.focus()
        page.wait_for_selector(".plot .u-over")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("+")
        page.get_by_text("Each point is the mean").wait_for(state="detached")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert "step 4,99" in page.locator(".readout").first.inner_text()
        assert page.locator(".readout").first.inner_text()[-1] in "01"  # a step's own value
        page.keyboard.press("Escape")
        page.get_by_text("Each point is the mean of 3 steps").wait_for()
        page.evaluate("location.hash = '#curves'")
        before = page.locator(".plot").first.screenshot()
        with page.expect_response("**/api/curves*"):
            page.get_by_label("extremes behind each point").check()
        page.wait_for_timeout(100)
        assert page.locator(".plot").first.screenshot() != before  # the band from 0 to 1
    finally:
        server.stop()
    page = opened(write_run_page(run_dir).as_uri()).page
    assert "llamarl view --serve shows each where you zoom in" in page.locator(".note").first.inner_text()


def test_runs_stand_side_by_side(opened: Callable[..., Opened], tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "runs" / f"seed-{seed}", seed=seed)
    write_run(tmp_path / "runs" / "more" / "long", 60)
    server = SiteServer(Site(tmp_path / "runs"))
    server.start()
    try:
        run = opened(server.url)
        page = run.page
        page.wait_for_selector(".plot .u-over")
        assert serious(page) == []
        assert page.locator("tbody tr th[scope=row] a").all_inner_texts() == ["more/long", "seed-0", "seed-1", "seed-2"]
        page.locator("[data-sort=Step]").click()
        page.locator("[data-sort=Step]").click()
        assert page.locator("tbody th[scope=row] a").first.inner_text() == "more/long"
        settings = page.locator("section[aria-label='settings that differ']").inner_text()
        assert "schedule.steps" in settings and "seed" in settings and "tasks.0.name" not in settings
        assert page.locator(".legend button").count() == 4
        page.get_by_label("runs that differ in their seed as a band").check()
        wait_for_count(page, ".legend button", 2)
        page.get_by_role("link", name="more/long").click()
        page.wait_for_selector(".answer")
        assert page.locator("h1").inner_text() == "long" and page.get_by_role("link", name="all runs").count() == 1
    finally:
        server.stop()


def test_a_file_answers_the_servers_questions_alike(opened: Callable[..., Opened], tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    index = RolloutIndex(run_dir / "rollouts.jsonl")
    index.grow()
    page = opened(write_run_page(run_dir).as_uri()).page
    script = """async query => {
      const held = new HeldGroups(JSON.parse(document.getElementById("values").textContent).rollouts);
      const found = await held.find(query, null, 100);
      return found.heads.map(head => head.step);
    }"""
    for query in (
        {}, {"text": "PROMPT 3"}, {"text": "Moon"}, {"task": "long"}, {"prompt": "5"}, {"reward_from": "0.5"},
        {"reward_to": "0.5"}, {"step_from": "10", "step_to": "20"}, {"version": "14"}, {"version": "99"}, {"cut": "1"},
        {"judge": "polite", "outcome": "fail"}, {"outcome": "scored"}, {"steps": "5-10,40-40"},
    ):  # fmt: skip
        asked = [head["step"] for head in index.find(Filter.parse(query), None, 100)["heads"]]
        assert page.evaluate(script, query) == asked, query
    index.close()


def test_a_legend_names_each_curve_once_with_what_is_held_out(opened: Callable[..., Opened], tmp_path: Path) -> None:
    page = opened(write_run_page(write_run(tmp_path / "run")).as_uri()).page
    script = """() => {
      const curves = ["a", "a, held-out", "held-out"].map((label, index) => ({ key: "k" + index, label, colour: 0, points: index > 0 }));
      const data = { steps: [1, 2], values: { k0: [1, 2], k1: [null, 2], k2: [1, null] } };
      const chart = new Chart({ title: "t", curves }, data, { height: 100, smoothing: 1, events: [] });
      const names = [...chart.legend.querySelectorAll("button")].map((button) => button.textContent);
      chart.legend.querySelector("button").click();
      return [names, [...chart.hidden].sort()];
    }"""  # noqa: E501
    assert page.evaluate(script) == [["a", "held-out"], ["k0", "k1"]]
