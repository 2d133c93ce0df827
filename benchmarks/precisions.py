"""Training a real model with generators of three precisions, from the same seeds: rewards, mismatch, pace.

    python -m benchmarks.precisions --model DIR_OR_GGUF [--steps 50] [--seeds 0 1 2 3 4]

Instructions that a program checks, 4 prompts x 8 completions x 96 tokens a step, learning rate 1e-5. The runs are the
same but for `generator.precision` and `trainer.precision`: fp32 and fp32; bf16 and bf16; int8 and bf16; and, if asked
for, bf16 and bf16 without `trainer.dither`. Rewards are compared over the same steps, hence the same prompts: the mean
of the differences. Its standard error is taken over seeds where there are several, and otherwise over steps, which
knows nothing of how much one run differs from the next. Rewards need no quiet machine, and so the result is always
written; believe its seconds only where its load was low.
"""

import itertools
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark
from benchmarks.every_command import PROGRAM, run

RECIPE = """
model = "{model}"
seed = {seed}
[data]
source = "train.jsonl"
[[judges]]
function = "instructions"
[sampling]
max_tokens = {tokens}
[schedule]
steps = {steps}
prompts_per_step = 4
samples_per_prompt = {samples}
evaluate_every = {every}
[evaluation]
num_prompts = 32
[trainer]
precision = "{trainer}"
dither = {dither}
[generator]
precision = "{generator}"
slots = 32
"""

WAYS = {
    "fp32": ("fp32", "fp32", True),
    "bf16": ("bf16", "bf16", True),
    "int8": ("int8", "bf16", True),
    "bf16-plain": ("bf16", "bf16", False),
}
"""Precisions of the generator and of the trainer, and whether the trainer's weights are dithered."""


def column(records: list[dict[str, Any]], name: str) -> list[float]:
    """The values of a metric, step by step."""
    return [record[name] for record in records if record.get(name) is not None]


def standard_error(values: list[float]) -> float:
    """The standard error of the mean of `values`, of which there are at least two."""
    return statistics.stdev(values) / len(values) ** 0.5


def train(work: Path, name: str, text: str) -> Path:
    """The finished run directory `work/name` of the recipe `text`; a run that is done there is kept."""
    (work / f"{name}.toml").write_text(text)
    if not (work / name / "summary.json").exists():
        status = run(["train", f"{name}.toml", "--run-dir", name, "--plain", "--json"], work)[-1]
        if status != 0:
            print(f"{name}: exit status {status}; see {work / 'commands.log'}")
            sys.exit(1)
    return work / name


def main() -> None:
    """The command line."""
    benchmark = Benchmark("precisions", __doc__, repeats=1, quick_repeats=1, max_load=math.inf)
    parser = benchmark.parser
    parser.add_argument("--model", required=True, help="checkpoint directory or GGUF file")
    parser.add_argument("--steps", type=int, default=50, help="of each run (default 50)")
    parser.add_argument("--samples", type=int, default=8, help="completions of each prompt (default 8)")
    parser.add_argument("--tokens", type=int, default=96, help="most tokens of each (default 96)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run of each precision a seed (default 0)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=[*WAYS][1:],
        default=["bf16", "int8"],
        help="beside fp32 (default bf16 int8)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/precisions"),
        help="folder of the runs; those that are done there are kept",
    )
    options = benchmark.start()
    steps = 3 if options.quick else options.steps
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "train.jsonl").exists():
        arguments = ["data", "instructions", "--count", str(8 * steps + 64), "--out", "train.jsonl"]
        subprocess.run([*PROGRAM, *arguments], cwd=work, check=True)
    rows, rewards, paces = [], {}, {}
    for seed, way in itertools.product(options.seeds, ["fp32", *options.precisions]):
        generator, trainer, dither = WAYS[way]
        text = RECIPE.format(
            model=Path(options.model).resolve(),
            seed=seed,
            steps=steps,
            every=max(1, steps // 2),
            samples=options.samples,
            tokens=options.tokens,
            trainer=trainer,
            generator=generator,
            dither=str(dither).lower(),
        )
        directory = train(work, f"{way}-{seed}", text)
        summary = json.loads((directory / "summary.json").read_text())
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        reward = rewards[way, seed] = column(records, "rollout/reward/mean")
        pace = paces[way, seed] = statistics.median(column(records, "time/step"))
        third = max(1, len(reward) // 3)
        rows.append(
            {
                "way": way,
                "generator": generator,
                "trainer": trainer,
                "seed": seed,
                "steps": len(reward),
                "first third": statistics.mean(reward[:third]),
                "last third": statistics.mean(reward[-third:]),
                "held-out": ", ".join(f"{value:.3f}" for value in column(records, "eval/reward/mean")),
                "mismatch_kl": statistics.mean(column(records, "train/mismatch_kl")),
                "s a step": pace,
                "tokens/s": summary["tokens_per_second"],
                "peak GB": summary["peak_memory_bytes"] / 1e9,
                "rewards": [round(value, 4) for value in reward],
            }
        )
        benchmark.note(f"{way}, seed {seed}: {summary['seconds']:.0f} s, last third {rows[-1]['last third']:.3f}")
    headlines = {}
    for name in options.precisions:
        pairs = [(rewards[name, seed], rewards["fp32", seed]) for seed in options.seeds]
        gaps = [[a - b for a, b in zip(own, full, strict=True)] for own, full in pairs]
        means = [statistics.mean(values) for values in gaps]
        headlines[f"{name} minus fp32, reward"] = statistics.mean(means)
        headlines[f"{name} minus fp32, standard error"] = standard_error(means if len(means) > 1 else gaps[0])
        ratios = [paces[name, seed] / paces["fp32", seed] for seed in options.seeds]
        headlines[f"{name} step over fp32 step, seconds"] = statistics.median(ratios)
    benchmark.finish(rows, headlines)


if __name__ == "__main__":
    main()
