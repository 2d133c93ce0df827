"""Tokens per second of the generator against `generate` and continuous batching of transformers.

    python -m benchmarks.generation [--sizes 0.87M,8.75M,97.5M] [--threads 2] [--repeats 5]

Per size, 128 completions (16 prompts x 8) of random Llamas, log-normal lengths (mean 61, at most 256) fixed
beforehand and equal for all, plain sampling, every contender fills 64 rows:

    fp32, bf16, int8   NativeGenerator
    generate           transformers `generate`, batches of 64 sorted as given, finished rows padded
    static             the same with its static cache
    continuous         transformers continuous batching, paged attention

`step/bound` is one decode step of 64 rows (fp32, 96 cached tokens each) over the larger of its product time and its
memory time, both at rates measured beside it. Contenders take turns; a ratio is the median of the rounds' own ratios.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import Benchmark, paired_ratio, spread, take_turns
from llamarl.core.records import GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.generation.native import NativeGenerator, Precision
from llamarl.models.checkpoint import new_config, new_model, quiet
from llamarl.models.linear import linear

NUM_PROMPTS, GROUP_SIZE, PROMPT_LENGTH, SLOTS = 16, 8, 24, 64
MEAN_LENGTH, MAX_LENGTH = 61, 256

SIZES: dict[str, dict[str, int]] = {
    "0.87M": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4},
    "8.75M": {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6, "num_attention_heads": 5},
    "97.5M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
VOCABULARY = {"0.87M": 512, "8.75M": 4096, "97.5M": 16000}


def build(size: str) -> nn.Module:
    config = new_config(
        "llama", **SIZES[size], vocab_size=VOCABULARY[size], max_position_embeddings=512, tie_word_embeddings=True
    )
    model: Any = new_model(config, seed=0)
    model.generation_config.update(eos_token_id=None, pad_token_id=0)  # nothing ends early: lengths are fixed
    return model  # type: ignore[no-any-return]


def workload(size: str) -> tuple[list[tuple[int, ...]], list[int]]:
    """The prompt and the length of each completion."""
    random = np.random.default_rng(0)
    lengths = random.lognormal(np.log(MEAN_LENGTH) - 0.32, 0.8, NUM_PROMPTS * GROUP_SIZE).round().clip(4, MAX_LENGTH)
    prompts = random.integers(3, VOCABULARY[size], (NUM_PROMPTS, PROMPT_LENGTH)).tolist()
    return [tuple(prompts[i // GROUP_SIZE]) for i in range(len(lengths))], [int(length) for length in lengths]


def rate(action: Callable[[], int]) -> float:
    """Tokens per second of an action that says how many tokens it made."""
    started = time.perf_counter()
    num_tokens = action()
    return num_tokens / (time.perf_counter() - started)


def ours(model: nn.Module, size: str, precision: Precision) -> Callable[[], float]:
    generator = NativeGenerator(model, eos_ids=(), decode=lambda ids: "", precision=precision, slots=SLOTS)
    prompts, lengths = workload(size)
    requests = [
        GenerationRequest(key, prompt, (key,), Sampling(max_tokens=length))
        for key, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    return lambda: rate(lambda: sum(len(c.token_ids) for (c,) in generator.generate(requests)))


def with_generate(model: Any, size: str, cache: str) -> Callable[[], float]:
    prompts, lengths = workload(size)

    def once() -> int:
        num_tokens = 0
        for start in range(0, len(prompts), SLOTS):
            ids = torch.tensor(prompts[start : start + SLOTS])
            wanted = torch.tensor(lengths[start : start + SLOTS])

            def is_done(sequences: Tensor, scores: Any, wanted: Tensor = wanted, **_: Any) -> Tensor:
                return wanted <= sequences.shape[1] - PROMPT_LENGTH

            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=int(wanted.max()),
                stopping_criteria=[is_done],
                cache_implementation=cache,
                disable_compile=True,
            )
            num_tokens += int(wanted.sum())
        return num_tokens

    return lambda: rate(once)


def with_continuous_batching(model: Any, size: str) -> Callable[[], float]:
    prompts, lengths = workload(size)
    with quiet() as transformers:
        settings = transformers.GenerationConfig(do_sample=True, top_k=0, max_new_tokens=MAX_LENGTH, pad_token_id=0)
        limits = transformers.ContinuousBatchingConfig(
            page_size=32, num_blocks=1024, max_batch_tokens=1024, max_requests_per_batch=SLOTS, use_cuda_graph=False
        )

    def once() -> int:
        num_tokens = 0
        with model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=limits, warmup=False
        ) as manager:
            for prompt, length in zip(prompts, lengths, strict=True):
                manager.add_request(list(prompt), max_new_tokens=length)
            for _ in prompts:
                result = manager.get_result(timeout=600)
                assert result is not None, "continuous batching gave no result in ten minutes"
                num_tokens += len(result.generated_tokens)
        return num_tokens

    return lambda: rate(once)


def step_over_bound(model: nn.Module, size: str) -> float:
    """One decode step of 64 rows over the larger of its product time and its memory time."""
    generator = NativeGenerator(model, eos_ids=(), decode=lambda ids: "", slots=SLOTS)
    prompt = workload(size)[0][0] * 4
    generator.add([GenerationRequest(0, prompt, tuple(range(SLOTS)), Sampling(max_tokens=60))])
    generator.step()
    step = best_seconds(generator.step, 20)
    num_parameters = sum(p.numel() for p in model.parameters())
    s = SIZES[size]
    num_cached = 2 * s["num_hidden_layers"] * s["hidden_size"] * (len(prompt) + 12) * SLOTS
    flops = 2 * SLOTS * num_parameters + 2 * num_cached
    return step / max(flops / product_rate(s["hidden_size"]), 4 * (num_parameters + num_cached) / memory_rate())


def product_rate(width: int) -> float:
    """fp32 operations per second of a product of a decode step's shape."""
    x, weight = torch.randn(SLOTS, width), torch.randn(4 * width, width)
    return 2 * SLOTS * weight.numel() / best_seconds(lambda: linear(x, weight), 50)


def memory_rate() -> float:
    """Bytes per second of reading memory."""
    block = torch.ones(1 << 26)
    return 4 * len(block) / best_seconds(block.sum, 10)


def best_seconds(action: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def measure(size: str, repeats: int) -> tuple[dict[str, Any], dict[str, float]]:
    """One row of the table and its headlines."""
    model = build(size)
    contenders = {
        "fp32": ours(model, size, "fp32"),
        "bf16": ours(model, size, "bf16"),
        "int8": ours(model, size, "int8"),
        "generate": with_generate(build(size), size, "dynamic"),
        "static": with_generate(build(size), size, "static"),
        "continuous": with_continuous_batching(build(size), size),
    }
    warm_up = 0 if size == "97.5M" else 1  # where a turn takes minutes, its first moments don't matter
    rates = take_turns(contenders, repeats, warm_up)
    best_generate = [max(pair) for pair in zip(rates["generate"], rates["static"], strict=True)]
    ratios = {
        "fp32/generate": paired_ratio(rates["fp32"], best_generate),
        "fp32/continuous": paired_ratio(rates["fp32"], rates["continuous"]),
        "int8/fp32": paired_ratio(rates["int8"], rates["fp32"]),
        "bf16/fp32": paired_ratio(rates["bf16"], rates["fp32"]),
    }
    bound = round(step_over_bound(model, size), 2)
    row = {"model": size, **{n: spread(r, 1) for n, r in rates.items()}, **ratios, "step/bound": bound}
    headlines = {f"{name} at {size}": ratio["median"] for name, ratio in ratios.items()}
    return row, {**headlines, f"step/bound at {size}": bound}


def main(arguments: Sequence[str] | None = None) -> None:
    benchmark = Benchmark("generation", __doc__, repeats=5, quick_repeats=1)
    benchmark.parser.add_argument("--sizes", default=",".join(SIZES), help="of " + ", ".join(SIZES))
    benchmark.parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = benchmark.start(arguments)
    torch.set_num_threads(options.threads)
    rows, headlines = [], {}
    for size in options.sizes.split(","):
        row, more = measure(size, options.repeats)
        rows.append(row)
        headlines |= more
        benchmark.note(f"{size} done")
    benchmark.finish(
        rows, headlines, [f"tokens per second, {options.threads} threads; ratios against the faster cache"]
    )


if __name__ == "__main__":
    main()
