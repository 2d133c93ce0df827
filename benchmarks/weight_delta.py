"""What a delta between two versions of the weights saves, and what it costs, on real steps.

    python -m benchmarks.weight_delta [--model DIR] [--steps 20]        # beside it, always: the demo's model

The demo's model takes GRPO steps on the demo's prompts and reward, at the demo's learning rate and at lower ones; the
other model takes small steps on two prompts. After each, the weights that generators would get, in fp32 and in bf16,
are compared with those of the step before (`weights.delta`), the delta is applied to a copy, and the copy is proved by
checksums. `delta / full` is the share of the bytes that travel; `pays below` the speed of a connection at which the
bytes saved take as long as finding and applying them: over a faster one a full copy is quicker.
"""

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Benchmark
from benchmarks.grpo_ours import steps as grpo_steps
from benchmarks.weight_proof import TEXTS, samples_of
from llamarl.algorithms import AIPOConfig
from llamarl.core.records import WeightManifest
from llamarl.core.shards import Sharding
from llamarl.functional.checksum import checksum, verify
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.tasks.demo import DEMO_CHECKPOINT
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel
from llamarl.weights.delta import apply_delta, encode_delta

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEMO_RATES = (2e-4, 1e-5, 1e-6)
"""The first is that of the demo's recipe."""
MODEL_RATE = 1e-6
SETTLE = 2
"""Steps that are not counted: Adam's first ones move every weight by the whole learning rate."""

Weights = Mapping[str, torch.Tensor]


class Observed(LocalChannel):
    """A channel that compares each publication with the one before."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, dict[str, torch.Tensor]] = {}
        self._version = 0
        self.found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in DTYPES}
        """Of each dtype and publication: bytes of the delta, bytes of a full copy, seconds to find and apply it."""

    def publish(self, version: int, tensors: Weights, sharding: Sharding | None = None) -> None:
        """Publishes, after it has looked."""
        for name, dtype in DTYPES.items():
            self._compare(name, version, {key: tensor.detach().to(dtype) for key, tensor in tensors.items()})
        self._version = version
        super().publish(version, tensors, sharding)

    def _compare(self, name: str, version: int, new: Weights) -> None:
        old = self._held.get(name)
        if old is None:
            self._held[name] = {key: tensor.clone() for key, tensor in new.items()}
            return
        started = time.perf_counter()
        delta = encode_delta(self._version, old, version, new)
        apply_delta(delta, self._version, old)
        seconds = time.perf_counter() - started
        verify(WeightManifest(version, checksum(new)), version, checksum(old))
        self.found[name].append((delta.num_bytes, sum(tensor.nbytes for tensor in new.values()), seconds))


def small_steps(model_path: str, channel: LocalChannel) -> Iterator[None]:
    """Steps of a larger model on two prompts."""
    tokenizer = load_tokenizer(model_path)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    config = TrainerConfig(learning_rate=MODEL_RATE, warmup_steps=0)
    trainer = PolicyTrainer(load_model(model_path), AIPOConfig(), config, channel=channel)
    while True:
        trainer.train(samples_of(trainer.model, prompts, trainer.version))
        trainer.publish()
        yield


def rows_of(model: str, rate: float, channel: Observed) -> list[dict[str, Any]]:
    rows = []
    for name, found in channel.found.items():
        deltas, fulls, seconds = (statistics.median(column) for column in zip(*found[SETTLE:], strict=True))
        row: dict[str, Any] = {
            "model": model,
            "learning rate": f"{rate:g}",
            "sent as": name,
            "steps": len(found) - SETTLE,
        }
        row |= {"delta / full": round(deltas / fulls, 4), "milliseconds": round(1e3 * seconds, 1)}
        saved = (fulls - deltas) / seconds
        rows.append(row | {"pays below, Gbit/s": round(8e-9 * saved, 2) if saved > 0 else "never"})
    return rows


def main() -> None:
    """The command line."""
    # Shares of bytes do not depend on who else works here; the seconds do, and say so.
    benchmark = Benchmark("weight_delta", __doc__, repeats=1, quick_repeats=1, max_load=math.inf)
    benchmark.parser.add_argument("--model", help="checkpoint directory, beside the demo's model")
    benchmark.parser.add_argument("--steps", type=int, default=20, help="steps of each (default 20)")
    options = benchmark.start()
    torch.set_num_threads(1)
    count = SETTLE + (2 if options.quick else options.steps) + 1
    cases: list[tuple[str, float, Observed, Iterator[Any]]] = []
    for rate in DEMO_RATES:
        channel = Observed()
        cases.append(("demo, 0.34M", rate, channel, grpo_steps("0.34M", str(DEMO_CHECKPOINT), rate, channel)))
    if options.model:
        channel = Observed()
        cases.append((Path(options.model).name, MODEL_RATE, channel, small_steps(options.model, channel)))
    rows: list[dict[str, Any]] = []
    for model, rate, channel, run in cases:
        for _ in range(count):
            next(run)
        rows += rows_of(model, rate, channel)
        benchmark.note(f"{model} at {rate:g}")
    headlines = {f"{row['model']} at {row['learning rate']}, {row['sent as']}": row["delta / full"] for row in rows}
    notes = ["milliseconds are of a machine on which others worked too, where the load says so"]
    benchmark.finish(rows, headlines, notes)


if __name__ == "__main__":
    main()
