"""The theory of asynchronous RL steps as functions (LlamaRL, arXiv 2505.24034, the section on its theorem).

Trainer and generator cost g_t(b) and g_g(b) device-seconds per sample, strictly decreasing in the batch b of an
instance of m devices. With weights W, memory M, a sample's activations A and cache K in bytes:

    synchronous    c_t W + A b_t + c_g W + K b_g <= m M          T = (B / G) min [g_t(b_t) + g_g(b_g)]
    asynchronous   c_t W + A b_t <= m_t M,  c_g W + K b_g <= m_g M
                   T = (B / G) min max(g_t(b_t) / theta, g_g(b_g) / (1 - theta))

The theorem: T is strictly smaller in the second case, wherever the first has a solution, if theta may be any share of
the devices. `docs/concepts/when-asynchrony-pays.md` has the proof, and where it ends.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from llamarl.planner.cost import GeneratorCost, Rates, Workload, train_seconds
from llamarl.planner.devices import Device
from llamarl.planner.memory import BYTES, Precision, TrainerLayout, cache_bytes_per_token
from llamarl.planner.search import USABLE
from llamarl.planner.shapes import ModelShape

Curve = Callable[[float, int], float]
"""Device-seconds per sample by batch and devices of an instance; strictly decreasing in the batch."""


@dataclass(frozen=True, slots=True)
class Costs:
    """A model, its devices, and what a sample costs on either side."""

    train: Curve
    generate: Curve
    activations: float
    """Bytes of a sample in training."""
    cache: float
    """Bytes of a sample in generation."""
    trainer_weights: float
    """Bytes of weights, gradients and moments."""
    generator_weights: float
    memory: float
    """Bytes of one device."""
    degrees: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Devices that an instance may have."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Instances, batches, and the device-seconds per sample of either side."""

    train_devices: int
    generate_devices: int
    train_batch: float
    generate_batch: float
    train: float
    generate: float

    @property
    def total(self) -> float:
        """Device-seconds per sample, of both sides."""
        return self.train + self.generate


def best_share(train: float, generate: float) -> float:
    """The trainer's share of the devices that makes max(train / share, generate / (1 - share)) least.

    The least value is train + generate: both sides take as long.
    """
    return train / (train + generate)


def synchronous_choices(costs: Costs, points: int = 64) -> Iterator[Choice]:
    """The best step with both sides on the same devices: all of the memory is used, in so many divisions of it.

    Less than all of it is never better, as both costs fall with the batch.
    """
    for devices in costs.degrees:
        free = devices * costs.memory - costs.trainer_weights - costs.generator_weights
        if free <= 0:
            continue
        for point in range(1, points):
            train_batch = free * point / points / costs.activations
            generate_batch = free * (points - point) / points / costs.cache
            yield _choose(costs, devices, devices, train_batch, generate_batch)


def asynchronous_choice(costs: Costs) -> Choice | None:
    """The best with either side on devices of its own, each of which it fills; None where one of them does not fit."""
    sides = []
    for weights, sample, curve in (
        (costs.trainer_weights, costs.activations, costs.train),
        (costs.generator_weights, costs.cache, costs.generate),
    ):
        found = []
        for devices in costs.degrees:
            if (batch := (devices * costs.memory - weights) / sample) > 0:
                found.append((curve(batch, devices), devices, batch))
        if not found:
            return None
        sides.append(min(found))
    (_, train_devices, train_batch), (_, generate_devices, generate_batch) = sides
    return _choose(costs, train_devices, generate_devices, train_batch, generate_batch)


def improve(costs: Costs, choice: Choice) -> Choice:
    """The proof's step: an asynchronous choice that is strictly better than a synchronous one, on instances as large.

    Either side gets, beside its own batch, what the other's weights and samples took of the memory.
    """
    return _choose(
        costs,
        choice.train_devices,
        choice.generate_devices,
        choice.train_batch + (costs.generator_weights + costs.cache * choice.generate_batch) / costs.activations,
        choice.generate_batch + (costs.trainer_weights + costs.activations * choice.train_batch) / costs.cache,
    )


def whole_devices(costs: Costs, devices: int) -> float | None:
    """The least device-seconds per sample of an asynchronous run on so many devices, in whole instances.

    Here theta is no free number any more: either side has a whole number of instances, and what is left over idles.
    """
    best = math.inf
    for train_devices in costs.degrees:
        train_batch = (train_devices * costs.memory - costs.trainer_weights) / costs.activations
        if train_batch <= 0:
            continue
        for generate_devices in costs.degrees:
            generate_batch = (generate_devices * costs.memory - costs.generator_weights) / costs.cache
            if generate_batch <= 0:
                continue
            choice = _choose(costs, train_devices, generate_devices, train_batch, generate_batch)
            for instances in range(1, devices // train_devices + 1):
                left = (devices - instances * train_devices) // generate_devices
                if left:
                    sides = (
                        choice.train / (instances * train_devices),
                        choice.generate / (left * generate_devices),
                    )
                    best = min(best, devices * max(sides))
    return best if math.isfinite(best) else None


def whole_devices_synchronous(costs: Costs, devices: int, points: int = 64) -> float | None:
    """The least device-seconds per sample of a synchronous run in whole instances on so many devices."""
    found = [
        choice.total * devices / (devices // choice.train_devices * choice.train_devices)
        for choice in synchronous_choices(costs, points)
        if choice.train_devices <= devices
    ]
    return min(found, default=None)


def share_lost(devices: int, number: int = 60) -> float:
    """Share of random cases with a synchronous solution where whole instances leave no advantage, or no room."""
    lost = total = 0
    for seed in range(number):
        costs = random_costs(random.Random(seed))
        synchronous = whole_devices_synchronous(costs, devices, 16)
        if synchronous is not None:
            total += 1
            asynchronous = whole_devices(costs, devices)
            lost += asynchronous is None or asynchronous >= synchronous
    return lost / total


def throughput_gain(
    shape: ModelShape,
    device: Device,
    rates: Rates,
    workload: Workload,
    precisions: Sequence[Precision] = ("bf16", "fp8"),
    most: int = 512,
) -> tuple[float, float]:
    """Device-seconds per sample of a model in synchronous and asynchronous runs, as the theorem has them.

    Batches are as large as memory allows and steps are long, so that tails and waits don't count. A synchronous run has
    one model-parallel degree and bf16 for both sides, and both in memory; in an asynchronous one either side has its
    own, and generators may have another precision.

    Args:
        shape: the model.
        device: of both sides.
        rates: what of the device's rates is reached.
        workload: its lengths.
        precisions: of generators beside a trainer.
        most: devices of an instance, at most.
    """
    degrees = [2**power for power in range(most.bit_length()) if 2**power <= min(most, shape.heads * device.node)]
    memory = USABLE * device.memory_gib * 2**30
    tokens = workload.prompt_tokens + workload.lengths.mean
    per_sample = 2.0 * tokens * shape.hidden * (shape.layers + 2)

    def train(batch: float, m: int) -> float:
        tp = min(m, device.node)
        layout = TrainerLayout(m // tp, tp, precision="bf16", checkpointing="full")
        seconds = train_seconds(shape, device, rates, layout, replace(workload, prompts=1, samples=max(1, int(batch))))
        return m * seconds / max(1, int(batch))

    def generate(batch: float, m: int, precision: Precision) -> float:
        step = GeneratorCost(shape, device, rates, precision, m).step_seconds(batch, batch * workload.mean_context)
        return m * workload.lengths.mean * step / batch

    def cached(m: int) -> float:
        return m * cache_bytes_per_token(shape, m) * tokens

    together, trains, generates = [], [], []
    for m in degrees:
        if (free := m * memory - (16 + 2) * shape.parameters) > 0:
            shares = [point / 32 for point in range(1, 32)]
            together += [
                train(share * free / per_sample, m) + generate((1 - share) * free / cached(m), m, "bf16")
                for share in shares
                if share * free >= per_sample
            ]
        if (free := m * memory - 16 * shape.parameters) > per_sample:
            trains.append(train(free / per_sample, m))
        for precision in precisions:
            if (free := m * memory - BYTES[precision] * shape.parameters) > cached(m):
                generates.append(generate(free / cached(m), m, precision))
    return min(together), min(trains) + min(generates)


def random_costs(rng: random.Random) -> Costs:
    """Costs with curves a + c / b^p, of either side by chance, for tests and figures."""

    def curve() -> Curve:
        floor, scale, power = rng.uniform(0.0, 2.0), rng.uniform(0.1, 10.0), rng.uniform(0.1, 1.5)
        apart = rng.uniform(0.0, 0.15)  # what each doubling of an instance costs more
        return lambda batch, devices: (floor + scale / batch**power) * (1 + apart * math.log2(devices))

    weights = rng.uniform(0.05, 8.0)
    return Costs(
        train=curve(),
        generate=curve(),
        activations=rng.uniform(0.01, 1.0),
        cache=rng.uniform(0.001, 0.5),
        trainer_weights=rng.choice((4.0, 8.0)) * weights,
        generator_weights=rng.choice((0.5, 1.0)) * weights,
        memory=1.0,
    )


def _choose(
    costs: Costs, train_devices: int, generate_devices: int, train_batch: float, generate_batch: float
) -> Choice:
    return Choice(
        train_devices,
        generate_devices,
        train_batch,
        generate_batch,
        costs.train(train_batch, train_devices),
        costs.generate(generate_batch, generate_devices),
    )
