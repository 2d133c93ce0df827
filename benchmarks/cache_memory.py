"""Bytes of a generator's cache against those that the tokens held need, on a checkpoint; no clock.

    python -m benchmarks.cache_memory MODEL [--precision fp32] [--dialogues 16] [--longest 3000]

    dialogues    all under way at once, histories of log-normal length; a second turn goes on from the first
    groups       4 prompts x 8 completions of 32 to 96 tokens after prompts of 32 to 256, 16 rows at once

After each step: the cache's memory, and what the tokens of the active and kept rows need, the prompt of a group counted
once. `over needed` is the ratio of the two peaks. `rows as long as the longest` is what a dense cache would have taken
at its peak. `read per prompt token` is 1 where prefill reads each token of a prompt once: once for a group, and in a
second turn nothing of what the first one held. Token ids are arbitrary; the peak of the process has the checkpoint in
it twice, as it was loaded and as the generator holds it.
"""

import math
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Benchmark
from llamarl.core.records import Completion, GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.generation.native import NativeBackend, NativeGenerator
from llamarl.models.checkpoint import load_model

GROUPS, GROUP_SIZE, GROUP_SLOTS = 4, 8, 16


class Watch:
    """Runs requests and keeps the peaks."""

    def __init__(self, generator: NativeGenerator, backend: NativeBackend) -> None:
        sizes = backend.geometry
        self.generator, self.backend = generator, backend
        self._token_bytes = 2 * sizes.num_layers * sizes.num_kv_heads * sizes.head_dim * backend.cache.dtype.itemsize
        self.held = self.needed = self.dense = 0

    def run(self, requests: Sequence[GenerationRequest]) -> dict[int, tuple[Completion, ...]]:
        """Completes them; returns completions by key."""
        done: dict[int, tuple[Completion, ...]] = {}
        self.generator.add(requests)
        while self.generator.has_work:
            done.update(self.generator.step())
            self._note()
        return done

    def _note(self) -> None:
        cache, rows = self.backend.cache, range(self.generator.slots)
        lengths = [sum(block.num_tokens for block in cache.chain(row)) for row in rows]
        self.held = max(self.held, cache.num_bytes)
        self.needed = max(self.needed, cache.num_tokens * self._token_bytes)
        self.dense = max(self.dense, len([x for x in lengths if x]) * max(lengths) * self._token_bytes)

    def row(self, what: str, num_read: float) -> dict[str, Any]:
        """A line of the table."""
        return {
            "what": what,
            "cache, MB": round(self.held / 1e6, 1),
            "tokens held need, MB": round(self.needed / 1e6, 1),
            "over needed": round(self.held / self.needed, 3),
            "rows as long as the longest, MB": round(self.dense / 1e6, 1),
            "read per prompt token": round(num_read, 3),
            "peak of the process, GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        }


def build(model: Any, precision: Any, slots: int, reuses_cache: bool) -> Watch:
    generator = NativeGenerator(model, eos_ids=(), decode=lambda ids: "", precision=precision, slots=slots)
    generator.reuses_cache = reuses_cache
    backend = generator.backend
    assert isinstance(backend, NativeBackend)
    return Watch(generator, backend)


def hold_dialogues(watch: Watch, num_dialogues: int, longest: int, vocab_size: int) -> float:
    """Two turns of each dialogue; returns the tokens read over those that a turn adds."""
    chance = np.random.default_rng(0)
    lengths = chance.lognormal(math.log(longest / 4), 0.8, num_dialogues).clip(longest // 20, longest).astype(int)
    lengths[0] = longest
    prompts = [tuple(chance.integers(3, vocab_size, length).tolist()) for length in lengths]
    limits = [int(limit) for limit in chance.integers(8, 24, num_dialogues)]

    def ask(prompts: Sequence[tuple[int, ...]]) -> dict[int, tuple[Completion, ...]]:
        requests = [GenerationRequest(i, p, (i,), Sampling(max_tokens=limits[i])) for i, p in enumerate(prompts)]
        return watch.run(requests)

    first = ask(prompts)
    words = [tuple(chance.integers(3, vocab_size, 12).tolist()) for _ in prompts]
    second = [(*prompt, *first[i][0].token_ids, *words[i]) for i, prompt in enumerate(prompts)]
    ask(second)
    num_drawn = sum(limits) - len(limits)  # the last token of an answer is read with the next turn
    return watch.generator.num_read / (sum(map(len, second)) - num_drawn)


def complete_groups(watch: Watch, vocab_size: int) -> float:
    """Groups of one prompt each; returns the prompt tokens read over those of the prompts."""
    chance = np.random.default_rng(1)
    prompts = [tuple(chance.integers(3, vocab_size, chance.integers(32, 257)).tolist()) for _ in range(GROUPS)]
    requests = [
        GenerationRequest(
            key,
            prompt,
            tuple(range(key * GROUP_SIZE, (key + 1) * GROUP_SIZE)),
            Sampling(max_tokens=int(chance.integers(32, 97))),
        )
        for key, prompt in enumerate(prompts)
    ]
    watch.run(requests)
    return watch.generator.num_read / sum(map(len, prompts))


def main(arguments: Sequence[str] | None = None) -> None:
    benchmark = Benchmark("cache_memory", __doc__, repeats=1, quick_repeats=1, max_load=math.inf)  # no clock
    benchmark.parser.add_argument("model", type=Path, help="checkpoint directory")
    benchmark.parser.add_argument("--precision", default="fp32", help="fp32, bf16 or int8")
    benchmark.parser.add_argument("--dialogues", type=int, default=16, help="how many at once")
    benchmark.parser.add_argument("--longest", type=int, default=3000, help="tokens of the longest history")
    benchmark.parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = benchmark.start(arguments)
    torch.set_num_threads(options.threads)
    model: Any = load_model(options.model, dtype="float32")
    dialogues = build(model, options.precision, options.dialogues, reuses_cache=True)
    num_read = hold_dialogues(dialogues, options.dialogues, options.longest, model.config.vocab_size)
    rows = [dialogues.row("dialogues", num_read)]
    benchmark.note(f"dialogues done: {rows[0]}")
    groups = build(model, options.precision, GROUP_SLOTS, reuses_cache=False)
    rows.append(groups.row("groups", complete_groups(groups, model.config.vocab_size)))
    headlines = {f"{row['what']}, over needed": row["over needed"] for row in rows}
    benchmark.finish(rows, headlines, [f"{options.model.name}, {options.precision}, {options.dialogues} dialogues"])


if __name__ == "__main__":
    main()
