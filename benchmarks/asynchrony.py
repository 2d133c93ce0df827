"""The asynchronous run against the synchronous one, through the real controller, with judges of different latency.

    python -m benchmarks.asynchrony [--latencies 0 1 3] [--staleness 0 1 4] [--threads 2] [--engine monarch]

Each run trains the demo's model on the demo's prompts. A step is the wall time from one optimizer step to the next, in
the steady state only: the first steps, which fill the pipeline, and the last, which drain it, are left out. Staleness
K = 0 is the synchronous run; it judges each group as soon as it is generated. All configurations run once a round, in
rotating order, each in a process of its own. `model` is

    K = 0    generate + J + train, each alone on all threads
    K > 0    max(train, generate, (generate + J + train) / (K + 1)), each on one thread, as both run at once

with generate and train measured in this same benchmark, in synchronous runs without latency. Speed has its price:
the staleness of the trained tokens stands beside each number.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark, paired_ratio, spread, take_turns

Measured = dict[str, float]
ALONE = "alone on one thread"


def judge_of(latency: int) -> str:
    return f"{Path(__file__).with_name('slow_judges.py')}:after_{latency}s"


def num_steps(latency: int, staleness: int, is_quick: bool) -> int:
    """Long enough for a steady state: slow configurations get fewer steps."""
    steady = 4 if is_quick else {0: 30, 1: 12, 3: 8}[latency] * (3 if staleness == 4 else 1)
    return 2 * (staleness + 2) + steady


def run_in_process(latency: int, staleness: int, threads: int, engine: str, steps: int) -> Measured:
    """One run, in a fresh interpreter."""
    arguments = [str(x) for x in (latency, staleness, threads, steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.asynchrony", "--one-run", engine, *arguments]
    result = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, check=True, timeout=900
    )
    measured: Measured = json.loads(result.stdout.splitlines()[-1])
    return measured


def one_run(engine: str, latency: int, staleness: int, threads: int, steps: int) -> Measured:
    """Means over the steady part of one run: whole pipeline periods, since steps of one period come in bursts."""
    from llamarl.controller.recipe import Recipe
    from llamarl.controller.run import train
    from llamarl.recipes import recipe_path

    settings = {
        "engine": engine,
        "threads": threads,
        "judges.0.function": judge_of(latency),
        "schedule.steps": steps,
        "schedule.max_staleness": staleness,
        "schedule.checkpoint_every": 0,
        "evaluation.num_prompts": 0,
        "trainer.learning_rate": 1e-5,  # lengths stay what they are while the clock runs
    }
    with tempfile.TemporaryDirectory() as directory:
        overrides = [f"--{name}={value}" for name, value in settings.items()]
        train(Recipe.load(recipe_path("demo"), overrides), Path(directory) / "run")
        lines = (Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [record for line in lines if "time/step" in (record := json.loads(line))]
    steady = records[staleness + 2 : len(records) - staleness - 1]
    steady = steady[: len(steady) // (staleness + 1) * (staleness + 1)]
    means = {key: statistics.fmean(r[key] for r in steady) for key in ("time/step", "time/train")}
    return {
        "step": means["time/step"],
        "train": means["time/train"],
        "staleness mean": statistics.fmean(r["rollout/staleness/mean"] for r in steady),
        "staleness max": max(r["rollout/staleness/max"] for r in steady),
        "steps": len(steady),
    }


def model(latency: int, staleness: int, shared: tuple[float, float], alone: tuple[float, float]) -> float:
    """Seconds a step must take; `shared` and `alone` are (generate, train) on all threads and on one."""
    if staleness == 0:
        return sum(shared) + latency
    return max(*alone, (sum(alone) + latency) / (staleness + 1))


def rows_of(results: dict[str, list[Measured]], names: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """One line per configuration."""

    def parts(who: str) -> tuple[float, float]:
        step, train = (statistics.median(r[key] for r in results[who]) for key in ("step", "train"))
        return step - train, train

    shared, alone = parts("J=0 K=0"), parts(ALONE)
    rows = []
    for who, (latency, staleness) in names.items():
        steps = [r["step"] for r in results[who]]
        predicted = model(latency, staleness, shared, alone)
        rows.append(
            {
                "judge s": latency,
                "K": staleness,
                "step s": spread(steps),
                "model s": round(predicted, 4),
                "step / model": round(statistics.median(steps) / predicted, 3),
                "sync / this": paired_ratio([r["step"] for r in results[f"J={latency} K=0"]], steps),
                "staleness mean": round(statistics.fmean(r["staleness mean"] for r in results[who]), 2),
                "staleness max": int(max(r["staleness max"] for r in results[who])),
                "steps a run": int(results[who][0]["steps"]),
            }
        )
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--one-run"]:
        print(json.dumps(one_run(sys.argv[2], *(int(x) for x in sys.argv[3:]))))
        return
    benchmark = Benchmark("asynchrony", __doc__, repeats=3, quick_repeats=1)
    benchmark.parser.add_argument("--latencies", nargs="+", type=int, default=[0, 1, 3], choices=[0, 1, 3])
    benchmark.parser.add_argument("--staleness", nargs="+", type=int, default=[0, 1, 4])
    benchmark.parser.add_argument("--threads", type=int, default=2, help="of the whole run (default 2)")
    benchmark.parser.add_argument("--engine", default="inprocess", choices=["inprocess", "monarch"])
    options = benchmark.start()
    pairs = {(j, k) for j in options.latencies for k in options.staleness}
    pairs |= {(j, 0) for j in (0, *options.latencies)}  # every ratio needs its synchronous run
    names = {f"J={j} K={k}": (j, k) for j, k in sorted(pairs)}

    def runner(latency: int, staleness: int, threads: int) -> Any:
        def run() -> Measured:
            benchmark.note(f"judge {latency} s, staleness {staleness}, {threads} threads")
            steps = num_steps(latency, staleness, options.quick)
            return run_in_process(latency, staleness, threads, options.engine, steps)

        return run

    runs = {name: runner(*pair, options.threads) for name, pair in names.items()} | {ALONE: runner(0, 0, 1)}
    rows = rows_of(take_turns(runs, options.repeats, warm_up=0), names)
    headlines = {}
    for row in rows:
        if row["K"] > 0:
            headlines[f"J={row['judge s']} K={row['K']} speed-up"] = row["sync / this"]["median"]
            headlines[f"J={row['judge s']} K={row['K']} step / model"] = row["step / model"]
    benchmark.finish(
        rows,
        headlines,
        [f"{options.engine}, {options.threads} threads; `sync / this`: above 1 means faster than K = 0"],
    )


if __name__ == "__main__":
    main()
