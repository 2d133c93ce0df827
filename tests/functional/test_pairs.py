import math

import pytest
import torch

from llamarl.functional.pairs import dpo_terms, pair_rows

torch.set_num_threads(1)

SIGNS, GROUPS = torch.tensor([-1.0, 1.0, 1.0, -1.0]), torch.tensor([5, 3, 5, 3])

# golden


def test_pairs_are_found_by_group_and_sign():
    pairs = pair_rows(SIGNS, GROUPS)
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([1, 2], [3, 0])


def test_dpo_terms_by_hand():
    log_ratios = torch.tensor([1.0, 2.0, 0.0, 0.5])
    # groups 3 and 5: 0.5 * (2 - 0.5) = 0.75 and 0.5 * (0 - 1) = -0.5
    expected = [-math.log1p(math.exp(-0.75)), -math.log1p(math.exp(0.5))]
    assert dpo_terms(log_ratios, pair_rows(SIGNS, GROUPS), 0.5).tolist() == pytest.approx(expected)


# gradient


def test_the_gradient_at_the_reference_is_half_of_beta_each_way():
    log_ratios = torch.zeros(4, requires_grad=True)
    dpo_terms(log_ratios, pair_rows(SIGNS, GROUPS), 0.4).sum().backward()
    assert torch.allclose(log_ratios.grad, 0.2 * SIGNS)


def test_huge_gaps_stay_finite():
    log_ratios = torch.tensor([1e4, -1e4, -1e4, 1e4], requires_grad=True)
    terms = dpo_terms(log_ratios, pair_rows(SIGNS, GROUPS), 1.0)
    terms.sum().backward()
    assert terms.tolist() == [-2e4, -2e4] and torch.equal(log_ratios.grad, SIGNS)


def test_the_gradient_agrees_with_finite_differences():
    log_ratios = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dpo_terms(x, pair_rows(SIGNS, GROUPS), 0.7), (log_ratios,))


# invariance


def test_the_order_of_rows_does_not_matter():
    log_ratios = torch.tensor([1.0, 2.0, 0.0, 0.5])
    order = torch.tensor([2, 0, 3, 1])
    shuffled = dpo_terms(log_ratios[order], pair_rows(SIGNS[order], GROUPS[order]), 0.3)
    assert torch.equal(shuffled, dpo_terms(log_ratios, pair_rows(SIGNS, GROUPS), 0.3))


def test_no_rows_are_no_pairs():
    pairs = pair_rows(SIGNS[:0], GROUPS[:0])
    assert len(pairs.chosen) == len(pairs.rejected) == 0


# rejects


@pytest.mark.parametrize(
    ("advantages", "groups"),
    [
        ([1.0], [0]),
        ([1.0, 1.0], [0, 0]),
        ([1.0, -1.0], [0, 1]),
        ([1.0, -1.0, 0.0], [0, 0, 0]),
        ([1.0, -1.0] * 2, [0] * 4),
    ],
)
def test_rejects_groups_that_are_no_pairs(advantages, groups):
    with pytest.raises(ValueError, match="every group needs one row of positive and one of negative"):
        pair_rows(torch.tensor(advantages), torch.tensor(groups))
