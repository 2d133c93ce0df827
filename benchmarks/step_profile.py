"""Where a training step of a real model spends its time: phases in seconds, and kinds of operations in each.

    python -m benchmarks.step_profile --model DIR_OR_GGUF [--precision fp32|bf16]

One synchronous step of 4 prompts x 8 completions x 96 tokens: generation of the completions (prefill, decode steps),
training on them (forward with the output head and its loss, backward, optimizer), and the weight sync with its proof.
Operations are counted in a second pass under torch's profiler, which slows small ones down: their column is shares.
"""

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.common import Benchmark
from llamarl.algorithms import AIPOConfig
from llamarl.core.records import Assignment, Completion, GenerationRequest, TrainSample
from llamarl.core.sampling import Sampling
from llamarl.generation.executor import GeneratorConfig, GeneratorExecutor
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel

PROMPTS = (
    "Write a short paragraph about rain in autumn.",
    "Explain in a few sentences how bread is made.",
    "Describe a river that runs through a large city.",
    "Tell me about trains, in a friendly tone.",
)
SAMPLES, MAX_TOKENS = 8, 96

KINDS = {
    "matrix products": ("mm", "addmm", "linear", "mkldnn", "_linear_pointwise", "bmm", "baddbmm"),
    "attention": ("scaled_dot_product", "flash_attention", "_softmax", "softmax"),
    "log-softmax and gather": ("log_softmax", "logsumexp", "gather", "exp", "nll_loss"),
    "copies and layout": ("copy_", "cat", "index", "stack", "select", "clone", "fill_", "zero_", "gelu"),
    "optimizer": ("_fused_adamw", "_foreach", "lerp", "addcdiv"),
}
"""Of operations by parts of their names, the first that fits; what fits none is 'everything else'."""


def kind_of(name: str) -> str:
    """The kind that an operation of torch is counted under."""
    short = name.removeprefix("aten::")
    return next((kind for kind, parts in KINDS.items() if any(part in short for part in parts)), "everything else")


def shares(found: Any) -> dict[str, float]:
    """Share of the time of all operations, by kind, the largest first."""
    total: Counter[str] = Counter()
    for event in found.key_averages():
        total[kind_of(event.key)] += event.self_cpu_time_total
    whole = sum(total.values()) or 1
    return {kind: round(value / whole, 3) for kind, value in total.most_common()}


def generate(generator: GeneratorExecutor, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
    """All completions, drawn at once."""
    return generator.batcher.generate(requests)


def main() -> None:
    """The command line."""
    benchmark = Benchmark("step_profile", __doc__, repeats=2, quick_repeats=1)
    benchmark.parser.add_argument("--model", required=True, help="checkpoint directory or GGUF file")
    benchmark.parser.add_argument("--precisions", default="fp32,bf16", help="of generator and trainer together")
    options = benchmark.start()
    rows, headlines = [], {}
    for precision in options.precisions.split(","):
        lines, seconds = measure(options.model, precision, options.repeats)
        rows += lines
        headlines |= {f"{precision}, {phase}, s": value for phase, value in seconds.items()}
        benchmark.note(f"{precision} done")
    benchmark.finish(rows, headlines, [f"{Path(options.model).name}: {len(PROMPTS)} x {SAMPLES} x {MAX_TOKENS} tokens"])


def measure(model_path: str, precision: Any, repeats: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One row a phase, and its seconds: the least of `repeats`."""
    tokenizer = load_tokenizer(model_path)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]
    channel, load = LocalChannel(), functools.partial(load_model, model_path)
    config, sampling = TrainerConfig(precision=precision), Sampling(max_tokens=MAX_TOKENS)
    trainer = PolicyTrainer(load(), AIPOConfig(), config, sampling=sampling, channel=channel)
    generator = GeneratorExecutor(GeneratorConfig(precision=precision, slots=32), load, tokenizer, channel)
    generator.setup()
    asyncio.run(generator.update_weights(trainer.publish()))
    requests = [
        GenerationRequest(key, prompt, tuple(range(SAMPLES * key, SAMPLES * (key + 1))), sampling)
        for key, prompt in enumerate(prompts)
    ]
    completions = generate(generator, requests)
    samples = [
        TrainSample(c.trajectory, 1.0 if place % 2 else -1.0, group)
        for group, found in enumerate(completions)
        for place, c in enumerate(found)
    ]
    batch = Assignment(tuple(samples), len(prompts))
    phases: dict[str, Callable[[], Any]] = {
        "generate": lambda: generate(generator, requests),
        "loss, forward and backward": lambda: trainer.loss(batch),
        "optimizer": trainer.step,
        "publish": trainer.publish,
        "take and prove": lambda: asyncio.run(generator.update_weights(trainer.publish())),
    }
    best: dict[str, float] = {}
    found: dict[str, Any] = {}
    for number in range(repeats + 1):  # the last one under the profiler
        for phase, run in phases.items():
            profiler = profile(activities=[ProfilerActivity.CPU]) if number == repeats else nullcontext()
            started = time.perf_counter()
            with profiler as record, record_function(phase):
                run()
            if number < repeats:
                seconds = time.perf_counter() - started
                best[phase] = min(best.get(phase, seconds), seconds)
            else:
                found[phase] = record
    tokens = {
        "generate": sum(s.trajectory.response_length for s in samples),
        "loss, forward and backward": len(samples),
    }
    tokens["loss, forward and backward"] = tokens["generate"]
    rows = [
        {
            "precision": precision,
            "phase": phase,
            "seconds": round(best[phase], 2),
            "tokens/s": round(tokens[phase] / best[phase], 1) if phase in tokens else "",
            "operations": ", ".join(
                f"{kind} {share:.0%}" for kind, share in shares(found[phase]).items() if share > 0.02
            ),
        }
        for phase in phases
    ]
    return rows, {phase: round(value, 3) for phase, value in best.items()}


if __name__ == "__main__":
    main()
