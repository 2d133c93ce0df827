import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.functional.logprobs import Kept, kept_logprobs, pad_rows, token_entropy, token_logprobs

torch.set_num_threads(1)


def kept(*sets):
    """The sets of ids left at each token."""
    ids, counts = [token for each in sets for token in each], [len(each) for each in sets]
    return Kept(torch.tensor(ids, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64))


# golden


def test_logprobs_of_odds_one_to_three():
    logits = torch.tensor([[0.0, math.log(3.0)]]).repeat(2, 1)  # softmax = 1/4, 3/4
    expected = torch.tensor([0.25, 0.75]).log()
    assert torch.allclose(token_logprobs(logits, torch.tensor([0, 1])), expected)


def test_temperature_divides_the_logits_first():
    logits = torch.tensor([[0.0, math.log(3.0)]])  # at T = 0.5: odds 1 to 3^2 = 9, so the second has 9/10
    assert token_logprobs(logits, torch.tensor([1]), temperature=0.5).item() == pytest.approx(math.log(0.9), abs=1e-6)


def test_a_certain_token_has_logprob_exactly_zero():
    logits = torch.tensor([[200.0, 0.0, 0.0]])
    assert token_logprobs(logits, torch.tensor([0])).item() == 0.0


def test_entropy_of_uniform_certain_and_impossible():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [500.0, 0.0, 0.0, 0.0], [0.0, 0.0, -math.inf, -math.inf]])
    assert torch.allclose(token_entropy(logits), torch.tensor([math.log(4), 0.0, math.log(2)]), atol=1e-6)


def test_logprobs_among_kept_tokens_worked_by_hand():
    # probabilities 1/10, 2/10, 3/10, 4/10. Of {1, 3} the first has 2/6; of {2} alone, all; without a filter, 4/10.
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log().repeat(3, 1)
    found = kept_logprobs(logits, torch.tensor([1, 2, 3]), kept([1, 3], [2], []))
    assert found.tolist() == pytest.approx([math.log(1 / 3), 0.0, math.log(0.4)], abs=1e-6)
    # at T = 0.5 odds are squared: 4 of 4 + 16
    half = kept_logprobs(logits[:1], torch.tensor([1]), kept([1, 3]), temperature=0.5)
    assert half.item() == pytest.approx(math.log(0.2), abs=1e-6)


def test_the_gradient_among_kept_tokens_worked_by_hand():
    # d/dz of z[1] - log(e^z[1] + e^z[3]): 1 - 1/3 at the target, -2/3 at the other, nothing at tokens that were cut
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log().requires_grad_()
    kept_logprobs(logits, torch.tensor([1]), kept([1, 3])).sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([0.0, 2 / 3, 0.0, -2 / 3], abs=1e-6)


def test_pad_rows_golden():
    rows, mask = pad_rows(torch.tensor([1.0, 2.0, 3.0, 4.0]), [1, 0, 3])
    assert rows.tolist() == [[1, 0, 0], [0, 0, 0], [2, 3, 4]]
    assert mask.tolist() == [[True, False, False], [False, False, False], [True, True, True]]


# gradient


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_equal_finite_differences(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3])
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, targets, temperature), logits)
    assert torch.autograd.gradcheck(lambda x: token_entropy(x, temperature), logits)


def test_gradients_among_kept_tokens_equal_finite_differences():
    logits = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets, left = torch.tensor([0, 6, 3, 3]), kept([0, 1, 2], [6], [], [2, 3, 4, 5, 6])
    assert torch.autograd.gradcheck(lambda x: kept_logprobs(x, targets, left, 0.6), logits)
    huge = (1e4 * torch.ones(1, 3)).requires_grad_()
    kept_logprobs(huge, torch.tensor([1]), kept([0, 1])).backward()
    assert huge.grad.isfinite().all()


def test_entropy_gradient_is_finite_where_a_token_is_impossible():
    logits = torch.tensor([[0.3, 0.1, -math.inf]], requires_grad=True)
    token_entropy(logits).sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0, 2] == 0.0


def test_pad_rows_sends_each_gradient_home():
    values = torch.arange(4.0, requires_grad=True)
    rows, _ = pad_rows(values, torch.tensor([3, 1]))
    (rows * torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]])).sum().backward()
    assert values.grad.tolist() == [1, 2, 3, 4]


# invariance


def test_adding_a_constant_to_the_logits_changes_nothing():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(5)
    assert torch.allclose(token_logprobs(logits, targets), token_logprobs(logits + 50.0, targets), atol=1e-5)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(2)).bfloat16()
    targets = torch.tensor([0, 1, 2])
    exact = logits.double().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    result = token_logprobs(logits, targets)
    assert result.dtype == torch.float32
    assert torch.allclose(result.double(), exact, atol=1e-5)  # a bfloat16 sum would be off by about 0.05


def test_rows_are_the_values_behind_the_mask():
    values = torch.randn(11, generator=torch.Generator().manual_seed(3))
    rows, mask = pad_rows(values, [4, 1, 6])
    assert torch.equal(rows[mask], values)


# reduces to


def test_reduces_to_log_softmax_and_categorical():
    logits = torch.randn(6, 12, generator=torch.Generator().manual_seed(4))
    targets = torch.tensor([0, 11, 5, 5, 2, 7])
    reference = torch.distributions.Categorical(logits=logits / 0.7)
    assert torch.allclose(token_logprobs(logits, targets, 0.7), reference.log_prob(targets), atol=1e-6)
    assert torch.allclose(token_entropy(logits, 0.7), reference.entropy(), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 999), temperature=st.floats(0.3, 3.0))
def test_kept_tokens_are_a_softmax_of_what_is_left(data, seed, temperature):
    logits = 3 * torch.randn(5, 11, generator=torch.Generator().manual_seed(seed))
    left = [data.draw(st.lists(st.integers(0, 10), unique=True)) for _ in range(5)]
    targets = [data.draw(st.sampled_from(each or list(range(11)))) for each in left]
    is_cut = torch.tensor([[bool(each) and token not in each for token in range(11)] for each in left])
    expected = (logits / temperature).masked_fill(is_cut, -math.inf).log_softmax(-1)
    chosen = torch.tensor(targets)
    found = kept_logprobs(logits, chosen, kept(*left), temperature)
    assert torch.allclose(found, expected[torch.arange(5), chosen], atol=1e-5)
    order = torch.tensor([3, 0, 4])
    some = kept_logprobs(logits[order], chosen[order], kept(*left).of(order), temperature)
    assert torch.equal(some, found[order])


def test_all_tokens_kept_are_plain_logprobs():
    logits = torch.randn(6, 12, generator=torch.Generator().manual_seed(4))
    targets = torch.tensor([0, 11, 5, 5, 2, 7])
    assert torch.allclose(kept_logprobs(logits, targets, kept(*[range(12)] * 6)), token_logprobs(logits, targets))
    assert torch.equal(kept_logprobs(logits, targets, kept(*[[]] * 6)), token_logprobs(logits, targets))


def test_kept_tokens_in_half_precision_are_summed_in_float32():
    logits = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    targets = torch.tensor([0, 1, 2])
    found = kept_logprobs(logits, targets, kept(*[range(50_000)] * 3))
    assert torch.allclose(found, token_logprobs(logits, targets), atol=1e-5)
    (mine,) = torch.autograd.grad(found.sum(), logits)
    (plain,) = torch.autograd.grad(token_logprobs(logits, targets).sum(), logits)
    assert torch.allclose(mine, plain, rtol=0.01, atol=0.0)  # one step of bfloat16


def test_no_tokens_give_no_values():
    assert token_logprobs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    rows, mask = pad_rows(torch.zeros(0), [])
    assert rows.shape == mask.shape == (0, 0)


# rejects


def test_rejects_bad_temperature_and_shapes():
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0\.0"):
        token_logprobs(logits, torch.tensor([0, 1]), temperature=0.0)
    with pytest.raises(ValueError, match="temperature"):
        token_entropy(logits, temperature=math.nan)
    with pytest.raises(ValueError, match="targets"):
        token_logprobs(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"\[M, V\]"):
        token_entropy(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="add up to 3, but there are 4"):
        pad_rows(torch.zeros(4), [1, 2])


def test_rejects_a_target_that_was_cut_and_lists_that_do_not_fit():
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="not, or more than once, among the tokens kept for it"):
        kept_logprobs(logits, torch.tensor([0, 1]), kept([0, 1], [2]))
    with pytest.raises(ValueError, match=r"kept\.counts \(1,\) do not match"):
        kept_logprobs(logits, torch.tensor([0, 1]), kept([0, 1]))
