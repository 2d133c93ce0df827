import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.planner.cost import default_rates
from llamarl.planner.devices import find_device
from llamarl.planner.public import LADDER
from llamarl.planner.shapes import public_shape
from llamarl.planner.theory import (
    Costs,
    asynchronous_choice,
    best_share,
    improve,
    random_costs,
    share_lost,
    synchronous_choices,
    throughput_gain,
    whole_devices,
)

SEEDS = st.integers(0, 10**9).map(random.Random)


# golden


def test_the_best_share_by_hand() -> None:
    # training 3, generating 1: three quarters of the devices train, and both sides take 4
    share = best_share(3.0, 1.0)
    assert share == 0.75 and max(3.0 / share, 1.0 / (1 - share)) == 4.0


def test_a_case_by_hand() -> None:
    # one device of memory 4; trainer 1 + b, generator 1 + b; costs 1 / b
    costs = Costs(lambda b, m: 1 / b, lambda b, m: 1 / b, 1.0, 1.0, 1.0, 1.0, 4.0, degrees=(1,))
    # synchronous: b_t + b_g = 2, best 1 and 1: cost 2; asynchronous: 3 and 3: cost 2/3
    assert min(choice.total for choice in synchronous_choices(costs, 4)) == 2.0
    choice = asynchronous_choice(costs)
    assert choice is not None and choice.total == pytest.approx(2 / 3)


# invariance: the theorem


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.001, 0.999))
def test_no_share_is_better_than_the_best(train: float, generate: float, share: float) -> None:
    best = best_share(train, generate)
    assert max(train / best, generate / (1 - best)) == pytest.approx(train + generate)
    assert max(train / share, generate / (1 - share)) >= (train + generate) * (1 - 1e-12)


@given(SEEDS)
def test_asynchronous_steps_are_strictly_shorter(rng: random.Random) -> None:
    costs = random_costs(rng)
    synchronous = list(synchronous_choices(costs))
    if not synchronous:
        return
    asynchronous = asynchronous_choice(costs)
    assert asynchronous is not None  # what fits together fits apart
    for choice in synchronous:
        better = improve(costs, choice)
        assert better.train < choice.train and better.generate < choice.generate
        assert asynchronous.total <= better.total * (1 + 1e-12)
        assert asynchronous.total < choice.total


@given(SEEDS, st.sampled_from([8, 16, 64]))
def test_whole_devices_never_beat_the_continuous_bound(rng: random.Random, devices: int) -> None:
    costs = random_costs(rng)
    whole, choice = whole_devices(costs, devices), asynchronous_choice(costs)
    if whole is not None:
        assert choice is not None and whole >= choice.total * (1 - 1e-12)


# where it ends


def test_few_devices_reverse_it() -> None:
    assert share_lost(16) > share_lost(64) > share_lost(512)
    assert share_lost(16) > 0.3


def test_without_a_gain_from_larger_batches_both_are_equal() -> None:
    costs = dataclasses.replace(
        random_costs(random.Random(1)), train=lambda b, m: 2.0, generate=lambda b, m: 1.0, memory=100.0
    )
    choice = asynchronous_choice(costs)
    assert choice is not None
    assert choice.total == min(each.total for each in synchronous_choices(costs)) == 3.0


def test_the_gain_grows_with_the_model() -> None:
    names = ("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b", "llama-3.1-405b")
    gains = []
    for name in names:
        synchronous, asynchronous = throughput_gain(public_shape(name), find_device("h100"), default_rates(), LADDER)
        gains.append(synchronous / asynchronous)
    assert gains == sorted(gains) and gains[0] > 1.0
    assert gains[-1] > 2 * gains[-2]


def test_symmetric_costs_give_an_even_split() -> None:
    assert best_share(1.7, 1.7) == 0.5
