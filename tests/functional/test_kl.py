"""KL estimators against the exact KL and its exact gradient, by enumerating every sequence of a tiny vocabulary."""

import itertools
import math

import pytest
import torch

from llamarl.functional.kl import kl_estimate, kl_loss

torch.set_num_threads(1)

VOCAB, LENGTH = 3, 3
SEQUENCES = list(itertools.product(range(VOCAB), repeat=LENGTH))  # 27
PREFIXES = [prefix for n in range(LENGTH) for prefix in itertools.product(range(VOCAB), repeat=n)]  # 1 + 3 + 9 states
MASK = torch.ones(len(SEQUENCES), LENGTH, dtype=torch.bool)


def policies():
    """A policy with its own logits in each of the 13 states, and a reference."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(len(PREFIXES), VOCAB, generator=generator, dtype=torch.float64)
    reference = torch.randn(len(PREFIXES), VOCAB, generator=generator, dtype=torch.float64)
    return theta.requires_grad_(), reference


def sequence_logprobs(theta):
    """Per-token log-probs `[27, 3]` of every sequence."""
    table = theta.log_softmax(-1)
    return torch.stack([torch.stack([table[PREFIXES.index(s[:t]), s[t]] for t in range(LENGTH)]) for s in SEQUENCES])


def exact_kl(theta, reference):
    logprobs = sequence_logprobs(theta).sum(-1)
    return (logprobs.exp() * (logprobs - sequence_logprobs(reference).sum(-1))).sum()


def exact_per_state(theta, reference, direction):
    """Sum over states of (fixed) visiting probability times the KL of the next-token distributions."""
    visits = torch.zeros(len(PREFIXES), dtype=torch.float64)
    probs = sequence_logprobs(theta).sum(-1).exp().detach()
    for sequence, prob in zip(SEQUENCES, probs, strict=True):
        for t in range(LENGTH):
            visits[PREFIXES.index(sequence[:t])] += prob
    policy, other = theta.log_softmax(-1), reference.log_softmax(-1)
    if direction == "reverse":
        policy, other = other, policy
    return (visits * (policy.exp() * (policy - other)).sum(-1)).sum()


def gradient(scalar, theta):
    return torch.autograd.grad(scalar, theta)[0]


def expected_loss_gradient(term, theta, reference):
    """The average gradient over on-policy samples: each sequence weighted by its (fixed) probability."""
    logprobs = sequence_logprobs(theta)
    weights = logprobs.sum(-1).exp().detach()
    return gradient((weights * term(logprobs, sequence_logprobs(reference)).sum(-1)).sum(), theta)


# golden


def test_estimates_at_delta_log_two():
    logprobs, reference = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    values = {name: kl_estimate(logprobs, reference, mask, name).item() for name in ("k1", "k2", "k3")}
    # delta = log 2 = 0.693147; squared / 2 = 0.240227; 1/2 - 1 + 0.693147 = 0.193147
    assert values == pytest.approx({"k1": 0.693147, "k2": 0.240227, "k3": 0.193147}, abs=1e-6)


def test_as_numbers_k1_and_k3_are_unbiased_and_k2_is_not():
    theta, reference = policies()
    logprobs, other = sequence_logprobs(theta), sequence_logprobs(reference)
    probs, exact = logprobs.sum(-1).exp(), exact_kl(theta, reference)
    mean = {name: (probs * kl_estimate(logprobs, other, MASK, name).sum(-1)).sum() for name in ("k1", "k2", "k3")}
    assert torch.allclose(mean["k1"], exact) and torch.allclose(mean["k3"], exact)
    assert (mean["k2"] - exact).abs() > 0.05


# gradient


def test_k1_as_a_loss_does_nothing_on_average():
    theta, reference = policies()
    result = expected_loss_gradient(lambda a, b: kl_estimate(a, b, MASK, "k1"), theta, reference)
    assert result.abs().max() < 1e-12
    assert gradient(exact_kl(theta, reference), theta).abs().max() > 0.01


def test_k1_return_is_the_exact_gradient_of_the_sequence_kl():
    theta, reference = policies()
    result = expected_loss_gradient(lambda a, b: kl_loss(a, b, MASK, "k1_return"), theta, reference)
    assert torch.allclose(result, gradient(exact_kl(theta, reference), theta), atol=1e-12)


def test_k2_is_the_exact_gradient_of_each_states_kl():
    theta, reference = policies()
    result = expected_loss_gradient(lambda a, b: kl_loss(a, b, MASK, "k2"), theta, reference)
    assert torch.allclose(result, gradient(exact_per_state(theta, reference, "forward"), theta), atol=1e-12)


def test_k3_is_the_gradient_of_the_other_direction():
    theta, reference = policies()
    result = expected_loss_gradient(lambda a, b: kl_loss(a, b, MASK, "k3"), theta, reference)
    assert torch.allclose(result, gradient(exact_per_state(theta, reference, "reverse"), theta), atol=1e-12)
    assert not torch.allclose(result, gradient(exact_per_state(theta, reference, "forward"), theta), atol=1e-2)


@pytest.mark.parametrize("kind", ["k1_return", "k2", "k3"])
def test_descending_the_loss_reaches_the_reference_even_on_stale_samples(kind):
    theta, reference = policies()
    stale = sequence_logprobs(policies()[0]).sum(-1).exp().detach()  # sampled by the starting policy, for ever
    optimizer = torch.optim.Adam([theta], lr=0.05)
    start = exact_kl(theta, reference).item()
    for _ in range(200):
        terms = kl_loss(sequence_logprobs(theta), sequence_logprobs(reference), MASK, kind)
        optimizer.zero_grad()
        (stale * terms.sum(-1)).sum().backward()
        optimizer.step()
    assert start > 0.5 and exact_kl(theta, reference) < 0.02 * start


# invariance


@pytest.mark.parametrize("kind", ["k1_return", "k2", "k3"])
def test_padding_content_never_matters(kind):
    generator = torch.Generator().manual_seed(1)
    real, other = torch.randn(2, 2, 3, generator=generator)
    grads = []
    for junk in (0.0, -math.inf, math.nan, 1e30):
        padded = torch.cat([real, torch.full((2, 4), junk)], 1).requires_grad_()
        mask = torch.arange(7).expand(2, 7) < 3
        loss = kl_loss(padded, torch.cat([other, torch.full((2, 4), -junk)], 1), mask, kind)
        assert torch.equal(loss[:, 3:], torch.zeros(2, 4))
        loss.sum().backward()
        assert torch.equal(padded.grad[:, 3:], torch.zeros(2, 4))
        grads.append(padded.grad[:, :3])
    assert all(torch.equal(grads[0], grad) for grad in grads[1:])


def test_k3_stays_finite_and_never_negative():
    logprobs, reference = torch.tensor([[-200.0, 0.0, -1.0]], requires_grad=True), torch.tensor([[0.0, -200.0, -1.0]])
    value = kl_estimate(logprobs, reference, torch.ones(1, 3, dtype=torch.bool), "k3")
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logprobs.grad).all()
    small = torch.linspace(-1e-3, 1e-3, 401)[None]
    assert (kl_estimate(small, torch.zeros_like(small), torch.ones_like(small).bool(), "k3") >= 0).all()


# reduces to


def test_equal_policies_give_zero_value_and_zero_gradient():
    theta, _ = policies()
    reference = theta.detach().clone()
    for kind in ("k1_return", "k2", "k3"):
        result = expected_loss_gradient(lambda a, b, kind=kind: kl_loss(a, b, MASK, kind), theta, reference)
        assert torch.equal(result, torch.zeros_like(result))


def test_k1_return_reduces_to_k2_for_completions_of_one_token():
    generator = torch.Generator().manual_seed(2)
    logprobs, reference = torch.randn(2, 5, 1, generator=generator)
    mask = torch.ones(5, 1, dtype=torch.bool)
    grads = []
    for kind in ("k1_return", "k2"):
        leaf = logprobs.clone().requires_grad_()
        grads.append(gradient(kl_loss(leaf, reference, mask, kind).sum(), leaf))
    assert torch.allclose(*grads)


# rejects


def test_rejects_an_unknown_name():
    ones = torch.ones(1, 1)
    with pytest.raises(AssertionError, match="k4"):
        kl_estimate(ones, ones, ones.bool(), "k4")
