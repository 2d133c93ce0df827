"""CRRAFT and RAFT: arXiv 2409.20370, equations 18 and 16."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from judged_groups import group_of, places, sample_of

from llamarl.algorithms import CRRAFTConfig, RAFTConfig
from llamarl.core.records import Assignment
from llamarl.functional.losses import Denominators, LossBatch

torch.set_num_threads(1)

GOOD, BAD = sample_of((0.0, True), 90), sample_of((0.0, False), 91)
JUDGED = st.tuples(st.floats(-5.0, 5.0), st.booleans(), st.floats(-4.0, 14.0))


def assigned(*groups, **settings):
    return CRRAFTConfig(**settings).credit().assign(groups)


# golden


@pytest.mark.parametrize(
    ("judged", "baseline", "place", "weight"),
    [
        ([(1.0, True), (2.0, True)], None, 1, 0.8807971),  # the best; sigmoid(2)
        ([(1.0, True), (9.0, False)], GOOD, 0, 0.7310586),  # a violated one never is
        ([(-1.0, True), (-0.5, False), (-3.0, True)], GOOD, 0, 0.2689414),  # nor where all rewards are negative
        ([(1.0, True), (2.0, True, 10.1)], GOOD, 0, 0.7310586),  # nor one beyond the KL bound
        ([(2.0, True, 10.0)], None, 0, 0.8807971),  # which is itself allowed
        ([(1.0, False), (2.0, True, 11.0)], GOOD, 90, 0.5),  # none kept: the baseline
        ([(1.0, False)], BAD, None, None),  # which must pass itself
        ([(1.0, False)], sample_of((None, None), 92), None, None),  # and be judged
        ([(1.0, False)], None, None, None),  # none kept, no baseline
        ([(0.3, True), (0.3, True)], None, 0, 0.5744425),  # the first of equals
        ([(40.0, True), (50.0, True)], None, 1, 1.0),  # ranked by reward where the sigmoid is flat
    ],
)
def test_truth_table(judged, baseline, place, weight):  # cgpo P6
    assignment = assigned(group_of(*judged, baseline=baseline))
    if place is None:
        assert assignment.samples == () and assignment.metrics["skipped_prompts"] == 1.0
    else:
        assert places(assignment.samples) == [place]
        assert assignment.samples[0].advantages == pytest.approx(weight)
    assert assignment.num_prompts == 1
    assert assignment.metrics["fallback_frac"] == float(place == 90)


@pytest.mark.parametrize(("reward", "weight"), [("calibrated", 0.5), ("constant", 1.0), ("as_is", 0.25)])
def test_the_baseline_weighs_what_its_reward_says(reward, weight):
    baseline = sample_of((0.25 if reward == "as_is" else 0.0, True), 90)
    (sample,) = assigned(group_of((1.0, False), baseline=baseline), reward=reward).samples
    assert sample.advantages == pytest.approx(weight)


def test_metrics_by_hand():
    groups = (
        group_of((0.0, True, 1.0), (0.0, False, 3.0)),
        group_of((0.0, False, 12.0), index=1, baseline=GOOD),
        group_of((0.0, False, -4.0), (None, None), index=2),
    )
    assert assigned(*groups).metrics == pytest.approx(
        {
            "skipped_prompts": 1.0,
            "fallback_frac": 1 / 3,
            "kept_frac": 2 / 3,
            "violation_rate": 3 / 4,
            "unjudged_frac": 1 / 5,
            "calibrated_reward/mean": 0.5,
            "kl/mean": (1 + 3 + 12 - 4) / 4,
            "kl_factor/zero_frac": 1 / 4,
            "kl_factor/above_one_frac": 1 / 4,
        }
    )


def test_raft_takes_the_best_of_each_prompt():  # equation 16: no filter, no weight
    assignment = (
        RAFTConfig().credit().assign([group_of((1.0, False), (3.0, False, 99.0)), group_of((-2.0, True), index=1)])
    )
    assert places(assignment.samples) == [1, 0] and [s.advantages for s in assignment.samples] == [1.0, 1.0]
    assert (assignment.num_prompts, assignment.metrics) == (2, {"best_reward/mean": 0.5})


# gradient


@pytest.mark.parametrize("config", [CRRAFTConfig(), RAFTConfig()])
def test_the_gradient_is_the_weight_over_the_prompts(config):  # cgpo D6: 5 prompts, of which 2 train
    leaf = torch.full((2, 3), -1.0).requires_grad_()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    batch = LossBatch(
        logprobs=leaf,
        behavior_logprobs=torch.full((2, 3), -2.0),
        mask=mask,
        advantages=torch.tensor([0.9, 0.4]),
        weights=torch.ones(2),
        groups=torch.tensor([0, 1]),
        denominators=Denominators.count([3, 1], [0, 1], prompts=5, max_tokens=9),
    )
    config.loss()(batch).loss.backward()
    assert torch.allclose(leaf.grad, -torch.tensor([[0.9], [0.4]]) * mask / 5)


def test_the_gradient_of_two_prompts_by_hand():  # cgpo P6: one prompt trains, the other contributes 0 and counts
    groups = group_of((0.2, True), (0.8, True, 2.0), (0.9, False)), group_of((0.5, False), (0.6, True, 11.0), index=1)
    assignment = assigned(*groups, reward="as_is")
    assert places(assignment.samples) == [1] and assignment.num_prompts == 2
    leaf = torch.full((1, 2), -1.0).requires_grad_()
    batch = LossBatch(
        logprobs=leaf,
        behavior_logprobs=leaf.detach(),
        mask=torch.ones(1, 2, dtype=torch.bool),
        advantages=torch.tensor([s.advantages for s in assignment.samples]),
        weights=torch.ones(1),
        groups=torch.tensor([0]),
        denominators=Denominators.count([2], [0], prompts=assignment.num_prompts, max_tokens=2),
    )
    CRRAFTConfig().loss()(batch).loss.backward()
    assert torch.allclose(leaf.grad, torch.tensor([[-0.4, -0.4]]))  # 0.8 over 2 prompts, upwards


# invariance


@given(st.lists(JUDGED, min_size=1, max_size=6))
def test_what_trains_keeps_to_all_bounds(judged):  # cgpo P1, P6
    for sample in assigned(group_of(*judged), kl_max=5.0).samples:
        _, is_satisfied, kl = judged[places([sample])[0]]
        assert is_satisfied and kl <= 5.0 + 1e-9
        assert 0.0 < sample.advantages < 1.0


def test_samples_that_could_not_be_judged_never_train():
    judged = group_of((1.0, True), (None, None), (float("inf"), True))
    for config in (CRRAFTConfig(), RAFTConfig()):
        assert places(config.credit().assign([judged]).samples) == [0]
        assert config.credit().assign([group_of((None, None), baseline=GOOD)]) == Assignment((), 0, _unjudged(config))
        assert config.credit().assign([]).samples == ()


def _unjudged(config):
    return {} if config == RAFTConfig() else {"skipped_prompts": 0.0, "unjudged_frac": 1.0}


# reduces to


def test_without_constraints_and_bound_it_is_raft_weighted():
    groups = [group_of((1.0, True, 50.0), (2.0, True, -3.0)), group_of((0.5, True), index=1)]
    free, raft = assigned(*groups, kl_max=1e9, reward="constant"), RAFTConfig().credit().assign(groups)
    assert free.samples == raft.samples and free.num_prompts == raft.num_prompts


# rejects


def test_staleness_is_allowed_with_the_correction_only():
    for config in (CRRAFTConfig, RAFTConfig):
        assert config().needs.corrects_staleness is False
        assert config(off_policy="aipo").needs.corrects_staleness is True
