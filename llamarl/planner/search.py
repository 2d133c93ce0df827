"""The best way to run a workload on so many devices: who gets how many, cut how, in which precision.

Asynchronous plans give trainer and generators devices of their own; synchronous ones have both on every device, one
after the other, or on devices of their own. All are compared by the cost model, and the answer may be "synchronous", or
that nothing fits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llamarl.core.errors import ConfigError
from llamarl.planner.cost import (
    GeneratorCost,
    Rates,
    Workload,
    batch_seconds,
    default_rates,
    steady_seconds,
    sync_seconds,
    train_seconds,
)
from llamarl.planner.devices import Device
from llamarl.planner.lengths import mix
from llamarl.planner.memory import (
    Checkpointing,
    Precision,
    TrainerLayout,
    cache_bytes_per_token,
    generator_memory,
    trainer_memory,
)
from llamarl.planner.shapes import ModelShape

Mode = Literal["asynchronous", "synchronous"]
USABLE = 0.9
"""Share of a device's memory that a plan may fill; the rest is the allocator's, the driver's and the network's."""
LARGEST_MICRO_BATCH = 16384
MOST_SLOTS = 1024
LEAST_GAIN = 0.05
"""An asynchronous plan must save so much of the synchronous step to be chosen: what it gains, staleness costs."""
_MOST_SPLITS = 48
_DEGREES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Limits:
    """The choices of a plan."""

    staleness: int = 1
    precisions: tuple[Precision, ...] = ()
    """Number formats of generators; empty: bf16, and fp8 where the device has it; on a CPU fp32."""
    trainer_precision: Precision | None = None
    """None: bf16; on a CPU fp32."""
    checkpointing: tuple[Checkpointing, ...] = ("none", "full")
    has_reference: bool = False
    adapters: int = 0
    """Numbers in the adapters that are trained in place of the weights (LoRA); 0: all weights are trained. Generators
    are then llamarl's own, which are one rank each and have no fp8."""
    lora_rank: int = 0
    """Rank of these adapters, for the settings of the run."""


@dataclass(frozen=True, slots=True)
class TrainerPlan:
    """The trainer's side of a plan."""

    layout: TrainerLayout
    micro_batch_tokens: int
    seconds: float
    """Seconds of a step's update."""
    memory: dict[str, int]
    """Bytes of one device by part."""


@dataclass(frozen=True, slots=True)
class GeneratorPlan:
    """The generators' side of a plan: so many alike."""

    replicas: int
    tp: int
    precision: Precision
    slots: int
    """Completions decoded together, on each."""
    seconds: float
    """Seconds of a step's completions: alone in a synchronous plan; of work at full slots in an asynchronous one."""
    active: float
    """Completions under way, on each, on average."""
    decode_seconds: float
    """Seconds of a decode step with so many."""
    memory: dict[str, int]
    """Bytes of one device by part."""

    @property
    def ranks(self) -> int:
        """Devices together."""
        return self.replicas * self.tp


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run a workload, and what the cost model says of it."""

    mode: Mode
    is_shared: bool
    """True where trainer and generators are on the same devices."""
    trainer: TrainerPlan
    generators: GeneratorPlan
    sync_seconds: float
    step_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The best plan, and the best ones of either mode; None where there is none."""

    best: Plan
    asynchronous: Plan | None
    synchronous: Plan | None


@dataclass(frozen=True, slots=True)
class Misfit:
    """The reason why nothing fits."""

    reason: str


class Search:
    """Looks for the best plan of a workload.

    Args:
        shape: the model.
        device: all devices are of this kind.
        workload: of one step.
        limits: what may be chosen.
        rates: what of the device's rates is reached.
    """

    def __init__(
        self, shape: ModelShape, device: Device, workload: Workload, limits: Limits, rates: Rates | None = None
    ) -> None:
        self.shape, self.device, self.workload, self.limits = shape, device, workload, limits
        self.rates = rates or default_rates()
        self.room = USABLE * device.memory_gib * 2**30
        self._row = workload.prompt_tokens + workload.lengths.longest
        is_cpu = device.name == "cpu"
        self._trainer_precision: Precision = limits.trainer_precision or ("fp32" if is_cpu else "bf16")
        defaults: tuple[Precision, ...] = (
            ("fp32",) if is_cpu else ("bf16", "fp8") if "fp8" in device.tflops and not limits.adapters else ("bf16",)
        )
        self._precisions = limits.precisions or defaults

    def find(self, devices: int) -> Answer | Misfit:
        """The best plan on so many devices.

        Raises:
            ConfigError: fewer than one device.
        """
        if devices < 1:
            raise ConfigError(f"gpus={devices}: must be at least 1")
        asynchronous = min(self._asynchronous(devices), key=_seconds, default=None)
        synchronous = min(self._synchronous(devices), key=_seconds, default=None)
        if synchronous is None and asynchronous is None:
            return Misfit(self._explain(devices))
        if synchronous is None or (
            asynchronous is not None and asynchronous.step_seconds <= (1.0 - LEAST_GAIN) * synchronous.step_seconds
        ):
            assert asynchronous is not None
            return Answer(asynchronous, asynchronous, synchronous)
        return Answer(synchronous, asynchronous, synchronous)

    def nearest(self, devices: int, most: int = 16384) -> int | None:
        """The smallest power of two times `devices` (at least as many as a node) at which something fits."""
        number = devices * 2
        while number <= most:
            if isinstance(self.find(number), Answer):
                return number
            number *= 2
        return None

    def share_one_parallelism(self, devices: int) -> Plan | None:
        """A synchronous plan as the LlamaRL paper's baseline is described: one model-parallel degree m for both sides.

        m is the least power of two of devices that hold weights, gradients and moments of the trainer and a generator's
        weights, and generators in the trainer's precision use all m, across nodes where m is larger than one. None
        where there are fewer than m devices.
        """
        precision = self._trainer_precision
        m = 1
        while (
            sum(trainer_memory(self.shape, TrainerLayout(m, precision=precision), 0).values())
            + (self._generator_memory(precision, m, 0)["weights"])
            > self.room
        ):
            m *= 2
        trainer = min(self.trainers(devices), key=_seconds_of, default=None)
        if m > devices or trainer is None:
            return None
        replicas = devices // m
        slots = math.ceil(self.workload.completions / replicas)
        memory = self._generator_memory(precision, m, slots)
        generators = GeneratorPlan(replicas, m, precision, slots, 0.0, 0.0, 0.0, memory)
        return self._run_after(trainer, generators, is_shared=True)

    # ---- trainer

    def trainers(self, ranks: int, taken: float = 0.0) -> Iterator[TrainerPlan]:
        """The ways to spread a trainer over so many ranks that fit beside what has taken so many bytes of each."""
        for tp in self._degrees(min(ranks, self.device.node)):
            if ranks % tp:
                continue
            fsdp = ranks // tp
            experts = self.shape.experts
            ep = 1 if experts is None else math.gcd(math.gcd(fsdp, self.device.node), experts.number)
            for checkpointing in self.limits.checkpointing:
                layout = TrainerLayout(fsdp, tp, 1, ep, self._trainer_precision, checkpointing)
                if (fitting := self._micro_batch(layout, taken)) is not None:
                    tokens, memory = fitting
                    micro_batches = math.ceil(self.workload.trained_tokens / fsdp / tokens)
                    seconds = train_seconds(
                        *(self.shape, self.device, self.rates, layout, self.workload),
                        micro_batches=micro_batches,
                        adapters=self.limits.adapters,
                    )
                    yield TrainerPlan(layout, tokens, seconds, memory)

    def _micro_batch(self, layout: TrainerLayout, taken: float) -> tuple[int, dict[str, int]] | None:
        """The largest power of two of tokens that fits, no less than one completion needs; and the memory."""
        least = math.ceil(self._row)
        tokens = max(
            least, min(LARGEST_MICRO_BATCH, 2 ** math.ceil(math.log2(self.workload.trained_tokens / layout.fsdp + 1)))
        )
        while True:
            limits = self.limits
            memory = trainer_memory(
                self.shape, layout, tokens, has_reference=limits.has_reference, adapters=limits.adapters
            )
            if sum(memory.values()) + taken <= self.room:
                return tokens, memory
            if tokens == least:
                return None
            tokens = max(least, tokens // 2)

    # ---- generators

    def generators(self, ranks: int, taken: float = 0.0) -> Iterator[GeneratorPlan]:
        """The ways to spread generators over so many ranks that fit, without their times."""
        for precision in self._precisions:
            for tp in self._degrees(1 if self.limits.adapters else ranks):
                replicas = min(ranks // tp, self.workload.completions)
                cost = self._cost(precision, tp)
                per_row = cache_bytes_per_token(self.shape, tp, cost.cache_precision) * self._row
                fixed = sum(self._generator_memory(precision, tp, 0).values())
                per_row += 8 * self.shape.vocabulary / tp
                slots = min(
                    MOST_SLOTS,
                    int((self.room - taken - fixed) / per_row),
                    math.ceil(self.workload.completions / replicas) * (self.limits.staleness + 1),
                )
                if slots >= 1:
                    memory = self._generator_memory(precision, tp, slots)
                    yield GeneratorPlan(replicas, tp, precision, slots, 0.0, 0.0, 0.0, memory)

    def _generator_memory(self, precision: Precision, tp: int, slots: int) -> dict[str, int]:
        cached = slots * self._row
        return generator_memory(
            self.shape,
            precision,
            tp,
            cached_tokens=cached,
            slots=slots,
            cache_precision=self._cost(precision, tp).cache_precision,
            adapters=self.limits.adapters,
        )

    def _cost(self, precision: Precision, tp: int) -> GeneratorCost:
        return GeneratorCost(self.shape, self.device, self.rates, precision, tp)

    def _degrees(self, most: int) -> Iterator[int]:
        return (degree for degree in _DEGREES if degree <= most and self.shape.heads % degree == 0)

    # ---- plans

    def _asynchronous(self, devices: int) -> Iterator[Plan]:
        """The best plan of each split of the devices and each kind of generator."""
        if self.limits.staleness == 0:
            return
        best = math.inf
        for ranks in _splits(devices):
            trainer = min(self.trainers(ranks), key=_seconds_of, default=None)
            if trainer is None or trainer.seconds >= best:
                continue
            for generators in self.generators(devices - ranks):
                plan = self._run_beside(trainer, generators)
                best = min(best, plan.step_seconds)
                yield plan

    def _run_beside(self, trainer: TrainerPlan, generators: GeneratorPlan) -> Plan:
        cost, workload = self._cost(generators.precision, generators.tp), self.workload
        share = workload.completions / generators.replicas
        prefill = cost.prefill_seconds(workload.prompts * workload.prompt_tokens / generators.replicas)
        sync = self._sync(trainer, generators)
        seconds, active = steady_seconds(
            cost.step_seconds,
            workload,
            share,
            generators.slots,
            train_seconds=trainer.seconds + sync,
            staleness=self.limits.staleness,
            other_seconds=prefill,
        )
        context = workload.mean_context
        full = share * workload.lengths.mean * cost.step_seconds(generators.slots, generators.slots * context)
        busy = full / generators.slots + prefill
        decode = cost.step_seconds(active, active * context)
        generators = replace(generators, seconds=busy, active=active, decode_seconds=decode)
        return Plan("asynchronous", False, trainer, generators, sync, max(seconds, busy))

    def _synchronous(self, devices: int) -> Iterator[Plan]:
        """Plans with both sides on all devices; where none fits, on devices of their own."""
        shared = False
        for generators in self.generators(devices):
            fixed = sum(generators.memory.values()) - generators.memory["cache"]
            trainer = min(self.trainers(devices, fixed), key=_seconds_of, default=None)
            if trainer is None:
                continue
            # activations and cache are never there together: what is left of the larger is the cache's
            kept = sum(trainer.memory.get(part, 0) for part in ("weights", "gradients", "moments", "reference weights"))
            for fitting in self.generators(devices, kept):
                if (fitting.tp, fitting.precision) == (generators.tp, generators.precision):
                    shared = True
                    yield self._run_after(trainer, fitting, is_shared=True)
        if shared:
            return
        for ranks in _splits(devices):
            trainer = min(self.trainers(ranks), key=_seconds_of, default=None)
            if trainer is not None:
                for generators in self.generators(devices - ranks):
                    yield self._run_after(trainer, generators, is_shared=False)

    def _run_after(self, trainer: TrainerPlan, generators: GeneratorPlan, is_shared: bool) -> Plan:
        cost, workload = self._cost(generators.precision, generators.tp), self.workload
        share = math.ceil(workload.completions / generators.replicas)
        prefill = cost.prefill_seconds(workload.prompts * workload.prompt_tokens / generators.replicas)
        lengths = mix(workload.lengths.sample(min(share, 4096)))
        longest = workload.lengths.expected_longest(workload.completions)
        decode = batch_seconds(cost.step_seconds, [*lengths[:-1], longest], workload.prompt_tokens, generators.slots)
        sync = self._sync(trainer, generators)
        active = min(share, generators.slots)
        generators = replace(
            generators,
            seconds=decode + prefill,
            active=share
            * workload.lengths.mean
            * cost.step_seconds(active, active * workload.mean_context)
            / max(decode, 1e-12),
            decode_seconds=cost.step_seconds(active, active * workload.mean_context),
        )
        return Plan("synchronous", is_shared, trainer, generators, sync, trainer.seconds + decode + prefill + sync)

    def _sync(self, trainer: TrainerPlan, generators: GeneratorPlan) -> float:
        return sync_seconds(
            *(self.shape, self.device, self.rates, generators.precision),
            trainer.layout.ranks,
            generators.tp,
            self.limits.adapters,
        )

    # ---- misfits

    def _explain(self, devices: int) -> str:
        """The parts of the smallest trainer and generator, against what there is."""
        room = f"{self.room / 2**30:.1f} GiB of each of {devices} x {self.device.title} may be filled"
        layouts = [
            TrainerLayout(devices // tp, tp, 1, 1, self._trainer_precision, "full")
            for tp in self._degrees(min(devices, self.device.node))
            if devices % tp == 0
        ]
        parts = min(
            (
                trainer_memory(self.shape, layout, math.ceil(self._row), adapters=self.limits.adapters)
                for layout in layouts
            ),
            key=lambda memory: sum(memory.values()),
        )
        sizes = ", ".join(f"{part} {size / 2**30:.1f}" for part, size in parts.items())
        together = sum(parts.values()) / 2**30
        reason = f"the trainer alone takes {together:.1f} GiB of each device ({sizes}); {room}"
        if sum(parts.values()) <= self.room:
            reason = (
                f"trainer ({together:.1f} GiB on each device) and generators ({self.shape.parameters * 2 / 2**30:.0f} "
                f"GiB of bf16 weights each, besides their caches) fit neither together nor apart; {room}"
            )
        return reason


def _seconds(plan: Plan) -> float:
    return plan.step_seconds


def _seconds_of(trainer: TrainerPlan) -> float:
    return trainer.seconds


def _splits(devices: int) -> list[int]:
    """Sizes of a trainer worth a look: powers of two, and multiples of 8 on an even grid."""
    grid = {2**power for power in range(devices.bit_length()) if 2**power < devices}
    step = max(1, 8 * math.ceil(devices / 8 / _MOST_SPLITS)) if devices > _MOST_SPLITS else 1
    return sorted({*grid, *range(step, devices, step)}, reverse=True)
