import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.planner.cost import (
    GeneratorCost,
    Rates,
    Workload,
    batch_seconds,
    published_bytes,
    steady_seconds,
    sync_seconds,
    train_seconds,
)
from llamarl.planner.devices import device_names, find_device
from llamarl.planner.lengths import Lengths
from llamarl.planner.memory import TrainerLayout
from llamarl.planner.shapes import public_shape

LLAMA, H100 = public_shape("llama-3.1-8b"), find_device("h100")
IDEAL = Rates(compute_share=1.0, memory_share=1.0, link_share=1.0, node_delay=0.0, network_delay=0.0)


# golden


def test_decoding_one_completion_reads_all_weights() -> None:
    cost = GeneratorCost(LLAMA, find_device("a100-40gb"), IDEAL, "bf16", 1)
    assert 1 / cost.step_seconds(1, 0) == pytest.approx(1555e9 / (2 * 8_030_261_248), rel=1e-9)  # 97 tokens/s at best


def test_decoding_many_completions_is_bound_by_products() -> None:
    cost = GeneratorCost(LLAMA, H100, IDEAL, "bf16", 1)
    products = 8_030_261_248 - 128256 * 4096
    assert cost.step_seconds(4096, 0) == pytest.approx(2 * products * 4096 / 989.4e12, rel=1e-9)


def test_training_takes_six_products_a_parameter() -> None:
    workload = Workload(64, 1, Lengths(1, 1), 0.0)
    fast = Rates(1.0, 1e9, 1e9, 0.0, 0.0)  # memory and links cost nothing
    seconds = train_seconds(LLAMA, H100, fast, TrainerLayout(), workload)
    products = 6 * (8_030_261_248 - 128256 * 4096) * 64
    attention = 12 * 0.5 * 4096 * 32 * 64
    assert seconds == pytest.approx((products + attention) / 989.4e12, rel=1e-3)


def test_a_batch_by_hand() -> None:
    # two slots, lengths 3, 1, 1: rows 1 and 2 for a token, rows 1 and 3 for one, row 1 alone for one
    steps: list[tuple[float, float]] = []

    def step(active: float, cached: float) -> float:
        steps.append((active, cached))
        return active

    assert batch_seconds(step, [3.0, 1.0, 1.0], 10.0, slots=2) == 2 + 2 + 1
    # prompts, and on average half a token each; then one and a half and a half; then two and a half
    assert steps == [(2, 21), (2, 22), (1, 12.5)]


def test_the_pace_beside_a_trainer_by_hand() -> None:
    workload = Workload(10, 1, Lengths(100, 100), 0.0)

    def constant(active: float, cached: float) -> float:
        return 0.01  # a completion takes a second, however many there are

    # the batch's way: 1 s of decoding and 3 s of training, of which two may be under way at once
    seconds, active = steady_seconds(constant, workload, 10, 100, train_seconds=3.0, staleness=1)
    assert seconds == pytest.approx(3.0) and active == pytest.approx(10 * 1.0 / 3.0, rel=1e-3)
    seconds, _ = steady_seconds(constant, workload, 10, 100, train_seconds=0.1, staleness=1)
    assert seconds == pytest.approx((1.0 + 0.1) / 2, rel=1e-3)
    seconds, active = steady_seconds(constant, workload, 10, 4, train_seconds=0.1, staleness=9)
    assert seconds == pytest.approx(10 * 1.0 / 4) and active == 4  # four slots


def test_weights_go_through_the_smaller_side() -> None:
    assert sync_seconds(LLAMA, H100, IDEAL, "bf16", 8, 2) == pytest.approx(2 * 8_030_261_248 / (2 * 50e9))
    assert sync_seconds(LLAMA, H100, IDEAL, "bf16", 1, 8) == pytest.approx(2 * 8_030_261_248 / 50e9)


def test_adapters_alone_travel_and_half_of_a_backward_pass_is_spared() -> None:
    adapters = LLAMA.adapter_parameters(16)
    assert sync_seconds(LLAMA, H100, IDEAL, "bf16", 1, 1, adapters) == pytest.approx(4 * adapters / 50e9)
    assert published_bytes(LLAMA, "fp8", H100, adapters) == 4 * adapters
    assert published_bytes(LLAMA, "fp8", H100) == 2 * LLAMA.parameters
    workload = Workload(64, 8, Lengths(512.0, 512), 128.0)
    whole = train_seconds(LLAMA, H100, IDEAL, TrainerLayout(8), workload)
    less = train_seconds(LLAMA, H100, IDEAL, TrainerLayout(8), workload, adapters=adapters)
    assert 0.6 < less / whole < 0.9  # 4 N of 6 N products, and activations as before


def test_every_device_says_where_its_figures_come_from() -> None:
    for name in device_names():
        device = find_device(name)
        assert device.sources and all(device.sources)
        assert device.peak("bf16") > 0 and device.memory_gib > 0
    assert find_device("a100-80gb").peak("fp8") == 312e12  # of the next wider format


# invariance


@given(st.integers(1, 60), st.integers(1, 16), st.integers(0, 1000))
def test_a_batch_is_bounded_by_its_work_and_its_longest(number: int, slots: int, seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.uniform(1, 500) for _ in range(number)]
    seconds = batch_seconds(lambda active, cached: 1.0, lengths, 0.0, slots)
    low = max(max(lengths), sum(lengths) / slots)
    assert low - 1e-6 <= seconds <= sum(lengths) / slots + max(lengths) + 1e-6  # Graham's bound


def test_buckets_stand_for_their_neighbours() -> None:
    cost = GeneratorCost(LLAMA, H100, Rates(0.5, 0.5, 1.0, 0.0, 0.0), "bf16", 1)
    lengths = Lengths(500, 2000).sample(640)
    exact = batch_seconds_without_buckets(cost, lengths)
    assert batch_seconds(cost.step_seconds, lengths, 0.0, 640) == pytest.approx(exact, rel=0.03)


def batch_seconds_without_buckets(cost: GeneratorCost, lengths: list[float]) -> float:
    total, position = 0.0, 0.0
    for index, end in enumerate(lengths):
        active = len(lengths) - index
        total += (end - position) * cost.step_seconds(active, active * (position + end) / 2)
        position = end
    return total


@given(st.floats(0.1, 10.0), st.integers(1, 8), st.integers(1, 512))
def test_more_staleness_is_never_slower(train: float, staleness: int, slots: int) -> None:
    workload = Workload(32, 8, Lengths(300, 1500), 100.0)
    cost = GeneratorCost(LLAMA, H100, IDEAL, "bf16", 1)

    def pace(k: int) -> float:
        return steady_seconds(cost.step_seconds, workload, 64, slots, train_seconds=train, staleness=k)[0]

    assert pace(staleness) <= pace(staleness - 1) * (1 + 1e-6)
    assert pace(staleness) >= train * (1 - 1e-6)
