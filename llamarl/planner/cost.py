"""The time of a run's parts: a roofline for training, prefill and decoding, and the weights' way between them.

Each part takes the larger of what its arithmetic and its memory traffic need at the device's rates, times a share of
the peak that real programs reach, and what its ranks must tell each other. Two shares are fitted on public runs
(`data/rates.toml`); everything else comes from data sheets or is stated there as an assumption.
"""

import heapq
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from llamarl.planner.devices import Device
from llamarl.planner.lengths import Lengths
from llamarl.planner.memory import BYTES, Precision, TrainerLayout, activation_numbers, cache_bytes_per_token
from llamarl.planner.shapes import ModelShape

BUCKETS = 64
"""Most different lengths that a batch is taken apart into."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of a device's peak rates that programs reach, and delays."""

    compute_share: float
    """Share of the peak of matrix products, in training and prefill."""
    memory_share: float
    """Share of the read rate of memory, in decoding."""
    link_share: float
    """Share of the links' rates."""
    node_delay: float
    """Seconds of one small all-reduce inside a node."""
    network_delay: float
    """Seconds of one small all-reduce between nodes."""
    step_delay: float = 0.0
    """Seconds of a decode step beside its model."""
    update_delay: float = 0.0
    """Seconds of an update beside its model."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of one step of a run."""

    prompts: int
    samples: int
    """Completions of each prompt."""
    lengths: Lengths
    prompt_tokens: float = 128.0
    has_shared_prompts: bool = True
    """True where the trainer computes a group's prompt once."""
    extra_forwards: int = 0
    """Forward passes over the batch beside the trained one, such as a reference policy's."""
    trained_share: float = 1.0
    """Share of the completions that have an advantage: the trainer leaves groups of equal rewards out."""

    @property
    def completions(self) -> int:
        """Completions of a step."""
        return self.prompts * self.samples

    @property
    def trained_tokens(self) -> float:
        """Tokens that pass through the trainer in a step."""
        prompts = self.prompts if self.has_shared_prompts else self.completions
        return self.trained_share * (prompts * self.prompt_tokens + self.completions * self.lengths.mean)

    @property
    def generated_tokens(self) -> float:
        """Tokens that are sampled in a step."""
        return self.completions * self.lengths.mean

    @property
    def mean_context(self) -> float:
        """Mean number of tokens that a token attends to."""
        return self.prompt_tokens + self.lengths.mean_context


@cache
def default_rates() -> Rates:
    """The rates that come with the package."""
    values = tomllib.loads(resources.files("llamarl.planner").joinpath("data/rates.toml").read_text(encoding="utf-8"))
    return Rates(**values["fitted"], **values["assumed"])


# ---- training -------------------------------------------------------------------------------------------------------


def train_seconds(
    shape: ModelShape,
    device: Device,
    rates: Rates,
    layout: TrainerLayout,
    workload: Workload,
    *,
    bubble: float = 0.0,
    micro_batches: int = 1,
    adapters: int = 0,
) -> float:
    """Seconds of one update of the policy on a batch.

    The arithmetic of a token is 2 N for a forward pass and 4 N for a backward pass, N the parameters that it is
    multiplied with, and 4 c H D per layer for a forward pass's attention over c tokens. Ranks of tensor parallelism
    gather and scatter activations without doing anything else meanwhile; gathered weights and summed gradients travel
    while the trainer computes, so the longer of the two counts. Tokens go to their experts and back, uncovered.

    Args:
        shape: the model.
        device: of the trainer.
        rates: what of the device's rates is reached.
        layout: how the trainer is spread.
        workload: the batch.
        bubble: idle share of a pipeline's time, relative to its work: (stages - 1) / micro-batches.
        micro_batches: forward and backward passes per step on each rank, each of which gathers the weights.
        adapters: numbers in the adapters that are trained beside frozen weights; 0: all weights are trained. Frozen
            weights have no gradient, which is half of a backward pass's products, and none that travels.
    """
    linear_passes = 3.0 - bool(adapters) + _AGAIN[layout.checkpointing] + workload.extra_forwards
    passes = 3.0 + (layout.checkpointing == "full") + workload.extra_forwards
    tokens, number = workload.trained_tokens, max(2, BYTES[layout.precision])
    head = 2 * shape.vocabulary * shape.hidden * (passes - bool(adapters))  # never in fp8
    linear = 2 * (shape.matmul_parameters + adapters) * linear_passes - head
    attention = 4 * workload.mean_context * shape.attention_width * shape.layers * passes
    peak, plain_peak = device.peak(layout.precision), device.peak("bf16" if number == 2 else "fp32")
    arithmetic = (linear / peak + (head + attention) / plain_peak) / rates.compute_share
    traffic = 2 * number * activation_numbers(shape) * shape.layers * passes
    memory = traffic / (1e9 * device.memory_gb_per_second * rates.memory_share)
    told = 4 * passes * (layout.tp - 1) * shape.hidden * number * shape.layers / _link(device, rates, layout.tp)
    sent = _expert_traffic(shape, layout, number) * passes / _link(device, rates, layout.ep)
    idle = max(1.0, layout.fsdp / workload.completions)  # ranks beyond the completions have nothing to do
    work = idle * tokens * (arithmetic + memory + told + sent) / layout.ranks * (1.0 + bubble)
    weights = shape.parameters - shape.expert_parameters * (layout.ep > 1)
    moved = (micro_batches * 2 * number * weights + 4 * (adapters or weights)) / (layout.tp * layout.pp)
    moved *= layout.fsdp > 1
    optimizer = (
        28 * (adapters or shape.parameters) / layout.ranks / (1e9 * device.memory_gb_per_second * rates.memory_share)
    )
    return max(work, moved / _gathering_link(device, rates, layout)) + optimizer + rates.update_delay


_AGAIN = {"none": 0.0, "selective": 0.37, "full": 1.0}
"""Share of a layer's matrix products that are computed again; selective: of every other one, of a Llama layer."""


def _expert_traffic(shape: ModelShape, layout: TrainerLayout, number: int) -> float:
    """Bytes per token that its ranks send in one pass to experts on other ranks, and back."""
    if shape.experts is None or layout.ep == 1:
        return 0.0
    return 2 * shape.experts.active * shape.hidden * number * shape.expert_layers * (layout.ep - 1) / layout.ep


def _link(device: Device, rates: Rates, ranks: int) -> float:
    """Bytes per second between so many neighbouring ranks."""
    per_second = device.link_gb_per_second if ranks <= device.node else device.network_gb_per_second
    return 1e9 * rates.link_share * per_second


def _gathering_link(device: Device, rates: Rates, layout: TrainerLayout) -> float:
    """Bytes per second at which a rank takes in gathered weights: all ranks of a node share what enters it."""
    per_second = device.link_gb_per_second
    if layout.ranks > device.node:
        per_second = min(per_second, device.network_gb_per_second * max(1.0, device.node / layout.tp))
    return 1e9 * rates.link_share * per_second


# ---- generation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GeneratorCost:
    """The cost of one generator of `tp` ranks."""

    shape: ModelShape
    device: Device
    rates: Rates
    precision: Precision
    tp: int

    def step_seconds(self, active: float, cached: float) -> float:
        """Seconds of one decode step.

        Args:
            active: completions, each of which gets one token.
            cached: tokens in their caches together.
        """
        shape = self.shape
        number = BYTES[self.precision]
        read = shape.parameters - shape.expert_parameters * (1.0 - shape.touched_experts(active))
        traffic = number * read / self.tp + cached * cache_bytes_per_token(shape, self.tp, self.cache_precision)
        memory = traffic / (1e9 * self.device.memory_gb_per_second * self.rates.memory_share)
        products = 2 * shape.matmul_parameters * active + 4 * cached * shape.attention_width * shape.layers
        compute = products / (self.tp * self.rates.compute_share * self.device.peak(self.precision))
        return max(memory, compute) + self._told(active) + self.rates.step_delay

    def prefill_seconds(self, tokens: float) -> float:
        """Seconds to read so many tokens of prompts."""
        products = 2 * self.shape.matmul_parameters * tokens
        return products / (self.tp * self.rates.compute_share * self.device.peak(self.precision))

    def _told(self, active: float) -> float:
        """Seconds of a step's all-reduces, two in each layer."""
        if self.tp == 1:
            return 0.0
        delay = self.rates.node_delay if self.tp <= self.device.node else self.rates.network_delay
        size = 2 * (self.tp - 1) / self.tp * active * self.shape.hidden * 2
        return 2 * self.shape.layers * (delay + size / _link(self.device, self.rates, self.tp))

    @property
    def cache_precision(self) -> Precision:
        """Number format of keys and values."""
        return "fp32" if self.precision in ("fp32", "int8") else "bf16"


def batch_seconds(
    step_seconds: Callable[[float, float], float], lengths: Sequence[float], prompt_tokens: float, slots: int
) -> float:
    """Seconds until the last of a batch of completions is done, where a free slot takes the next at once.

    Args:
        step_seconds: seconds of a decode step by active completions and cached tokens.
        lengths: of the completions, in the order in which they start.
        prompt_tokens: in the cache before a completion's first token.
        slots: completions decoded together.
    """
    weight = max(1.0, len(lengths) / BUCKETS)
    if weight > 1:  # one of several of nearly the same length stands for them all
        lengths = [lengths[int(index * weight)] for index in range(BUCKETS)]
    places = max(1, min(len(lengths), int(slots / weight)))
    under_way = [(length, 0.0) for length in lengths[:places]]  # steps of the batch at which each ends and began
    heapq.heapify(under_way)
    waiting, position, begun, seconds = list(reversed(lengths[places:])), 0.0, 0.0, 0.0
    while under_way:
        end, start = heapq.heappop(under_way)
        number, middle = len(under_way) + 1, (position + end) / 2
        cached = number * (prompt_tokens + middle) - begun
        seconds += (end - position) * step_seconds(weight * number, weight * cached)
        position, begun = end, begun - start
        if waiting:
            heapq.heappush(under_way, (end + waiting.pop(), end))
            begun += end
    return seconds


def steady_seconds(
    step_seconds: Callable[[float, float], float],
    workload: Workload,
    completions: float,
    slots: int,
    *,
    train_seconds: float,
    staleness: int,
    other_seconds: float = 0.0,
) -> tuple[float, float]:
    """Seconds of a step, and completions under way, of a generator that runs beside the trainer without a stop.

    With c completions under way, whose decode step takes t(c), the generator makes steps at the pace T, and T is at
    least what the trainer needs, and what the longest completion's batch needs on its way through the run, of which
    `staleness + 1` may be under way at once:

        T = completions E[l] t(c) / c          T >= train          T >= (longest t(c) + other + train) / (staleness + 1)

    T falls with c, and the last bound rises, so the best c is the largest that keeps both.

    Args:
        step_seconds: seconds of a decode step by active completions and cached tokens.
        workload: the run's.
        completions: of a step, on this generator.
        slots: completions decoded together, at most.
        train_seconds: of a step.
        staleness: versions that a trained token may be behind.
        other_seconds: of the batch's way beside decoding and training: prefill, judging.

    Returns:
        T and c.
    """
    mean, longest = workload.lengths.mean, workload.lengths.expected_longest(workload.completions)
    context = workload.mean_context

    def pace(active: float) -> tuple[float, bool]:
        """T, and whether the bounds are kept."""
        decode = step_seconds(active, active * context)
        seconds = completions * mean * decode / active
        under_way = longest * decode + other_seconds + train_seconds
        return seconds, seconds >= max(train_seconds, under_way / (staleness + 1))

    low, high = 0.0, float(slots)
    if not pace(high)[1]:
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if pace(middle)[1] else (low, middle)
        high = max(low, 1e-9)
    return pace(high)[0], high


# ---- weights --------------------------------------------------------------------------------------------------------


def published_bytes(shape: ModelShape, precision: Precision, device: Device, adapters: int = 0) -> int:
    """Bytes of one version of the weights on its way; of adapters, where they are trained, in fp32.

    Args:
        shape: the model.
        precision: of the generators' weights; int8 and fp8 are made by the receiver, from bf16.
        device: at both ends; a CPU sends fp32 to int8.
        adapters: numbers in the adapters; 0: all weights are sent.
    """
    if adapters:
        return BYTES["fp32"] * adapters
    number = BYTES["bf16" if precision in ("fp8", "int8") and device.name != "cpu" else precision]
    return number * shape.parameters


def sync_seconds(
    shape: ModelShape,
    device: Device,
    rates: Rates,
    precision: Precision,
    senders: int,
    tp: int,
    adapters: int = 0,
) -> float:
    """Seconds for one version of the weights to reach all generators.

    Every generator takes in one copy through its `tp` links at once, while others pass it on; the trainer's ranks send
    each weight once.

    Args:
        shape: the model.
        device: at both ends.
        rates: what of the links' rates is reached.
        precision: of the generators' weights.
        senders: ranks of the trainer.
        tp: ranks of a generator.
        adapters: numbers in the adapters that are sent in place of the weights; 0: the weights.
    """
    size = published_bytes(shape, precision, device, adapters)
    return size / (1e9 * rates.link_share * device.network_gb_per_second * min(senders, tp))
