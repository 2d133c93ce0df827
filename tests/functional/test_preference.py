import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamarl.functional.preference import (
    bradley_terry_loss,
    calibrated_reward,
    centering_penalty,
    log_sigmoid,
)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


# golden


def test_the_loss_is_the_surprise_at_the_preference():
    losses = bradley_terry_loss(doubles(2.0, 1.0, 0.0), doubles(1.0, 1.0, 1.0))
    # log(1 + e^-1) = log 1.36788 = 0.31326; log 2 = 0.69315; log(1 + e^1) = log 3.71828 = 1.31326
    assert losses.tolist() == pytest.approx([0.31326, 0.69315, 1.31326], abs=1e-5)


def test_a_margin_asks_for_a_gap():
    losses = bradley_terry_loss(doubles(3.0, 3.0), doubles(1.0, 1.0), torch.tensor([2.0, 1.0]))
    assert losses.tolist() == pytest.approx([math.log(2), 0.31326], abs=1e-5)  # gaps 2 - 2 = 0 and 2 - 1 = 1


def test_the_centering_penalty_is_the_squared_sum():
    assert centering_penalty(doubles(2.0, -1.0), doubles(1.0, 1.0)).tolist() == [9.0, 0.0]


def test_the_calibrated_reward_is_a_probability():
    assert calibrated_reward(0.0) == 0.5  # cgpo P2: the baseline against itself
    assert calibrated_reward(math.log(3)) == pytest.approx(0.75)  # odds of 3 to 1
    assert calibrated_reward(-math.log(3)) == pytest.approx(0.25)
    assert calibrated_reward(torch.tensor([0.0, math.log(3)])).tolist() == pytest.approx([0.5, 0.75])


# gradient


def test_the_gradient_is_the_probability_of_the_other_order():
    chosen, rejected = doubles(2.0, 1.0), doubles(1.0, 1.0)
    bradley_terry_loss(chosen, rejected).sum().backward()
    # -(1 - sigmoid(1)) = -0.268941; at a gap of exactly 0, -0.5
    assert chosen.grad.tolist() == pytest.approx([-0.268941, -0.5], abs=1e-6)
    assert rejected.grad.tolist() == pytest.approx([0.268941, 0.5], abs=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    gaps = doubles(-3.0, -0.1, 0.0, 0.7, 5.0)
    assert torch.autograd.gradcheck(log_sigmoid, (gaps,))


@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaps_of_ten_thousand_are_finite_forward_and_backward(gap, dtype):
    chosen = torch.tensor([gap], dtype=dtype, requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(1, dtype=dtype))
    loss.sum().backward()
    assert loss.item() == pytest.approx(max(0.0, -gap)) and float(chosen.grad) == (0.0 if gap > 0 else -1.0)
    assert calibrated_reward(gap) == (1.0 if gap > 0 else 0.0)  # cgpo P2
    assert calibrated_reward(chosen).item() == calibrated_reward(gap)


# invariance


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_a_larger_margin_is_a_larger_calibrated_reward(a, b):
    """cgpo P2: strictly increasing, up to saturation."""
    low, high = sorted((a, b))
    assert calibrated_reward(low) <= calibrated_reward(high)
    if high - low > 1e-3:
        assert calibrated_reward(low) < calibrated_reward(high)
    assert 0.0 < calibrated_reward(a) < 1.0


@given(st.integers(-800, 800), st.integers(-800, 800), st.integers(-(2**20), 2**20))
def test_a_constant_per_prompt_changes_nothing(reward, baseline, constant):
    """cgpo P2; eighths are exact in floating point, so equality is too."""
    r, b, c = reward / 8, baseline / 8, constant / 8
    assert calibrated_reward((r + c) - (b + c)) == calibrated_reward(r - b)
    shifted = bradley_terry_loss(doubles(r + c), doubles(b + c))
    assert torch.equal(shifted, bradley_terry_loss(doubles(r), doubles(b)))


@given(st.floats(-50, 50))
def test_the_two_orders_are_complementary(gap):
    assert calibrated_reward(gap) + calibrated_reward(-gap) == pytest.approx(1.0)
    assert log_sigmoid(doubles(gap)).item() == pytest.approx(math.log(calibrated_reward(gap)), abs=1e-9)
