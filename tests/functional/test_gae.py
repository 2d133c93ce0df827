import math

import torch

from llamarl.functional.gae import generalized_advantages, token_rewards

torch.set_num_threads(1)

MASK = torch.tensor([[True, True, True], [True, True, False]])
VALUES = torch.tensor([[0.5, 0.2, 0.4], [1.0, -1.0, 9.0]])
REWARDS = torch.tensor([[0.0, -0.1, 1.0], [0.0, 2.0, 0.0]])

# golden


def test_rewards_come_at_the_last_token_and_penalties_everywhere():
    penalties = torch.tensor([[0.1, 0.2, 0.3], [0.5, -0.5, math.nan]])
    found = token_rewards(torch.tensor([1.0, 2.0]), penalties, MASK)
    assert torch.allclose(found, torch.tensor([[-0.1, -0.2, 0.7], [-0.5, 2.5, 0.0]]))


def test_advantages_and_returns_by_hand():
    found = generalized_advantages(REWARDS, VALUES, MASK, gamma=0.9, lam=0.5)
    # row 0: deltas 0 + 0.18 - 0.5 = -0.32, -0.1 + 0.36 - 0.2 = 0.06, 1 - 0.4 = 0.6; decay 0.45
    #        A2 = 0.6, A1 = 0.06 + 0.27 = 0.33, A0 = -0.32 + 0.1485 = -0.1715
    # row 1: deltas 0 - 0.9 - 1 = -1.9, 2 + 1 = 3 (nothing after the last token); A1 = 3, A0 = -1.9 + 1.35 = -0.55
    assert torch.allclose(found.advantages, torch.tensor([[-0.1715, 0.33, 0.6], [-0.55, 3.0, 0.0]]))
    assert torch.allclose(found.returns, torch.tensor([[0.3285, 0.53, 1.0], [0.45, 2.0, 0.0]]))


# gradient


def test_nothing_carries_a_gradient():
    found = generalized_advantages(REWARDS, VALUES.clone().requires_grad_(), MASK)
    assert not found.advantages.requires_grad and not found.returns.requires_grad


# invariance


def test_padding_never_matters():
    values = torch.cat([VALUES, torch.full((2, 5), math.nan)], 1)
    rewards = torch.cat([REWARDS, torch.zeros(2, 5)], 1)
    found = generalized_advantages(rewards, values, torch.cat([MASK, torch.zeros(2, 5, dtype=torch.bool)], 1))
    plain = generalized_advantages(REWARDS, VALUES, MASK)
    assert torch.equal(found.advantages[:, :3], plain.advantages) and not found.advantages[:, 3:].any()
    assert torch.equal(found.returns[:, :3], plain.returns)


# reduces to


def test_without_trust_in_the_critic_it_is_the_return_minus_the_value():
    found = generalized_advantages(REWARDS, VALUES, MASK, gamma=1.0, lam=1.0)
    assert torch.allclose(found.returns, torch.tensor([[0.9, 0.9, 1.0], [2.0, 2.0, 0.0]]))


def test_with_full_trust_it_is_one_temporal_difference():
    found = generalized_advantages(REWARDS, VALUES, MASK, gamma=0.9, lam=0.0)
    assert torch.allclose(found.advantages, torch.tensor([[-0.32, 0.06, 0.6], [-1.9, 3.0, 0.0]]))


def test_a_critic_of_zeros_gives_every_token_the_reward():
    rewards = token_rewards(torch.tensor([3.0, -1.0]), torch.zeros(2, 3), MASK)
    found = generalized_advantages(rewards, torch.zeros(2, 3), MASK, lam=1.0)
    assert torch.allclose(found.advantages, torch.tensor([[3.0, 3.0, 3.0], [-1.0, -1.0, 0.0]]))
