"""CODPO and online DPO: arXiv 2409.20370, equations 13 to 15, ascending."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from judged_groups import group_of, places, sample_of

from llamarl.algorithms import CODPOConfig, OnlineDPOConfig
from llamarl.core.records import Assignment
from llamarl.functional.losses import Denominators, LossBatch, mean_metrics

torch.set_num_threads(1)

JUDGED = st.tuples(st.floats(-5.0, 5.0), st.booleans())


def pair_of(config, *judged):
    """Places of the better and the worse sample, or None."""
    samples = config.credit().assign([group_of(*judged)]).samples
    assert [s.advantages for s in samples] == ([1.0, -1.0] if samples else [])
    return tuple(places(samples)) or None


def batch_of(rows=slice(None), prompts=2):
    """Two pairs: groups 7 and 4, completions of 2, 1, 3 and 2 tokens; policy and reference differ."""
    generator = torch.Generator().manual_seed(0)
    leaf = (-torch.rand(4, 3, generator=generator, dtype=torch.float64) - 0.2).requires_grad_()
    reference = -torch.rand(4, 3, generator=generator, dtype=torch.float64) - 0.2
    lengths = torch.tensor([2, 1, 3, 2])
    return LossBatch(
        logprobs=leaf[rows],
        behavior_logprobs=leaf.detach()[rows],
        reference_logprobs=reference[rows],
        mask=(torch.arange(3) < lengths[:, None])[rows],
        advantages=torch.tensor([1.0, -1.0, -1.0, 1.0])[rows],
        weights=torch.ones(4)[rows],
        groups=torch.tensor([7, 7, 4, 4])[rows],
        denominators=Denominators.count(lengths.tolist(), [7, 7, 4, 4], prompts=prompts, max_tokens=3),
    ), leaf


# golden


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ([(5.0, False), (1.0, False)], None),  # none satisfied: skip
        ([(1.0, True), (2.0, True), (9.0, False), (-1.0, False)], (1, 3)),  # best satisfied, worst violated
        ([(-1.0, True), (-2.0, True), (-9.0, False)], (0, 2)),  # all rewards negative
        ([(4.0, True), (1.0, False), (7.0, False)], (0, 1)),  # a violated sample may be worth more than a+
        ([(3.0, True), (1.0, True), (2.0, True)], (0, 1)),  # all satisfied: best against worst
        ([(3.0, True)], None),  # K = 1: skip
        ([(3.0, True), (3.0, True)], None),  # one sample would be both
        ([(3.0, True), (None, None)], None),
    ],
)
def test_truth_table(judged, expected):  # cgpo P5, P1
    assert pair_of(CODPOConfig(), *judged) == expected


def test_online_dpo_takes_the_extremes_of_the_reward():
    assert pair_of(OnlineDPOConfig(), (1.0, False), (3.0, False), (2.0, True)) == (1, 0)
    assert pair_of(OnlineDPOConfig(), (1.0, True), (1.0, True)) is None


def test_a_pair_that_says_the_same_is_skipped():  # cgpo D4
    group = group_of((2.0, True), (1.0, False))
    same = replace(group, samples=tuple(sample_of(j, i, "same") for i, j in enumerate([(2.0, True), (1.0, False)])))
    assert CODPOConfig().credit().assign([same]).samples == ()


def test_metrics_by_hand():
    groups = (
        group_of((2.0, True), (0.5, False)),
        group_of((1.0, False), (0.0, False), index=1),
        group_of((4.0, True), (1.0, True), (None, None), index=2),
    )
    found = CODPOConfig().credit().assign(groups)
    assert found.num_prompts == 3 and len(found.samples) == 4
    assert found.metrics == pytest.approx(
        {
            "skipped_prompts": 1.0,
            "kept_frac": 2 / 3,
            "reward_gap/mean": (1.5 + 3.0) / 2,
            "violation_rate": 3 / 6,
            "unjudged_frac": 1 / 7,
        }
    )


def test_the_loss_at_the_reference_is_log_2_less_the_likelihood():  # cgpo P5
    batch, _ = batch_of()
    batch = replace(batch, reference_logprobs=batch.logprobs.detach())
    sums = (batch.logprobs.detach() * batch.mask).sum(-1)
    # a+ are rows 0 (2 tokens) and 3 (2 tokens); over 2 prompts
    likelihood = 0.3 * (sums[0] / 2 + sums[3] / 2)
    assert CODPOConfig(likelihood_coef=0.3).loss()(batch).loss.item() == pytest.approx(
        math.log(2) - likelihood.item() / 2
    )
    assert OnlineDPOConfig().loss()(batch).loss.item() == pytest.approx(math.log(2))


def test_the_loss_by_hand():
    batch, _ = batch_of(prompts=5)
    ratios = ((batch.logprobs - batch.reference_logprobs) * batch.mask).sum(-1).tolist()
    margins = 0.5 * (ratios[0] - ratios[1]), 0.5 * (ratios[3] - ratios[2])
    expected = sum(math.log1p(math.exp(-m)) for m in margins) / 5
    output = OnlineDPOConfig(beta=0.5).loss()(batch)
    assert output.loss.item() == pytest.approx(expected)
    metrics = mean_metrics([output.metrics])
    assert metrics["train/pair/margin"] == pytest.approx(sum(margins) / 2)
    assert metrics["train/pair/accuracy"] == sum(m > 0 for m in margins) / 2
    sums = (batch.logprobs.detach() * batch.mask).sum(-1)
    assert metrics["train/pair/chosen_logprob"] == pytest.approx((sums[0] / 2 + sums[3] / 2).item() / 2)
    assert metrics["train/ratio/mean"] == 1.0


# gradient


def test_the_gradient_by_hand():
    batch, leaf = batch_of(prompts=5)
    ratios = ((batch.logprobs - batch.reference_logprobs) * batch.mask).sum(-1)
    CODPOConfig(beta=0.5, likelihood_coef=0.3).loss()(batch).loss.backward()
    for chosen, rejected in ((0, 1), (3, 2)):
        pull = 0.5 * torch.sigmoid(-0.5 * (ratios[chosen] - ratios[rejected])).detach() / 5
        lengths = batch.mask.sum(-1)
        assert torch.allclose(leaf.grad[chosen], -(pull + 0.3 / lengths[chosen] / 5) * batch.mask[chosen])
        assert torch.allclose(leaf.grad[rejected], pull * batch.mask[rejected])


def test_a_step_raises_the_better_and_lowers_the_worse():  # the printed sign would do the opposite
    batch, leaf = batch_of()
    OnlineDPOConfig().loss()(batch).loss.backward()
    change = (-leaf.grad).sum(-1)
    assert torch.equal(change.sign(), batch.advantages.double())


# invariance


@given(st.lists(JUDGED, max_size=6))
def test_a_violating_sample_is_never_the_better_one(judged):  # cgpo P1
    pair = pair_of(CODPOConfig(), *judged)
    if pair is not None:
        assert judged[pair[0]][1] and pair[0] != pair[1]
        if not all(is_satisfied for _, is_satisfied in judged):
            assert not judged[pair[1]][1]


@pytest.mark.parametrize("config", [CODPOConfig(), OnlineDPOConfig(beta=0.7)])
def test_micro_batches_of_whole_pairs_add_up_in_any_order(config):
    batch, leaf = batch_of()
    whole = config.loss()(batch)
    whole.loss.backward()
    parts = []
    split = torch.zeros_like(leaf)
    for rows in (torch.tensor([3, 2]), torch.tensor([1, 0])):
        part, own = batch_of(rows)
        output = config.loss()(part)
        output.loss.backward()
        parts.append(output)
        split += own.grad
    assert torch.allclose(sum(p.loss for p in parts), whole.loss) and torch.allclose(split, leaf.grad)
    assert mean_metrics([p.metrics for p in parts]) == pytest.approx(mean_metrics([whole.metrics]))


def test_padding_never_matters():
    batch, _ = batch_of()
    junk = torch.full((4, 5), math.nan, dtype=torch.float64)
    wide = {
        name: torch.cat([getattr(batch, name).detach(), junk], 1)
        for name in ("logprobs", "behavior_logprobs", "reference_logprobs")
    }
    leaf = wide["logprobs"].requires_grad_()
    padded = replace(batch, mask=torch.cat([batch.mask, torch.zeros(4, 5, dtype=torch.bool)], 1), **wide)
    output = CODPOConfig().loss()(padded)
    output.loss.backward()
    assert torch.allclose(output.loss, CODPOConfig().loss()(batch).loss)
    assert torch.isfinite(leaf.grad).all() and not leaf.grad[~padded.mask].any()


def test_a_weight_multiplies_its_pair():
    batch, _ = batch_of()
    alone = [OnlineDPOConfig().loss()(batch_of(torch.tensor(rows))[0]).loss for rows in ([0, 1], [2, 3])]
    weighted = OnlineDPOConfig().loss()(replace(batch, weights=torch.tensor([2.0, 2.0, 0.5, 0.5]))).loss
    assert torch.allclose(weighted, 2.0 * alone[0] + 0.5 * alone[1])


# reduces to


def test_without_constraints_and_likelihood_it_is_online_dpo():
    groups = [group_of((2.0, True), (0.5, True)), group_of((1.0, True), (3.0, True), index=1)]
    constrained, free = CODPOConfig(likelihood_coef=0.0), OnlineDPOConfig()
    assert constrained.credit().assign(groups).samples == free.credit().assign(groups).samples
    batch, _ = batch_of()
    assert torch.equal(constrained.loss()(batch).loss, free.loss()(batch).loss)


# rejects


@pytest.mark.parametrize("config", [CODPOConfig, OnlineDPOConfig])
def test_rejects_what_it_cannot_pair_and_stale_pairs_unless_told(config):
    batch, _ = batch_of(rows=slice(0, 3))
    with pytest.raises(ValueError, match="every group needs one row"):
        config().loss()(batch)
    with pytest.raises(ValueError, match="reference_logprobs is missing, but the loss needs it"):
        config().loss()(replace(batch_of()[0], reference_logprobs=None))
    assert config().needs.corrects_staleness is False
    assert config(off_policy="as_is").needs.corrects_staleness is True
    assert config().credit().assign([]) == Assignment((), 0, {"skipped_prompts": 0.0})
