import math

import pytest
import torch

from llamarl.functional.losses import Denominators, LossBatch, masked_metric, mean_metrics, reduce_terms
from llamarl.functional.mismatch import mismatch

torch.set_num_threads(1)

# two samples of one prompt and one of another, 1, 3 and 2 tokens long, at most 4
TERMS = torch.tensor([[6.0, 0, 0], [1.0, 2.0, 3.0], [4.0, 8.0, 0]])
MASK = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
STEP = Denominators.count([1, 3, 2], [0, 0, 1], prompts=3, max_tokens=4)  # the third prompt has no sample
ONES = torch.ones(3)
# sums per sample 6, 6, 12; means 6, 2, 6
GOLDEN = {
    "token_mean": 24 / 6,
    "sequence_mean": (6 + 2 + 6) / 3,
    "fixed_length": 24 / (3 * 4),
    "sample_sum": 24 / 3,
    "group_sum": 24 / 2,
    "prompt_sum": 24 / 3,
}

# golden


def test_counts():
    assert Denominators(tokens=6, samples=3, groups=2, prompts=3, max_tokens=4) == STEP


@pytest.mark.parametrize("reduction", GOLDEN)
def test_reductions_by_hand(reduction):
    assert reduce_terms(TERMS, MASK, ONES, STEP, reduction).item() == pytest.approx(GOLDEN[reduction])


def test_weights_multiply_samples_but_no_denominator():
    # 2 * 6 + 0 * 6 + 0.5 * 12 = 18, over 6 tokens
    assert reduce_terms(TERMS, MASK, torch.tensor([2.0, 0.0, 0.5]), STEP, "token_mean").item() == pytest.approx(3.0)


def test_metrics_add_up_before_they_are_divided():
    parts = [{"a": (torch.tensor(6.0), torch.tensor(2))}, {"a": (1.0, 4.0), "b": (0.0, 0.0)}]
    assert mean_metrics(parts) == {"a": pytest.approx(7 / 6)}  # not the mean of 3 and 1/4; b counted nothing


def test_masked_metric_golden():
    assert [float(x) for x in masked_metric(TERMS, MASK)] == [24.0, 6.0]
    flags = torch.tensor([[True, True, True]] * 3)
    assert [float(x) for x in masked_metric(flags, MASK)] == [6.0, 6.0]


def test_mismatch_golden():
    # ratio 0.5 / 0.25 = 2: k3 = 2 - 1 - log 2 = 0.306853, gap 0.25; equal at the second; the third is masked
    trainer = torch.tensor([[0.5, 0.9, 0.1]], requires_grad=True).log()
    generator = torch.tensor([[0.25, 0.9, math.nan]]).log()
    result = mismatch(trainer, generator, torch.tensor([[True, True, False]]))
    assert [x.item() for x in result] == pytest.approx([0.306853, 2, 0.25], abs=1e-6)
    assert not any(x.requires_grad for x in result)
    nothing = mismatch(trainer, generator, torch.zeros(1, 3, dtype=torch.bool))
    assert [x.item() for x in nothing] == [0.0, 0, 0.0]
    assert mismatch(trainer[:0], generator[:0], torch.zeros(0, 3, dtype=torch.bool)).prob_max.item() == 0.0


# gradient


@pytest.mark.parametrize("reduction", GOLDEN)
def test_gradient_of_a_term_is_its_share(reduction):
    terms = TERMS.clone().requires_grad_()
    reduce_terms(terms, MASK, ONES, STEP, reduction).backward()
    lengths = MASK.sum(-1, keepdim=True) if reduction == "sequence_mean" else 1
    divisors = {"token_mean": 6, "sequence_mean": 3, "fixed_length": 12, "sample_sum": 3, "group_sum": 2}
    divisor = (divisors | {"prompt_sum": 3})[reduction]
    assert torch.allclose(terms.grad, MASK / lengths / divisor)


# invariance


@pytest.mark.parametrize("reduction", GOLDEN)
def test_micro_batches_padding_and_order(reduction):
    whole = reduce_terms(TERMS, MASK, ONES, STEP, reduction)
    pieces = [reduce_terms(TERMS[i : i + 1], MASK[i : i + 1], ONES[:1], STEP, reduction) for i in (2, 0, 1)]
    assert torch.allclose(sum(pieces), whole)
    junk = torch.cat([TERMS, torch.full((3, 100), math.nan)], 1)
    wide = torch.cat([MASK, torch.zeros(3, 100, dtype=torch.bool)], 1)
    assert torch.equal(reduce_terms(junk, wide, ONES, STEP, reduction), whole)
    twice = Denominators.count([1, 3, 2] * 2, [0, 0, 1, 2, 2, 3], prompts=6, max_tokens=4)
    doubled = reduce_terms(TERMS.repeat(2, 1), MASK.repeat(2, 1), ONES.repeat(2), twice, reduction)
    assert torch.allclose(doubled, whole)


def test_an_empty_completion_adds_nothing():
    mask = MASK.clone()
    mask[0] = False
    for reduction in GOLDEN:
        assert torch.isfinite(reduce_terms(TERMS, mask, ONES, STEP, reduction))


# reduces to


def test_reductions_agree_when_every_sample_fills_the_limit():
    terms, mask = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3, dtype=torch.bool)
    step = Denominators.count([3, 3], [0, 1], prompts=2, max_tokens=3)
    results = {r: reduce_terms(terms, mask, torch.ones(2), step, r).item() for r in GOLDEN}
    assert results["token_mean"] == results["sequence_mean"] == results["fixed_length"] == pytest.approx(2.5)
    assert results["sample_sum"] == results["group_sum"] == results["prompt_sum"] == pytest.approx(7.5)


# rejects


def test_rejects_empty_steps_and_wrong_shapes():
    with pytest.raises(ValueError, match="at least 1"):
        Denominators.count([], [], prompts=1, max_tokens=4)
    with pytest.raises(ValueError, match="prompts must count every group"):
        Denominators.count([1, 1], [0, 1], prompts=1, max_tokens=4)
    good = {
        "logprobs": TERMS, "behavior_logprobs": TERMS, "mask": MASK, "advantages": ONES, "weights": ONES,
        "groups": ONES.long(), "denominators": STEP,
    }  # fmt: skip
    LossBatch(**good)
    for name, value in {
        "mask": MASK.float(),
        "logprobs": TERMS[:, :2],
        "entropy": TERMS[:2],
        "reference_logprobs": TERMS[None],
        "advantages": ONES[:, None],
        "weights": ONES[:2],
        "groups": ONES[:2].long(),
    }.items():
        with pytest.raises(ValueError, match=f"LossBatch.{name}"):
            LossBatch(**(good | {name: value}))
    with pytest.raises(AssertionError, match="median"):
        reduce_terms(TERMS, MASK, ONES, STEP, "median")
