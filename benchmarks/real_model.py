"""Tokens per second of a real checkpoint against what the memory of this machine allows.

    python -m benchmarks.real_model DIRECTORY [--precisions fp32,bf16] [--rows 1,2,4,...] [--threads 2] [--repeats 5]

    prefill     one prompt of 512 tokens
    decode      a step of so many rows, about 128 cached tokens each, plain sampling
    bound       rows / (bytes of all weights / bytes a second): each weight read once a step
    share       of decode in the bound; with many rows products take longer than reading weights, and it falls

The bytes per second are those of a sum over a large buffer, measured in each round beside the steps. A share is the
median of the rounds' own shares.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import Benchmark, paired_ratio, spread, take_turns
from llamarl.core.records import GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.generation.native import NativeGenerator, Precision
from llamarl.models.checkpoint import load_model

ROWS = (1, 2, 4, 8, 16, 32, 64)
CACHED_TOKENS, PREFILL_TOKENS = 112, 512
STEPS = 12
"""Decode steps of a turn; the best is taken, since others may work on this machine."""
BUFFER = 1 << 26
"""Numbers in the buffer that is summed: many times what the caches hold."""


def memory_rate() -> float:
    """Bytes per second of reading memory."""
    block = torch.ones(BUFFER)
    return 4 * len(block) / min(seconds(block.sum) for _ in range(6))


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def prompt(length: int, start: int) -> tuple[int, ...]:
    return tuple((start + 37 * index) % 1000 for index in range(length))


def decode_rate(generator: NativeGenerator, num_rows: int) -> float:
    """Tokens per second of the best step of so many rows."""
    sampling = Sampling(max_tokens=STEPS + 8)
    generator.add(
        [GenerationRequest(key, prompt(CACHED_TOKENS, key), (key,), sampling) for key in range(num_rows)],
    )
    for _ in range(3):
        generator.step()
    best = min(seconds(generator.step) for _ in range(STEPS))
    generator.cancel(range(num_rows))
    return num_rows / best


def prefill_rate(generator: NativeGenerator) -> float:
    """Prompt tokens per second; a request of one token ends with its prefill."""
    request = GenerationRequest(0, prompt(PREFILL_TOKENS, 1), (0,), Sampling(max_tokens=1))
    return PREFILL_TOKENS / min(seconds(lambda: generator.generate([request])) for _ in range(2))


def measure(
    model: nn.Module, precision: Precision, rows: Sequence[int], repeats: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Lines of the table and their headlines."""
    generator = NativeGenerator(model, eos_ids=(), decode=lambda ids: "", precision=precision, slots=max(rows))
    num_bytes = sum(p.numel() for p in model.parameters()) * {"fp32": 4, "bf16": 2, "int8": 1}[precision]
    contenders: dict[str, Callable[[], float]] = {"memory": memory_rate, "prefill": lambda: prefill_rate(generator)}
    contenders |= {f"decode {n}": lambda n=n: decode_rate(generator, n) for n in rows}
    rates = take_turns(contenders, repeats)
    lines: list[dict[str, Any]] = [
        {"precision": precision, "what": "prefill", "tokens/s": spread(rates["prefill"], 1), "bound": "", "share": ""}
    ]
    headlines = {f"prefill {precision}": lines[0]["tokens/s"]["median"]}
    for n in rows:
        bounds = [n * rate / num_bytes for rate in rates["memory"]]
        share = paired_ratio(rates[f"decode {n}"], bounds)
        line = {"tokens/s": spread(rates[f"decode {n}"], 1), "bound": spread(bounds, 1), "share": share}
        lines.append({"precision": precision, "what": f"decode, {n} rows", **line})
        headlines |= {
            f"decode {precision}, {n} rows": line["tokens/s"]["median"],
            f"share {precision}, {n} rows": share["median"],
        }
    return lines, headlines


def main(arguments: Sequence[str] | None = None) -> None:
    benchmark = Benchmark("real_model", __doc__, repeats=5, quick_repeats=1)
    benchmark.parser.add_argument("model", type=Path, help="checkpoint directory")
    benchmark.parser.add_argument("--precisions", default="fp32,bf16", help="of fp32, bf16, int8")
    benchmark.parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="row counts to decode")
    benchmark.parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = benchmark.start(arguments)
    torch.set_num_threads(options.threads)
    model = load_model(options.model, dtype="float32")
    size = sum(p.numel() for p in model.parameters()) / 1e6
    rows, headlines = [], {}
    for precision in options.precisions.split(","):
        lines, more = measure(model, precision, [int(n) for n in options.rows.split(",")], options.repeats)
        rows += lines
        headlines |= more
        benchmark.note(f"{precision} done")
    benchmark.finish(rows, headlines, [f"{options.model.name}: {size:.1f}M parameters, {options.threads} threads"])


if __name__ == "__main__":
    main()
