import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from llamarl.generation.draw import Filters, apply_filters, draw, uniforms

LOGITS = torch.log(tensor([[0.1, 0.4, 0.2, 0.3]]))


def splitmix64(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def kept(**settings_):
    return (apply_filters(LOGITS, Filters(**settings_)) > -math.inf)[0].tolist()


# golden


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_uniforms_equal_the_hash_in_unbounded_integers(seed, position):
    golden = 0x9E3779B97F4A7C15
    bits = splitmix64((splitmix64((seed + golden) % 2**64) + position * golden) % 2**64)
    assert uniforms(tensor([seed]), tensor([position])).item() == (bits >> 12) / 2**52


def test_uniforms_are_uniform_along_seeds_and_positions():
    for seeds, positions in ((torch.arange(20000), torch.zeros(20000)), (torch.zeros(20000), torch.arange(20000))):
        u = uniforms(seeds.long(), positions.long())
        counts = torch.histc(u.float(), bins=20, min=0, max=1)
        chi2 = ((counts - 1000) ** 2 / 1000).sum()
        assert chi2 < 45  # 19 degrees of freedom: exceeded with probability 0.0007
        assert abs(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.4999, 1), (0.5001, 2), (0.7001, 3), (1 - 2**-52, 3)],
)
def test_token_is_the_inverse_cdf(uniform, token):
    # cumulative probabilities: 0.1, 0.5, 0.7, 1.0
    tokens, logprobs = draw(LOGITS, tensor([uniform], dtype=torch.float64))
    assert tokens.item() == token
    assert logprobs.item() == pytest.approx(LOGITS[0, token].item(), abs=1e-6)


def test_filters_keep_what_their_definitions_say():
    assert kept(top_k=tensor([2])) == [False, True, False, True]  # 0.4 and 0.3
    assert kept(top_k=tensor([0])) == [True] * 4
    assert kept(top_p=tensor([0.69])) == [False, True, False, True]  # 0.4 + 0.3 reaches 0.69
    assert kept(top_p=tensor([0.71])) == [False, True, True, True]
    assert kept(top_p=tensor([1.0])) == [True] * 4
    assert kept(min_p=tensor([0.6])) == [False, True, False, True]  # bound 0.6 * 0.4 = 0.24
    assert kept(temperature=tensor([0.0])) == [False, True, False, False]


def test_top_p_counts_within_top_k():
    # after top-3: 0.4, 0.3, 0.2 of 0.9 = 0.444, 0.333, 0.222; 0.5 needs two of them, 0.44 one
    assert kept(top_k=tensor([3]), top_p=tensor([0.5])) == [False, True, False, True]
    assert kept(top_k=tensor([3]), top_p=tensor([0.44])) == [False, True, False, False]


def test_temperature_divides_the_logits():
    _, logprob = draw(apply_filters(LOGITS, Filters(temperature=tensor([0.5]))), tensor([0.9], dtype=torch.float64))
    # squares 0.01, 0.16, 0.04, 0.09 sum to 0.30; token 3 has 0.09 / 0.30
    assert logprob.item() == pytest.approx(math.log(0.3), abs=1e-6)


def test_logprob_is_that_of_the_filtered_distribution():
    tokens, logprobs = draw(apply_filters(LOGITS, Filters(top_k=tensor([2]))), tensor([0.99], dtype=torch.float64))
    assert tokens.item() == 3 and logprobs.item() == pytest.approx(math.log(0.3 / 0.7), abs=1e-6)


def test_greedy_is_certain():
    tokens, logprobs = draw(
        apply_filters(LOGITS, Filters(temperature=tensor([0.0]))), tensor([0.0], dtype=torch.float64)
    )
    assert (tokens.item(), logprobs.item()) == (1, 0.0)


# invariance


def test_an_unfiltered_row_is_untouched_beside_filtered_ones():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    every = Filters(tensor([1.0, 0.7, 0.0]), tensor([0, 5, 0]), tensor([1.0, 0.8, 1.0]), tensor([0.0, 0.1, 0.0]))
    assert torch.equal(apply_filters(logits, every)[0], logits[0])


@given(st.integers(0, 10**6), st.floats(0.01, 30.0), st.integers(0, 8), st.floats(0.05, 1.0), st.floats(0.0, 0.9))
@settings(max_examples=60, deadline=None)
def test_a_drawn_token_always_has_probability(seed, scale, top_k, top_p, min_p):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(16, 40, generator=generator)
    logits[:, ::3] = -math.inf
    uniform = torch.rand(16, generator=generator, dtype=torch.float64)
    uniform[0], uniform[1] = 0.0, 1 - 2**-52
    same = Filters(top_k=torch.full((16,), top_k), top_p=torch.full((16,), top_p), min_p=torch.full((16,), min_p))
    tokens, logprobs = draw(apply_filters(logits, same), uniform)
    assert torch.isfinite(logprobs).all() and (tokens % 3 != 0).all()
    probs = torch.softmax(apply_filters(logits, same), dim=-1)
    assert torch.allclose(probs.gather(1, tokens[:, None])[:, 0].log(), logprobs)


def by_sorting(logits, top_k, top_p):
    """What top-k and top-p keep of one row, by their definitions: ties go to the lower id."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i].item(), i))
    order = order[: top_k or len(order)]
    probs = torch.softmax(logits[order].double(), dim=-1)
    before = probs.cumsum(-1) - probs
    return {i for i, b in zip(order, before.tolist(), strict=True) if b < top_p or top_p >= 1.0}


@given(
    st.integers(0, 10**6),
    st.floats(0.1, 8.0),
    st.sampled_from([0, 1, 7, 300]),
    st.sampled_from([0.3, 0.87, 0.999, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_ranks_among_many_tokens_are_those_of_a_whole_sort(seed, scale, top_k, top_p):
    """Flat rows keep more tokens than are looked at first; rounded ones have many ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(4, 900, generator=generator) * tensor([[1.0], [0.1], [1.0], [1.0]])
    logits[2] = logits[2].round()
    tops = tensor([top_k, top_k, top_k, 0]), tensor([top_p, top_p, top_p, 1.0])
    found = apply_filters(logits, Filters(top_k=tops[0], top_p=tops[1]))
    for row, k, p in zip(range(4), tops[0].tolist(), tops[1].tolist(), strict=True):
        kept_ids = set((found[row] > -math.inf).nonzero()[:, 0].tolist())
        expected = by_sorting(logits[row], k, p)
        assert len(kept_ids ^ expected) <= 1 and abs(len(kept_ids) - len(expected)) <= 1  # the sum's last bit
        assert torch.equal(found[row, list(kept_ids)], logits[row, list(kept_ids)])


def test_frequencies_follow_the_probabilities():
    n = 40000
    tokens, _ = draw(LOGITS.expand(n, 4), uniforms(torch.arange(n), torch.zeros(n, dtype=torch.long)))
    shares = torch.bincount(tokens, minlength=4) / n
    assert (shares - tensor([0.1, 0.4, 0.2, 0.3])).abs().max() < 0.01  # four standard errors
