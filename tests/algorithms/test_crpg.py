"""CRPG: arXiv 2409.20370, equations 8, 11, 12."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from judged_groups import group_of, sample_of

from llamarl.algorithms import CRPGConfig
from llamarl.core.errors import ConfigError, DataError
from llamarl.functional.losses import Denominators, LossBatch

torch.set_num_threads(1)

SIGMOID_1, SIGMOID_2 = 0.7310586, 0.8807971
JUDGED = st.tuples(st.floats(-5.0, 5.0), st.booleans(), st.floats(-4.0, 14.0))


def advantages(config, *groups):
    return [sample.advantages for sample in config.credit().assign(groups).samples]


def batch_of(advantages, lengths=(2, 1), samples=None):
    """Log-probs as a leaf, one row per advantage."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    leaf = torch.full(mask.shape, -1.5).requires_grad_()
    counts = Denominators.count(lengths, range(len(lengths)), prompts=len(lengths), max_tokens=4)
    if samples:
        counts = replace(counts, samples=samples)
    return LossBatch(
        logprobs=leaf,
        behavior_logprobs=torch.full(mask.shape, -1.0),
        mask=mask,
        advantages=torch.tensor(advantages),
        weights=torch.ones(len(lengths)),
        groups=torch.arange(len(lengths)),
        denominators=counts,
    ), leaf


# golden


def test_two_prompts_by_hand():
    groups = group_of((0.0, True, 2.5), (9.0, False)), group_of((1.0, True, 12.0), (2.0, True, -5.0), index=1)
    # KL_max 10: (1 - 0.25) * 0.5 = 0.375; violated 0; factor 0; (1 + 0.5) * sigmoid(2) = 1.32119565
    expected = [0.375, 0.0, 0.0, 1.5 * SIGMOID_2]
    mean = sum(expected) / 4
    assignment = CRPGConfig().credit().assign(groups)
    assert [s.advantages for s in assignment.samples] == pytest.approx([r - mean for r in expected])
    assert assignment.num_prompts == 2
    assert assignment.metrics == pytest.approx(
        {
            "kept_frac": 2 / 4,
            "regularized_reward/mean": mean,
            "violation_rate": 1 / 4,
            "unjudged_frac": 0.0,
            "calibrated_reward/mean": (0.5 + 0.9998766 + SIGMOID_1 + SIGMOID_2) / 4,
            "kl/mean": (2.5 + 0 + 12 - 5) / 4,
            "kl_factor/zero_frac": 1 / 4,
            "kl_factor/above_one_frac": 1 / 4,
        }
    )


def test_settings_by_hand():
    groups = group_of((1.0, True, 5.0), (1.0, True, -5.0))
    # factors 0.5 and 1.5; clamped 0.5 and 1
    assert advantages(CRPGConfig(reward="constant"), groups) == pytest.approx([-0.5, 0.5])
    assert advantages(CRPGConfig(reward="constant", clamp_kl_factor=True), groups) == pytest.approx([-0.25, 0.25])
    # per-token KL 2.5 and -2.5: factors 0.75 and 1.25
    assert advantages(CRPGConfig(reward="as_is", kl="mean"), groups) == pytest.approx([-0.25, 0.25])
    assert advantages(CRPGConfig(), groups) == pytest.approx([-0.5 * SIGMOID_1, 0.5 * SIGMOID_1])


def test_calibrated_rewards_by_hand():  # cgpo P2
    assert CRPGConfig().calibrate_reward(sample_of((0.0, True))) == 0.5  # as good as the baseline response
    assert CRPGConfig().calibrate_reward(sample_of((1.0, True))) == pytest.approx(SIGMOID_1)
    assert [CRPGConfig().calibrate_reward(sample_of((gap, True))) for gap in (1e4, -1e4)] == [1.0, 0.0]
    assert CRPGConfig(reward="as_is").calibrate_reward(sample_of((2.5, True))) == 2.5
    assert CRPGConfig(reward="constant").calibrate_reward(sample_of((-9.0, True))) == 1.0  # cgpo D8


# gradient


def test_the_gradient_is_the_advantage_over_the_samples():
    batch, leaf = batch_of([0.5, -0.5])
    CRPGConfig().loss()(batch).loss.backward()
    # equation 12: (1 / n) A for every token of the completion, whatever the ratio (here e^-0.5)
    assert torch.equal(leaf.grad, torch.tensor([[-0.25, -0.25], [0.25, 0.0]]))


def test_off_policy_weighs_by_the_truncated_ratio():
    batch, leaf = batch_of([0.5, -0.5])
    CRPGConfig(off_policy="aipo").loss()(batch).loss.backward()
    weight = torch.tensor(-0.5).exp()
    assert torch.allclose(leaf.grad, weight * torch.tensor([[-0.25, -0.25], [0.25, 0.0]]))


def test_the_gradient_of_two_prompts_by_hand():  # cgpo P3, P4: from judged samples to log-probs, over both prompts
    groups = group_of((1.0, True, 5.0), (1.0, False)), group_of((0.5, True), (1.0, True, 10.0), index=1)
    # R~: (1 - 5/10) * 1 = 0.5; violated 0; (1 - 0) * 0.5 = 0.5; (1 - 10/10) * 1 = 0; mean 0.25
    expected = [0.25, -0.25, 0.25, -0.25]
    found = advantages(CRPGConfig(reward="as_is"), *groups)
    assert found == expected
    batch, leaf = batch_of(found, lengths=(2, 2, 2, 2))
    CRPGConfig().loss()(batch).loss.backward()
    # ascent on (1/4) sum A log pi: every token of a completion gets -A / 4, and nothing for the log-prob in its KL
    assert torch.equal(leaf.grad, -torch.tensor(expected)[:, None].expand(4, 2) / 4)


# invariance


@given(st.lists(JUDGED, min_size=1, max_size=8))
def test_a_violating_sample_earns_nothing_whatever_its_reward_and_kl(judged):  # cgpo P1
    config = CRPGConfig()
    group = group_of(*judged)
    rewards = [config.shaped_reward(sample) for sample in group.samples]
    found = config.credit().assign([group]).samples
    for (_, is_satisfied, _), reward, sample in zip(judged, rewards, found, strict=True):
        assert reward >= 0.0
        if not is_satisfied:
            assert reward == 0.0 and sample.advantages <= 0.0


def test_all_negative_rewards_keep_the_order():  # cgpo P1
    found = advantages(CRPGConfig(), group_of((-3.0, True), (-1.0, False), (-5.0, True)))
    assert found[0] > found[2] > found[1]


@given(st.lists(JUDGED, min_size=1, max_size=8), st.lists(JUDGED, min_size=1, max_size=8))
def test_weights_sum_to_zero_over_the_batch(first, second):  # cgpo P3
    found = advantages(CRPGConfig(), group_of(*first), group_of(*second, index=1))
    assert sum(found) == pytest.approx(0.0, abs=1e-9)


def test_all_violated_or_all_equal_give_exact_zeros_and_are_logged():  # cgpo P3
    violated = group_of((3.0, False), (-1.0, False)), group_of((0.0, False), index=1)
    assignment = CRPGConfig().credit().assign(violated)
    assert [s.advantages for s in assignment.samples] == [0.0] * 3
    assert (assignment.metrics["violation_rate"], assignment.metrics["kept_frac"]) == (1.0, 0.0)
    assert advantages(CRPGConfig(), group_of(*[(0.3, True, 1.7)] * 3), group_of((0.3, True, 1.7), index=1)) == [0.0] * 4


def test_samples_that_could_not_be_judged_leave_every_mean():
    judged = [(1.0, True), (0.5, False)]
    gaps = group_of(*judged, (None, None), (float("nan"), True)), group_of((None, None), index=1)
    assignment = CRPGConfig().credit().assign(gaps)
    assert [s.advantages for s in assignment.samples] == advantages(CRPGConfig(), group_of(*judged))
    assert assignment.num_prompts == 1 and assignment.metrics["unjudged_frac"] == 3 / 5
    assert CRPGConfig().credit().assign([group_of((None, None))]).samples == ()


def test_a_constant_added_to_the_reward_model_cancels_in_the_margin():  # cgpo P2: rewards are margins over the baseline
    shifted = [(reward + 100.0) - (baseline + 100.0) for reward, baseline in ((2.0, 1.0), (0.0, 1.0))]
    plain = [reward - baseline for reward, baseline in ((2.0, 1.0), (0.0, 1.0))]
    groups = [group_of(*((margin, True) for margin in margins)) for margins in (shifted, plain)]
    assert advantages(CRPGConfig(), groups[0]) == advantages(CRPGConfig(), groups[1])


def test_parts_of_the_batch_add_up():  # cgpo P3
    whole, leaf = batch_of([0.5, -0.2, -0.3], lengths=(2, 1, 3))
    CRPGConfig().loss()(whole).loss.backward()
    parts = []
    for row, length in enumerate((2, 1, 3)):
        part, own = batch_of([float(whole.advantages[row])], lengths=(length,), samples=3)
        CRPGConfig().loss()(part).loss.backward()
        parts.append(torch.cat([own.grad, torch.zeros(1, 3 - length)], 1))
    assert torch.allclose(torch.cat(parts), leaf.grad)


# reduces to


def test_without_constraints_near_the_reference_it_is_reinforce_with_the_batch_mean():
    groups = group_of((1.0, True), (0.0, True)), group_of((0.0, True), (3.0, True), index=1)
    assert advantages(CRPGConfig(reward="as_is"), *groups) == pytest.approx([0.0, -1.0, -1.0, 2.0])


# rejects


def test_staleness_is_allowed_with_the_correction_only():
    assert CRPGConfig().needs.corrects_staleness is False
    assert CRPGConfig(off_policy="aipo").needs.corrects_staleness is True


def test_rejects_missing_reference_log_probs_and_negative_rewards_as_they_are():
    bare = replace(group_of((1.0, True)), samples=(replace(sample_of((1.0, True)), reference_logprobs=None),))
    with pytest.raises(DataError, match=r"reference_logprobs is missing.*ReferenceExecutor"):
        CRPGConfig().credit().assign([bare])
    with pytest.raises(ConfigError, match=r"algorithm\.reward='as_is': a reward is -0\.1.*rescale the judge"):
        CRPGConfig(reward="as_is").credit().assign([group_of((-0.1, True), (1.0, True))])
