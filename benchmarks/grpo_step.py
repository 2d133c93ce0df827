"""A whole synchronous GRPO step, ours against TRL's GRPOTrainer.

    pip install -e ".[bench]"
    python -m benchmarks.grpo_step [--workloads 0.34M 7.5M 0.87M] [--threads 2] [--all-settings]

Same checkpoint, prompts in the same order (16 x 8), sampling, reward function, loss (group-standardised advantages,
clip 0.2, each sample's token mean, no KL), AdamW, learning rate and clipping. Lengths are equal in distribution: both
sample from the same weights. Each side is a process of its own; they take turns, step by step, while the other sleeps.

TRL also computes each token's entropy and gathers its metrics for a log that is never written. We also publish the
weights to a separate generator with checksums and a probe; that time is inside our step.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark, Contender, paired_ratio, spread, take_turns
from benchmarks.grpo_trl import SETTINGS
from benchmarks.workloads import GROUP_SIZE, NUM_PROMPTS, WORKLOADS

BEST_SETTINGS = {"0.34M": "batch 128", "7.5M": "batch 128", "0.87M": "batch 128"}
"""TRL's fastest setting per workload, as `--all-settings` found it."""

Reports = dict[str, list[dict[str, float]]]


def measure(name: str, settings: list[str], threads: int, repeats: int, benchmark: Benchmark) -> Reports:
    """What every contender reported of every step, round by round."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = str(WORKLOADS[name].checkpoint(Path(directory) / "model"))
        contenders = {"llamarl": Contender("benchmarks.grpo_ours", [name, checkpoint], threads)}
        for setting in settings:
            contenders[f"TRL, {setting}"] = Contender("benchmarks.grpo_trl", [name, checkpoint, setting], threads)
        try:
            turns = {who: contender.turn for who, contender in contenders.items()}
            return take_turns(turns, repeats, 2, lambda index: benchmark.note(f"{name}: round {index} of {repeats}"))
        finally:
            for contender in contenders.values():
                contender.close()


def rows_of(name: str, reports: Reports) -> list[dict[str, Any]]:
    """One line per contender."""
    ours = [report["step"] for report in reports["llamarl"]]
    num_samples = NUM_PROMPTS * GROUP_SIZE
    return [
        {
            "workload": name,
            "who": who,
            "step s": spread([r["step"] for r in mine]),
            **{part: round(statistics.median(r[part] for r in mine), 4) for part in ("generate", "train")},
            "rest": round(statistics.median(r["judge"] + r["publish"] for r in mine), 4),
            "mean length": round(statistics.fmean(r["tokens"] for r in mine) / num_samples, 1),
            "longest": int(max(r["longest"] for r in mine)),
            "prompt tokens": int(statistics.fmean(r["prompt_tokens"] for r in mine)),
            "with gradient": round(statistics.fmean(r["has_gradient"] for r in mine), 2),
            "step / ours": paired_ratio([r["step"] for r in mine], ours),
        }
        for who, mine in reports.items()
    ]


def main() -> None:
    benchmark = Benchmark("grpo_step", __doc__, repeats=15)
    benchmark.parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    benchmark.parser.add_argument("--threads", type=int, default=2, help="per side (default 2)")
    benchmark.parser.add_argument("--all-settings", action="store_true", help="try every TRL setting")
    options = benchmark.start()
    rows, headlines = [], {}
    for name in options.workloads:
        settings = list(SETTINGS) if options.all_settings else [BEST_SETTINGS[name]]
        reports = measure(name, settings, options.threads, options.repeats, benchmark)
        mine = rows_of(name, reports)
        rows += mine
        headlines[name] = min(row["step / ours"]["median"] for row in mine if row["who"] != "llamarl")
    benchmark.finish(rows, headlines, [f"{options.threads} threads a side", "headline: TRL's fastest setting / ours"])


if __name__ == "__main__":
    main()
