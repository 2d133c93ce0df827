import math

import pytest
import torch

from llamarl.functional.ratios import clipped_objective, log_ratio, sequence_log_ratio, weighted_objective

torch.set_num_threads(1)

RATIOS = torch.tensor([[5.0, 1.5, 1.0, 0.25]])
MASK = torch.ones(1, 4, dtype=torch.bool)
UP, DOWN = torch.ones(1), -torch.ones(1)


def gradient(build, ratios=RATIOS, mask=MASK):
    """d objective / d logprob at the given policy / behaviour ratios (behaviour log-prob -2)."""
    logprobs = (torch.full_like(ratios, -2.0) + ratios.log()).requires_grad_()
    objective = build(logprobs, log_ratio(logprobs, torch.full_like(ratios, -2.0), mask))
    objective.values.masked_fill(~mask, 0.0).sum().backward()
    return logprobs.grad, objective


# golden, gradient


def test_log_ratio_is_zero_where_masked_and_clamped():
    mask = torch.tensor([[True, True, True, False, False]])
    logprobs = torch.tensor([[-1.0, -50.0, 0.0, math.nan, -math.inf]], requires_grad=True)
    behavior = torch.tensor([[-3.0, 0.0, -50.0, 1.0, -math.inf]])
    result = log_ratio(logprobs, behavior, mask)
    assert result.tolist() == [[2.0, -20.0, 20.0, 0.0, 0.0]]
    result.sum().backward()
    assert logprobs.grad.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]


def test_aipo_gradient_table():  # llamarl P1, P2: 2 at ratio 5, 1.5 at 1.5, nothing changed at and below 1
    grad, objective = gradient(lambda p, r: weighted_objective(p, r, UP, high=2.0))
    assert torch.allclose(grad, torch.tensor([[2.0, 1.5, 1.0, 0.25]]))
    assert objective.is_high.tolist() == [[True, False, False, False]]
    assert not objective.is_low.any()


def test_truncating_without_detaching_is_another_estimator():
    # min(r, 2) A differentiated through the minimum loses the gradient of the token at ratio 5: not AIPO
    grad, _ = gradient(lambda p, r: clipped_objective(r, UP, low=0.99, high=1.0))
    assert torch.allclose(grad, torch.tensor([[0.0, 1.5, 1.0, 0.25]]))


def test_weights_below_a_lower_bound_are_lifted():
    grad, objective = gradient(lambda p, r: weighted_objective(p, r, DOWN, low=0.5, high=2.0))
    assert torch.allclose(grad, torch.tensor([[-2.0, -1.5, -1.0, -0.5]]))
    assert objective.is_low.tolist() == [[False, False, False, True]]


def test_ppo_clip_acts_only_where_the_advantage_pushes_outwards():
    # A = 1: 5 and 1.5 are above 1.2 and stop; 0.25 is pulled back up with its ratio as weight
    grad, objective = gradient(lambda p, r: clipped_objective(r, UP, low=0.2, high=0.2))
    assert torch.allclose(grad, torch.tensor([[0.0, 0.0, 1.0, 0.25]]))
    assert objective.is_high.tolist() == [[True, True, False, False]] and not objective.is_low.any()
    # A = -1: only 0.25, below 0.8, stops
    grad, objective = gradient(lambda p, r: clipped_objective(r, DOWN, low=0.2, high=0.2))
    assert torch.allclose(grad, torch.tensor([[-5.0, -1.5, -1.0, 0.0]]))
    assert objective.is_low.tolist() == [[False, False, False, True]] and not objective.is_high.any()


def test_each_side_has_its_own_bound():
    ratios = torch.tensor([[1.25, 1.30, 0.85, 0.75]])
    grad, _ = gradient(lambda p, r: clipped_objective(r, UP, low=0.2, high=0.28), ratios)
    assert torch.allclose(grad, torch.tensor([[1.25, 0.0, 0.85, 0.75]]))
    grad, _ = gradient(lambda p, r: clipped_objective(r, DOWN, low=0.2, high=0.28), ratios)
    assert torch.allclose(grad, torch.tensor([[-1.25, -1.30, -0.85, 0.0]]))


def test_clipped_value_golden():
    # min(5, 1.2) = 1.2, min(1.5, 1.2) = 1.2, 1, min(0.25, 0.8) = 0.25
    _, objective = gradient(lambda p, r: clipped_objective(r, UP, low=0.2, high=0.2))
    assert torch.allclose(objective.values, torch.tensor([[1.2, 1.2, 1.0, 0.25]]))


def test_dual_clip_bounds_what_a_negative_advantage_pushes():
    # A = -1, delta = 3: max(min(-5, -5), -3) = -3 has no gradient; 1.5 and 1 go on; 0.25 was clipped at 0.8 before
    grad, objective = gradient(lambda p, r: clipped_objective(r, DOWN, low=0.2, high=0.2, delta=3.0))
    assert torch.allclose(grad, torch.tensor([[0.0, -1.5, -1.0, 0.0]]))
    assert torch.allclose(objective.values, torch.tensor([[-3.0, -1.5, -1.0, -0.8]]))
    assert objective.is_floored.tolist() == [[True, False, False, False]]
    assert objective.is_low.tolist() == [[False, False, False, True]] and not objective.is_high.any()


def test_sequence_ratio_is_the_geometric_mean_over_real_tokens():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    logs = log_ratio(torch.tensor([[2.0, 8.0, 999.0], [1.0, 1.0, 8.0]]).log(), torch.zeros(2, 3), mask)
    # sqrt(2 * 8) = 4 over two tokens; cube root of 1 * 1 * 8 = 2 over three
    assert torch.allclose(sequence_log_ratio(logs, mask).exp(), torch.tensor([[4.0] * 3, [2.0] * 3]))


def test_sequence_gradient_is_shared_by_all_tokens():
    mask = torch.tensor([[True, True, False]])
    ratios = torch.tensor([[2.0, 8.0, 1.0]])
    grad, _ = gradient(lambda p, r: clipped_objective(sequence_log_ratio(r, mask), UP, low=0.5, high=9.0), ratios, mask)
    # value 4 at each of 2 tokens; d 4 / d logprob = 4 / 2 per token, twice: 4 everywhere, nothing on padding
    assert torch.allclose(grad, torch.tensor([[4.0, 4.0, 0.0]]))


def test_weighted_expectation_over_behaviour_is_the_policy_gradient():
    # one token out of 3: sum_a mu(a) * (pi/mu)(a) * A(a) * grad log pi(a) = grad sum_a pi(a) A(a), for any mu
    theta = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    behavior = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    logprobs = theta.log_softmax(-1)[:, None]
    mask = torch.ones(3, 1, dtype=torch.bool)
    ratios = log_ratio(logprobs, behavior.log()[:, None], mask)
    values = weighted_objective(logprobs, ratios, advantages, high=math.inf).values
    (result,) = torch.autograd.grad((behavior[:, None] * values).sum(), theta, retain_graph=True)
    (exact,) = torch.autograd.grad((theta.softmax(-1) * advantages).sum(), theta)
    assert torch.allclose(result, exact, atol=1e-12)


# invariance


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_ratios_stay_finite(advantage):  # exp(89) overflows float32
    logprobs = torch.tensor([[-0.1, -300.0, -1.0]], requires_grad=True)
    behavior = torch.tensor([[-300.0, -0.1, -1.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages = torch.tensor([advantage])
    for build in (
        lambda r: weighted_objective(logprobs, r, advantages, high=4.0),
        lambda r: clipped_objective(r, advantages, low=0.2, high=0.2),
    ):
        logprobs.grad = None
        values = build(log_ratio(logprobs, behavior, mask)).values
        values.sum().backward()
        assert torch.isfinite(values).all() and torch.isfinite(logprobs.grad).all()


# reduces to


def test_at_ratio_one_every_objective_has_the_reinforce_gradient():
    ratios = torch.ones(2, 3)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantages = torch.tensor([2.0, -3.0])
    expected = advantages[:, None] * mask
    for build in (
        lambda p, r: weighted_objective(p, r, advantages, high=1.0),
        lambda p, r: weighted_objective(p, r, advantages, low=1.0, high=1.0),
        lambda p, r: clipped_objective(r, advantages, low=0.2, high=0.2),
        lambda p, r: clipped_objective(r, advantages, low=0.2, high=0.28),
        lambda p, r: clipped_objective(sequence_log_ratio(r, mask), advantages, low=3e-4, high=4e-4),
    ):
        grad, objective = gradient(build, ratios, mask)
        assert torch.allclose(grad, expected, atol=1e-6)
        assert not (objective.is_low | objective.is_high).any()


def test_wide_clip_reduces_to_the_untruncated_weight():
    wide, _ = gradient(lambda p, r: clipped_objective(r, UP, low=0.999, high=1e9))
    weighted, _ = gradient(lambda p, r: weighted_objective(p, r, UP, high=math.inf))
    assert torch.allclose(wide, weighted)


@pytest.mark.parametrize("advantages", [UP, DOWN])
def test_a_bound_that_is_never_reached_changes_no_bit(advantages):
    plain, old = gradient(lambda p, r: clipped_objective(r, advantages, low=0.2, high=0.28))
    bounded, new = gradient(lambda p, r: clipped_objective(r, advantages, low=0.2, high=0.28, delta=5.5))
    assert torch.equal(plain, bounded) and torch.equal(old.values, new.values)
    assert old.is_floored is None and new.is_floored is not None and not new.is_floored.any()


def test_good_tokens_know_no_dual_clip():
    plain, _ = gradient(lambda p, r: clipped_objective(r, UP, low=0.2, high=9.0))
    bounded, objective = gradient(lambda p, r: clipped_objective(r, UP, low=0.2, high=9.0, delta=1.1))
    assert torch.equal(plain, bounded)
    assert objective.is_floored is not None and not objective.is_floored.any()


def test_no_token_pushes_harder_than_the_bounds():
    generator = torch.Generator().manual_seed(0)
    ratios = torch.randn(50, 8, generator=generator).mul(4).exp()
    advantages = torch.randn(50, generator=generator)
    mask = torch.ones_like(ratios, dtype=torch.bool)
    grad, _ = gradient(lambda p, r: clipped_objective(r, advantages, low=0.2, high=0.28, delta=3.0), ratios, mask)
    sizes = grad.abs() / advantages.abs()[:, None]
    assert sizes.max() <= 3.0 * 1.0001
    free, _ = gradient(lambda p, r: clipped_objective(r, advantages, low=0.2, high=0.28), ratios, mask)
    assert (free.abs() / advantages.abs()[:, None]).max() > 1000
