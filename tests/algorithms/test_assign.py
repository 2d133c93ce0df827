"""The controller's half: groups of judged samples to training samples."""

import math
import pickle
from dataclasses import replace

import pytest

from llamarl.algorithms import (
    AIPOConfig,
    CISPOConfig,
    CODPOConfig,
    CRRAFTConfig,
    DAPOConfig,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    RAFTConfig,
    ReinforcePPConfig,
    RLOOConfig,
)
from llamarl.core.records import Assignment, Completion, Group, Prompt, Sample, Trajectory

ALL = [AIPOConfig, CISPOConfig, DAPOConfig, DrGRPOConfig, GRPOConfig, GSPOConfig, ReinforcePPConfig, RLOOConfig]


def group_of(rewards, index=0, lengths=None):
    lengths = lengths or [2] * len(rewards)
    samples = []
    for i, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
        tokens = tuple(range(10 * i, 10 * i + length))
        trajectory = Trajectory.sampled((1, 2, index), tokens, (-0.5 * (i + 1),) * length, (3,) * length)
        samples.append(Sample(Completion(trajectory, "text"), {}, reward))
    return Group(Prompt(f"p{index}", ()), tuple(samples), index=index)


def cut_off(sample):
    trajectory = replace(sample.completion.trajectory, finish_reason="length")
    return replace(sample, completion=replace(sample.completion, trajectory=trajectory))


def advantages(config, *groups):
    return [sample.advantages for sample in config.credit().assign(groups).samples]


# golden


def test_aipo_and_dr_grpo_subtract_the_group_mean():
    groups = group_of([1, 0, 0, 1], index=0), group_of([4, 1], index=1)  # means 0.5 and 2.5
    for config in (AIPOConfig(), DrGRPOConfig()):
        assert advantages(config, *groups) == [0.5, -0.5, -0.5, 0.5, 1.5, -1.5]


def test_rloo_subtracts_the_mean_of_the_others():
    assert advantages(RLOOConfig(), group_of([6, 1, 2])) == pytest.approx([4.5, -3.0, -1.5])


def test_grpo_family_divides_by_the_group_std():
    # mean 1/4, std sqrt(3)/4 = 0.4330127; eps 1e-6 lowers 1.7320508 by 4e-6
    for config in (GRPOConfig(), DAPOConfig(), GSPOConfig(), CISPOConfig()):
        assert advantages(config, group_of([1, 0, 0, 0])) == pytest.approx([1.7320508] + [-0.5773503] * 3, abs=1e-5)


def test_grpo_family_divides_by_what_it_is_told():
    groups = group_of([1, 0], index=0), group_of([0, 3], index=1)
    for config in (GRPOConfig, DAPOConfig, GSPOConfig, CISPOConfig):
        assert config().scale == "group" and config().eps == 1e-6
        assert advantages(config(scale="none"), *groups) == [0.5, -0.5, -1.5, 1.5] == advantages(AIPOConfig(), *groups)
        # all four rewards: mean 1, std sqrt((0 + 1 + 1 + 4) / 4) = 1.2247449
        expected = [0.4082483, -0.4082483, -1.2247449, 1.2247449]
        assert advantages(config(scale="batch", eps=1e-12), *groups) == pytest.approx(expected)
        # stds 1/2 and 3/2 plus 1/2
        assert advantages(config(eps=0.5), *groups) == pytest.approx([0.5, -0.5, -0.75, 0.75])


def truncated(group, *places):
    """The group with some of its completions cut by the token limit."""
    samples = [cut_off(s) if i in places else s for i, s in enumerate(group.samples)]
    return replace(group, samples=tuple(samples))


MASKABLE = [*ALL, PPOConfig]


@pytest.mark.parametrize("config", MASKABLE)
def test_truncated_completions_leave_the_loss_but_count_in_every_mean(config):
    groups = [truncated(group_of([1, 0, 0, 3]), 1, 3), group_of([2, 5], index=1)]
    everything, kept = (config(mask_truncated=m).credit().assign(groups) for m in (False, True))
    assert config().credit().assign(groups) == everything and "masked_frac" not in everything.metrics
    assert kept.samples == tuple(everything.samples[i] for i in (0, 2, 4, 5))  # their advantages are as before
    assert kept.num_prompts == everything.num_prompts == 2 and kept.metrics["masked_frac"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("config", MASKABLE)
def test_a_prompt_of_which_all_is_truncated_trains_nothing_and_counts(config):
    groups = [truncated(group_of([1, 0]), 0, 1), group_of([2, 5], index=1)]
    kept = config(mask_truncated=True).credit().assign(groups)
    assert {sample.group for sample in kept.samples} == {1} and kept.num_prompts == 2


def test_the_best_is_never_a_truncated_one():
    groups = [truncated(group_of([1, 0, 0.5]), 0), truncated(group_of([1, 0], index=1), 0, 1)]
    for config in (RAFTConfig, CRRAFTConfig):
        settings = {"reward": "as_is"} if config is CRRAFTConfig else {}
        known = [
            replace(g, samples=tuple(replace(s, reference_logprobs=s.completion.logprobs) for s in g.samples))
            for g in groups
        ]
        free = config(**settings).credit().assign(known)
        assert [sample.trajectory.token_ids[0] for sample in free.samples] == [0, 0]
        kept = config(**settings, mask_truncated=True).credit().assign(known)
        assert [(sample.group, sample.trajectory.token_ids[0]) for sample in kept.samples] == [
            (0, 20)
        ] and kept.num_prompts == 2


def test_no_pair_holds_a_truncated_one():
    groups = [truncated(group_of([1, 0, 0.5]), 0), truncated(group_of([1, 0], index=1), 1)]
    groups[0] = replace(groups[0], samples=tuple(numbered(groups[0].samples)))
    for config in (OnlineDPOConfig, CODPOConfig):
        kept = config(mask_truncated=True).credit().assign(groups)
        assert [(s.group, s.trajectory.token_ids[0], s.advantages) for s in kept.samples] == [
            (0, 20, 1.0),
            (0, 10, -1.0),
        ]
        assert kept.num_prompts == 2 and kept.metrics["masked_frac"] == pytest.approx(2 / 5)


def numbered(samples):
    """The samples with texts that differ."""
    return [replace(s, completion=replace(s.completion, text=f"text {i}")) for i, s in enumerate(samples)]


def test_reinforce_pp_standardises_the_batch():
    groups = group_of([1, 0], index=0), group_of([0, 3], index=1)
    # mean 1, deviations 0 -1 -1 2, std sqrt(6/4) = 1.2247449
    assert advantages(ReinforcePPConfig(), *groups) == pytest.approx([0, -0.8164966, -0.8164966, 1.6329932], abs=1e-5)
    # minus group means 0.5 and 1.5: 0.5 -0.5 -1.5 1.5, std sqrt((0.25 + 0.25 + 2.25 + 2.25) / 4) = 1.1180340
    expected = [0.4472136, -0.4472136, -1.3416408, 1.3416408]
    assert advantages(ReinforcePPConfig(group_baseline=True), *groups) == pytest.approx(expected, abs=1e-5)


def test_reinforce_pp_needs_no_second_sample():
    alone = [group_of([reward], index=i) for i, reward in enumerate([1, 0])]
    assert advantages(ReinforcePPConfig(), *alone) == pytest.approx([1, -1], abs=1e-5)


def test_dapo_penalises_overlong_completions():
    config = DAPOConfig(overlong_limit=10, overlong_buffer=4)
    samples = group_of([1, 1, 1, 1, 0], lengths=[6, 7, 10, 12, 1]).samples
    # 0 up to 10 - 4 = 6 tokens, then a quarter per token, -1 from 10 on; the reward 0 stays
    assert [config.shaped_reward(s) for s in samples] == [1.0, 0.75, 0.0, 0.0, 0.0]
    assert DAPOConfig().shaped_reward(samples[3]) == 1


def test_samples_carry_the_completions_numbers_and_nothing_else():
    groups = [group_of([1, 0], index=7), group_of([0, 1], index=9)]
    assignment = AIPOConfig().credit().assign(groups)
    result = assignment.samples
    assert [sample.group for sample in result] == [7, 7, 9, 9]
    assert assignment.num_prompts == 2 and assignment.metrics == {}
    for sample, source in zip(result, [s for group in groups for s in group.samples], strict=True):
        assert sample.trajectory is source.completion.trajectory
        assert sample.weight == 1.0 and sample.reference_logprobs is None


def test_reference_log_probs_travel_with_their_sample():
    group = group_of([1, 0])
    known = replace(group, samples=(replace(group.samples[0], reference_logprobs=(-0.25, -4.0)), group.samples[1]))
    assert [s.reference_logprobs for s in GRPOConfig().credit().assign([known]).samples] == [(-0.25, -4.0), None]


# invariance


@pytest.mark.parametrize("config", ALL)
def test_unscored_samples_leave_every_mean(config):
    scored = config().credit().assign([group_of([1, 0, 3]), group_of([2, 5], index=1)])
    with_gaps = (
        config()
        .credit()
        .assign([group_of([1, None, 0, 3, math.nan]), group_of([None, None], index=5), group_of([2, 5], index=1)])
    )
    assert [s.advantages for s in with_gaps.samples] == [s.advantages for s in scored.samples]
    assert len(with_gaps.samples) == 5
    assert with_gaps.num_prompts == scored.num_prompts == 2  # a prompt that could not be judged is no prompt


@pytest.mark.parametrize("config", ALL)
def test_equal_rewards_give_exact_zeros(config):
    assert advantages(config(), group_of([0.1] * 3), group_of([0.1] * 4, index=1)) == [0.0] * 7


@pytest.mark.parametrize("config", [c for c in ALL if c is not ReinforcePPConfig])
def test_a_group_with_one_scored_sample_has_no_signal(config):
    assert advantages(config(), group_of([None, 5.0, None]), group_of([1, 0], index=1))[0] == 0.0


@pytest.mark.parametrize("config", ALL)
def test_nothing_scored_gives_nothing(config):
    assert config().credit().assign([]) == config().credit().assign([group_of([None, None])]) == Assignment((), 0)


@pytest.mark.parametrize("config", ALL)
def test_groups_do_not_mix_even_when_their_index_is_equal(config):
    if config is ReinforcePPConfig:
        config = lambda: ReinforcePPConfig(group_baseline=True)  # noqa: E731
    same = advantages(config(), group_of([1, 0]), group_of([7, 6]))
    assert same == advantages(config(), group_of([1, 0], index=0), group_of([7, 6], index=1))
    assert same[0] == pytest.approx(same[2])


@pytest.mark.parametrize("config", ALL)
def test_algorithms_cross_process_borders(config):
    settings = pickle.loads(pickle.dumps(config()))
    assert settings == config()
    assert settings.credit().assign([group_of([1, 0])]) == config().credit().assign([group_of([1, 0])])


# reduces to


def test_leave_one_out_is_a_rescale():  # llamarl P3
    group = group_of([1, 0, 0, 4])
    own = advantages(AIPOConfig(), group)
    others = advantages(AIPOConfig(center="leave_one_out"), group)
    assert others == pytest.approx([4 / 3 * a for a in own])
    assert others == advantages(RLOOConfig(), group)
