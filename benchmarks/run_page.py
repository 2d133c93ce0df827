"""How long a large run's page takes to appear, and what it holds: 10,000 steps, 1,000,000 completions.

    python -m benchmarks.run_page [--steps 10000] [--rollouts 1000000]

Writes a run of two tasks with as many metrics as such runs have, serves it (`llamarl view RUN --serve`), and opens it
in headless Chromium. `cold` is the first page of a server that has just begun to listen; `again` a second visit;
`rollouts` the first list of groups, while the index of the file is being built; `timeline` its drawing; `zoom` the
1,250 steps in the middle, each by itself. Seconds are from the navigation, or the key, to a drawn chart or list.
Processor seconds are those of the server and of Chromium's processes together: on a busy machine they tell more than
the clock. Memory is what the page's process holds for itself (its private pages), and the JavaScript heap in use.
"""

import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark, spread
from llamarl.report.files import encode

TASKS = ("math", "chat")
OWN = (
    "rollout/reward/mean", "rollout/reward/std", "rollout/response_len/mean", "rollout/response_len/max",
    "rollout/truncated_frac", "rollout/frac_zero_std", "judge/exact/mean", "judge/exact/pass_rate",
    "judge/exact/error_rate", "judge/polite/violation_rate", "algorithm/violation_rate",
)  # fmt: skip
COMMON = (
    "rollout/staleness/mean", "rollout/staleness/max", "rollout/tokens", "train/loss", "train/entropy", "train/kl_ref",
    "train/ratio/mean", "train/clip_frac/low", "train/clip_frac/high", "train/mismatch_kl", "train/mismatch_prob_max",
    "train/grad_norm", "train/lr", "perf/tokens_per_second", "perf/memory/main", "perf/memory/trainer", "time/step",
    "time/generate", "time/judge", "time/train", "time/sync", "time/wait_batch", "weights/probe_gap", "data/issued",
    "data/finished", "data/trained", "data/dropped", "data/failed",
)  # fmt: skip
START = 1_767_225_600.0
GROUP_SIZE = 16
TICKS = os.sysconf("SC_CLK_TCK")


def write_run(directory: Path, steps: int, rollouts: int) -> None:
    """A finished run's files, drawn with a fixed seed."""
    draw = random.Random(0)
    (directory / "recipe.json").write_bytes(
        encode({"model": "m", "tasks": [{"name": name} for name in TASKS], "schedule": {"steps": steps}})
    )
    (directory / "summary.json").write_bytes(encode({"steps": steps, "version": steps, "seconds": 3.0 * steps}))
    names = [*COMMON, *OWN, *(f"task/{task}/{name}" for task in TASKS for name in OWN)]
    with (directory / "metrics.jsonl").open("wb") as file:
        for step in range(1, steps + 1):
            head = {"step": step, "policy_version": step, "time": START + 3 * step}
            file.write(encode(head | {name: round(draw.random(), 6) for name in names}) + b"\n")
            if step % 100 == 0:
                file.write(encode(head | {"eval/reward/mean": draw.random(), "eval/reward/count": 512}) + b"\n")
    with (directory / "timeline.jsonl").open("wb") as file:
        for step in range(steps):
            for executor, activity in (("trainer", "train"), ("generator-0", "generate"), ("generator-1", "generate")):
                at = START + 3 * step
                file.write(encode({"executor": executor, "activity": activity, "start": at, "end": at + 2.5}) + b"\n")
    groups = rollouts // GROUP_SIZE
    with (directory / "rollouts.jsonl").open("wb") as file:
        for group in range(groups):
            file.write(encode(_group(group, 1 + group * steps // groups, draw)) + b"\n")


def _group(number: int, step: int, draw: random.Random) -> dict[str, Any]:
    samples = [
        {
            "text": f"The answer to question {number} is {draw.randrange(1000)}.",
            "reward": float(draw.random() < 0.5),
            "finish_reason": "stop",
            "staleness": 1,
            "versions": [[step - 1, 12]],
            "verdicts": {"exact": {"status": "scored", "score": 1.0, "passed": draw.random() < 0.5}},
        }
        for _ in range(GROUP_SIZE)
    ]
    messages = [{"role": "user", "content": f"Question {number}: what is {draw.randrange(1000)} plus one?"}]
    head = {"step": step, "version": step - 1, "group": number, "prompt_id": f"p{number}", "task": TASKS[number % 2]}
    return {**head, "messages": messages, "samples": samples}


@contextmanager
def serve(directory: Path) -> Iterator[str]:
    """Address of `llamarl view DIRECTORY --serve`, as soon as it listens."""
    command = [sys.executable, "-m", "llamarl", "view", str(directory), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            lines = iter(server.stdout.readline, "")
            yield next(word for line in lines for word in line.split() if word.startswith("http"))
        finally:
            server.terminate()


def processor_seconds(pid: int) -> float:
    """Processor time of a process and its living descendants."""
    return sum(map(_ticks, (pid, *_descendants(pid)))) / TICKS


def _descendants(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            yield child
            yield from _descendants(child)


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended between the listing and the read
        return 0
    return int(fields[11]) + int(fields[12])


def page_megabytes() -> float:
    """Private memory of the largest of Chromium's page processes below this one."""
    sizes = [0.0]
    for pid in _descendants(os.getpid()):
        try:
            if b"--type=renderer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                sizes.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000)
        except OSError:
            continue
    return max(sizes)


def heap_megabytes(page: Any) -> float:
    """JavaScript heap in use, after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    metrics = session.send("Performance.enable") or session.send("Performance.getMetrics")
    return next(float(each["value"]) for each in metrics["metrics"] if each["name"] == "JSHeapUsedSize") / 1e6


def measure(run_dir: Path) -> dict[str, dict[str, float]]:
    """One visit of a fresh server by a fresh browser: seconds, processor seconds and memory of each part."""
    from tests.chromium import open_browser

    found: dict[str, dict[str, float]] = {}
    with open_browser() as browser, serve(run_dir) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        ours = os.getpid()

        def time_part(name: str, act: Callable[[], object], selector: str) -> None:
            before, started = processor_seconds(ours), time.perf_counter()
            act()
            page.wait_for_selector(selector, timeout=120_000)
            seconds = time.perf_counter() - started
            found[name] = {"seconds": seconds, "processor seconds": processor_seconds(ours) - before}
            found[name] |= {"heap MB": heap_megabytes(page), "page MB": page_megabytes()}

        time_part("cold", lambda: page.goto(address), ".plot canvas")
        time_part("again", page.reload, ".plot canvas")
        time_part("rollouts", lambda: page.goto(f"{address}#rollouts"), ".groups li")
        time_part("timeline", lambda: page.goto(f"{address}#timeline"), "main canvas[role=img]")
        page.goto(f"{address}#curves")
        page.wait_for_selector(".plot canvas")
        page.locator(".plot").first.focus()
        page.keyboard.press("+")
        page.keyboard.press("+")
        page.wait_for_timeout(3000)
        time_part("zoom", lambda: page.keyboard.press("+"), ".note:not(:has-text('Each point'))")
        page.close()
    return found


def main() -> None:
    benchmark = Benchmark("run_page", __doc__, repeats=3, quick_repeats=1, max_load=math.inf)
    benchmark.parser.add_argument("--steps", type=int, default=10_000)
    benchmark.parser.add_argument("--rollouts", type=int, default=1_000_000)
    options = benchmark.start()
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        run_dir.mkdir()
        part = 10 if options.quick else 1
        write_run(run_dir, options.steps // part, options.rollouts // part)
        megabytes = {path.name: path.stat().st_size / 1e6 for path in run_dir.iterdir()}
        benchmark.note(", ".join(f"{name} {size:.0f} MB" for name, size in megabytes.items() if size >= 1))
        visits = []
        for number in range(options.repeats):
            for path in run_dir.glob("rollouts.index.sqlite*"):
                path.unlink()
            visits.append(measure(run_dir))
            benchmark.note(f"visit {number + 1} of {options.repeats}")
    rows = [
        {"part": part, **{key: spread([visit[part][key] for visit in visits], 2) for key in visits[0][part]}}
        for part in visits[0]
    ]
    headlines = {f"{row['part']} {key}": row[key]["median"] for row in rows for key in list(row)[1:]}
    benchmark.finish(rows, headlines, ["wall seconds were measured beside other work: see the load"])


if __name__ == "__main__":
    main()
