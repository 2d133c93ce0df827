import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamarl.functional.preference import (
    Bin,
    bradley_terry_loss,
    calibrated_reward,
    calibration_error,
    centering_penalty,
    log_sigmoid,
    reliability,
    wilson_interval,
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


def test_wilson_interval_by_hand():
    # 8 of 10, z^2 = 3.84146: centre (0.8 + 0.192073) / 1.384146 = 0.716740,
    # half 1.959964 / 1.384146 * sqrt(0.016 + 0.00960365) = 1.416009 * 0.160011 = 0.226577
    assert wilson_interval(8, 10) == pytest.approx((0.490163, 0.943317), abs=2e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_reliability_and_its_error_by_hand():
    bins = reliability([0.05, 0.15, 0.95, 1.0, 0.9], [0, 1, 1, 1, 0.5], num_bins=2)
    # under 0.5: mean 0.1, one of two came true; from 0.5: mean 2.85 / 3 = 0.95, 2.5 of 3
    assert [b.count for b in bins] == [2, 3]
    assert [b.predicted for b in bins] == pytest.approx([0.1, 0.95])
    assert [b.observed for b in bins] == pytest.approx([0.5, 2.5 / 3])
    # (2 * 0.4 + 3 * 0.116667) / 5 = 1.15 / 5
    assert calibration_error(bins) == pytest.approx(0.23)
    assert math.isnan(calibration_error([]))
    assert calibration_error([Bin(7, 0.6, 0.6)]) == 0.0


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


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_mirrors(pair):
    successes, total = pair
    low, high = wilson_interval(successes, total)
    assert 0.0 <= low <= successes / total + 1e-9 and successes / total - 1e-9 <= high <= 1.0
    assert wilson_interval(total - successes, total) == pytest.approx((1 - high, 1 - low))


# rejects


def test_unequal_lists_are_refused():
    with pytest.raises(ValueError):
        reliability([0.5], [])
