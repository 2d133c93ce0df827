"""The proof of weights at every sync: no false alarm in many good syncs, and every fault caught at the first.

    python -m benchmarks.weight_proof --model DIR_OR_GGUF [--syncs 200]     # beside it, always: the demo's model

A trainer takes small real steps and publishes; three generators (fp32, bf16, int8) take each version from the same
channel and prove it. Then, in each precision: five faults of delivery (a lost, half, zeroed, old and swapped copy),
the same five between a good delivery and the weights that are computed with, and a copy of a tied output head that
updates never reach. A fault is caught if that sync raises; after each, a good sync must be accepted again.
"""

import asyncio
import functools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Benchmark
from llamarl.algorithms import AIPOConfig
from llamarl.core.errors import WeightSyncError
from llamarl.core.records import Assignment, TrainSample, Trajectory
from llamarl.generation.executor import GeneratorConfig, GeneratorExecutor
from llamarl.models.blocks import Dense
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel
from llamarl.weights.testing import Fault, FaultyChannel

DEMO = Path(__file__).parents[1] / "llamarl" / "tasks" / "assets" / "format"
TEXTS = ["Name three colours of the rainbow.", "Write one sentence about rain in autumn, without any comma."]
DELIVERIES: tuple[Fault, ...] = ("skipped", "partial", "zeros", "old", "swapped")
PRECISIONS = ("fp32", "bf16", "int8")

Tensors = Mapping[str, torch.Tensor]


def half(new: Tensors, old: Tensors) -> Tensors:
    """The second half of each tensor stays as it was."""
    size = {name: tensor.numel() // 2 for name, tensor in new.items()}
    return {
        name: torch.cat([new[name].flatten()[:n], old[name].flatten()[n:]]).view_as(new[name])
        for name, n in size.items()
    }


def without_one(new: Tensors, old: Tensors) -> Tensors:
    """One matrix in the middle of the model stays as it was."""
    matrices = [name for name in new if name.endswith("down_proj.weight")]
    name = matrices[len(matrices) // 2]
    return {**new, name: old[name]}


def swapped(new: Tensors, old: Tensors) -> Tensors:
    """Two matrices of one shape change places."""
    a, b = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))
    return {**new, a: new[b], b: new[a]}


LOADINGS: dict[str, Callable[[Tensors, Tensors], Tensors]] = {
    "skipped": lambda new, old: old,
    "half": half,
    "zeros": lambda new, old: {name: torch.zeros_like(tensor) for name, tensor in new.items()},
    "without one": without_one,
    "swapped": swapped,
}
"""What a generator loads, of the version delivered and the version before."""


class SpoiltBackend:
    """A generator's backend that loads something else than it is handed; all else is the backend's own."""

    def __init__(self, inner: Any, spoil: Callable[[Tensors], Tensors]) -> None:
        self.inner, self._spoil = inner, spoil

    def load(self, tensors: Tensors) -> None:
        """Loads the spoilt tensors."""
        self.inner.load(self._spoil(tensors))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def samples_of(model: Any, prompts: list[tuple[int, ...]], step: int) -> Assignment:
    """A batch that pushes the likeliest words up or down, so that weights change at every step."""
    samples = []
    for group, prompt in enumerate(prompts):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1].argmax())
        for token_id, advantage in ((token, 1.0), (prompt[step % len(prompt)], -1.0)):
            sign = advantage if (step + group) % 2 else -advantage
            samples.append(TrainSample(Trajectory.sampled(prompt, (token_id,), (-1.0,), (step,)), sign, group))
    return Assignment(tuple(samples), num_prompts=len(prompts))


def prove(model_path: str, learning_rate: float, syncs: int, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a precision: alarms among good syncs, faults caught, cost of the precision, largest gap, seconds."""
    tokenizer = load_tokenizer(model_path)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    channel = LocalChannel()
    load = functools.partial(load_model, model_path)
    config = TrainerConfig(learning_rate=learning_rate, warmup_steps=0)
    trainer = PolicyTrainer(load(), AIPOConfig(), config, channel=channel, probe_prompts=prompts)
    deliveries = {precision: FaultyChannel(channel) for precision in PRECISIONS}
    generators = {
        precision: GeneratorExecutor(GeneratorConfig(precision=precision), load, tokenizer, deliveries[precision])
        for precision in PRECISIONS
    }
    for generator in generators.values():
        generator.setup()
    is_tied = bool(trainer.model.config.tie_word_embeddings)

    def train() -> Any:
        trainer.train(samples_of(trainer.model, prompts, trainer.version))
        return trainer.publish()

    rows = {
        precision: {
            "model": Path(model_path).name,
            "precision": precision,
            "good syncs": 0,
            "false alarms": 0,
            "faults": 0,
            "caught": 0,
            "missed": [],
            "cost, mean nats": 0.0,
            "cost, largest": 0.0,
            "largest gap": 0.0,
        }
        for precision in PRECISIONS
    }

    def sync(precision: str, manifest: Any) -> bool:
        """Whether the generator accepts the version."""
        try:
            proof = asyncio.run(generators[precision].update_weights(manifest))
        except WeightSyncError as error:
            note(f"{precision}, version {manifest.version}: {error}")
            return False
        row = rows[precision]
        row["largest gap"] = max(row["largest gap"], proof.probe_gap)
        row["cost, mean nats"], row["cost, largest"] = proof.precision_cost.mean, proof.precision_cost.largest
        return True

    def sync_well(precision: str, manifest: Any) -> None:
        rows[precision]["good syncs"] += 1
        rows[precision]["false alarms"] += not sync(precision, manifest)

    manifest = trainer.publish()
    for number in range(syncs):
        for precision in PRECISIONS:
            sync_well(precision, manifest)
        if (number + 1) % 25 == 0:
            note(f"{Path(model_path).name}: {number + 1} syncs")
        manifest = train()
    for precision in PRECISIONS:
        generator, delivery = generators[precision], deliveries[precision]
        backend = generator.batcher.backend

        def expect_alarm(name: str, restore: Callable[[], None], precision: str = precision) -> None:
            row = rows[precision]
            row["faults"] += 1
            if sync(precision, train()):
                row["missed"].append(name)
            else:
                row["caught"] += 1
            restore()
            sync_well(precision, train())

        sync_well(precision, manifest)
        for fault in DELIVERIES:
            delivery.fault = fault
            expect_alarm(f"delivery {fault}", lambda d=delivery: setattr(d, "fault", "none"))
        for name, spoil in LOADINGS.items():
            before = channel.fetch(trainer.version)
            generator.batcher.backend = SpoiltBackend(backend, lambda new, s=spoil, old=before: s(new, old))
            expect_alarm(f"loading {name}", lambda g=generator, b=backend: setattr(g.batcher, "backend", b))
        if is_tied:
            decoder: Any = backend.decoder
            head = decoder.head
            decoder.head = Dense(decoder.named_views()["model.embed_tokens.weight"].clone())
            expect_alarm("stale tied head", lambda d=decoder, h=head: setattr(d, "head", h))
        manifest = train()
    return [{**row, "missed": ", ".join(row["missed"]) or "none"} for row in rows.values()]


def main() -> None:
    """The command line."""
    benchmark = Benchmark("weight_proof", __doc__, repeats=1, quick_repeats=1, max_load=math.inf)  # no clock
    benchmark.parser.add_argument("--model", help="checkpoint directory or GGUF file, beside the demo's model")
    benchmark.parser.add_argument("--syncs", type=int, default=200, help="good syncs of each model (default 200)")
    options = benchmark.start()
    syncs = 5 if options.quick else options.syncs
    rows = prove(str(DEMO), 2e-4, syncs, benchmark.note)
    if options.model:
        rows += prove(options.model, 1e-5, syncs, benchmark.note)
    alarms = sum(row["false alarms"] for row in rows)
    missed = sum(row["faults"] - row["caught"] for row in rows)
    benchmark.finish(rows, {"false alarms": alarms, "faults missed": missed})
    if alarms or missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
