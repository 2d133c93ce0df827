"""PPO with a critic: arXiv 1707.06347, with the KL penalty of arXiv 2203.02155 in the reward."""

import math
from dataclasses import replace

import pytest
import torch
from judged_groups import group_of

from llamarl.algorithms import PPOConfig
from llamarl.functional.gae import generalized_advantages, token_rewards
from llamarl.functional.losses import Denominators, LossBatch, mean_metrics

torch.set_num_threads(1)

LENGTHS = [3, 1, 2]


def batch_of(rows=slice(None), ratio=1.0):
    """Rewards 1, -2 and 0.5; critic, behaviour and reference all differ."""
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(3, 3, generator=generator, dtype=torch.float64) - 0.2
    leaf, values = (
        logprobs.requires_grad_(),
        torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_(),
    )
    batch = LossBatch(
        logprobs=leaf[rows],
        behavior_logprobs=leaf.detach()[rows] - math.log(ratio),
        reference_logprobs=(leaf.detach() - torch.rand(3, 3, generator=generator, dtype=torch.float64))[rows],
        values=values[rows],
        mask=(torch.arange(3) < torch.tensor(LENGTHS)[:, None])[rows],
        advantages=torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[rows],
        weights=torch.ones(3, dtype=torch.float64)[rows],
        groups=torch.tensor([0, 0, 1])[rows],
        denominators=Denominators.count(LENGTHS, [0, 0, 1], prompts=2, max_tokens=3),
    )
    return batch, leaf, values


def estimate(batch, config):
    penalties = config.kl_coef * (batch.behavior_logprobs - batch.reference_logprobs)
    rewards = token_rewards(batch.advantages, penalties, batch.mask)
    return generalized_advantages(rewards, batch.values, batch.mask, gamma=config.gamma, lam=config.lam)


# golden


def test_every_judged_sample_trains_and_carries_its_reward():
    groups = [group_of((1.0, True), (0.0, False), (None, None)), group_of((None, None), index=1)]
    assignment = PPOConfig().credit().assign(groups)
    assert [s.advantages for s in assignment.samples] == [1.0, 0.0] and assignment.num_prompts == 1
    assert PPOConfig().needs.zero_advantages  # 0 is a reward like any other, and the critic learns it


def test_one_token_by_hand():
    leaf, value = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[0.4]], requires_grad=True)
    batch = LossBatch(
        logprobs=leaf,
        behavior_logprobs=torch.tensor([[-1.0]]),
        reference_logprobs=torch.tensor([[-3.0]]),
        values=value,
        mask=torch.ones(1, 1, dtype=torch.bool),
        advantages=torch.tensor([1.0]),
        weights=torch.ones(1),
        groups=torch.tensor([0]),
        denominators=Denominators.count([1], [0], prompts=1, max_tokens=1),
    )
    output = PPOConfig(kl_coef=0.05, value_coef=0.5).loss()(batch)
    # reward 1 - 0.05 * 2 = 0.9; A = 0.9 - 0.4 = 0.5; loss -0.5 + 0.5 * 0.25 / 2 = -0.4375
    assert output.loss.item() == pytest.approx(-0.4375)
    output.loss.backward()
    assert leaf.grad.item() == pytest.approx(-0.5)
    assert value.grad.item() == pytest.approx(0.5 * (0.4 - 0.9))
    metrics = mean_metrics([output.metrics])
    assert metrics["train/value_loss"] == pytest.approx(0.25)
    assert metrics["train/value/mean"] == pytest.approx(0.4) and metrics["train/return/mean"] == pytest.approx(0.9)


# gradient


def test_policy_and_critic_gradients_are_those_of_the_estimate():
    config = PPOConfig(lam=0.7, gamma=0.95, kl_coef=0.1, value_coef=0.3)
    batch, leaf, values = batch_of()
    found = estimate(batch, config)
    config.loss()(batch).loss.backward()
    assert torch.allclose(leaf.grad, -found.advantages / 6)  # at ratio 1; 6 tokens
    error = (values - found.returns).detach().masked_fill(~batch.mask, 0.0)
    assert torch.allclose(values.grad, 0.3 * error / 6)


@pytest.mark.parametrize("ratio", [1.5, 0.5])
def test_tokens_beyond_the_clip_lose_their_gradient(ratio):
    config = PPOConfig(kl_coef=0.0)
    batch, leaf, _ = batch_of(ratio=ratio)
    found = estimate(batch, config).advantages
    config.loss()(batch).loss.backward()
    is_cut = found > 0 if ratio > 1 else found < 0
    assert torch.allclose(leaf.grad, torch.where(is_cut, 0.0, -ratio * found / 6))


# invariance


def test_micro_batches_add_up():
    batch, leaf, values = batch_of()
    PPOConfig().loss()(batch).loss.backward()
    grads = [torch.zeros_like(leaf), torch.zeros_like(leaf)]
    for rows in (torch.tensor([2]), torch.tensor([0, 1])):
        part, own, critic = batch_of(rows)
        PPOConfig().loss()(part).loss.backward()
        grads[0] += own.grad
        grads[1] += critic.grad
    assert torch.allclose(grads[0], leaf.grad) and torch.allclose(grads[1], values.grad)


def test_padding_never_matters():
    batch, _, _ = batch_of()
    junk = torch.full((3, 4), math.nan, dtype=torch.float64)
    names = ("logprobs", "behavior_logprobs", "reference_logprobs", "values")
    wide = {name: torch.cat([getattr(batch, name).detach(), junk], 1).requires_grad_() for name in names}
    padded = replace(batch, mask=torch.cat([batch.mask, torch.zeros(3, 4, dtype=torch.bool)], 1), **wide)
    output = PPOConfig().loss()(padded)
    output.loss.backward()
    assert torch.allclose(output.loss, PPOConfig().loss()(batch).loss)
    for name in ("logprobs", "values"):
        assert torch.isfinite(wide[name].grad).all() and not wide[name].grad[~padded.mask].any()


# reduces to


def test_with_a_silent_critic_and_full_trust_in_rewards_it_is_reinforce():
    batch, leaf, _ = batch_of()
    quiet = replace(batch, values=torch.zeros(3, 3, dtype=torch.float64))
    PPOConfig(kl_coef=0.0, lam=1.0, reduction="sample_sum").loss()(quiet).loss.backward()
    assert torch.allclose(leaf.grad, -batch.advantages[:, None] * batch.mask / 3)


# rejects


def test_missing_tensors_are_named():
    batch, _, _ = batch_of()
    with pytest.raises(ValueError, match="values is missing, but the loss needs it"):
        PPOConfig().loss()(replace(batch, values=None))
    with pytest.raises(ValueError, match="reference_logprobs is missing, but kl_coef > 0"):
        PPOConfig().loss()(replace(batch, reference_logprobs=None))
    with pytest.raises(ValueError, match="entropy is missing, but entropy_coef > 0"):
        PPOConfig(entropy_coef=0.1).loss()(batch)
    assert PPOConfig(kl_coef=0.0).needs.reference is False
    PPOConfig(kl_coef=0.0).loss()(replace(batch, reference_logprobs=None))
