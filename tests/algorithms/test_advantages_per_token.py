"""Advantages and loss masks per token, in the loss of every algorithm."""

import pytest
import torch

from llamarl.algorithms import (
    AIPOConfig,
    CISPOConfig,
    CODPOConfig,
    CRPGConfig,
    CRRAFTConfig,
    DAPOConfig,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    IBPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    RAFTConfig,
    ReinforcePPConfig,
    RLOOConfig,
)
from llamarl.functional.losses import Denominators, LossBatch

KL = {"kl_coef": 0.1, "entropy_coef": 0.05}
BY_TOKEN = [
    AIPOConfig(**KL),
    CISPOConfig(**KL),
    DAPOConfig(**KL),
    DrGRPOConfig(**KL),
    GRPOConfig(**KL),
    ReinforcePPConfig(**KL),
    RLOOConfig(**KL),
    CRPGConfig(**KL),
    CRPGConfig(off_policy="aipo", **KL),
    CRRAFTConfig(**KL),
    RAFTConfig(**KL),
    IBPOConfig(**KL),
]
ALL = [*BY_TOKEN, GSPOConfig(**KL), OnlineDPOConfig(), CODPOConfig(), PPOConfig()]
LENGTHS = [5, 3, 4, 5]
NUMBERS = torch.tensor([1.5, -0.5, 0.75, -1.0], dtype=torch.float64)  # two pairs
REAL = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def names(config):
    return f"{config.type}-{getattr(config, 'off_policy', 'none')}"


def batch_of(advantages, mask=REAL, columns=slice(None)):
    """The batch, and the leaf `[N, T]` of the policy's log-probs; of some columns only."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        return torch.randn(4, 5, generator=generator, dtype=torch.float64)[:, columns]

    leaf = (-1.0 + 0.3 * draw()).requires_grad_()
    return LossBatch(
        logprobs=leaf,
        behavior_logprobs=leaf.detach() + 0.2 * draw(),
        reference_logprobs=leaf.detach() + 0.2 * draw(),
        entropy=draw().square(),
        values=draw(),
        mask=mask[:, columns],
        advantages=advantages[:, columns] if advantages.ndim == 2 else advantages,
        weights=torch.tensor([1.0, 0.5, 1.0, 2.0], dtype=torch.float64),
        groups=torch.tensor([0, 0, 1, 1]),
        denominators=Denominators.count(mask.sum(-1).tolist(), [0, 0, 1, 1], prompts=3, max_tokens=6),
    ), leaf


def loss_and_gradient(config, batch, leaf):
    loss = config.loss()(batch).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("config", [c for c in ALL if c.type != "ppo"], ids=names)
def test_a_constant_per_token_is_the_number(config):
    one, each = batch_of(NUMBERS), batch_of(NUMBERS[:, None].expand(4, 5).contiguous())
    for left, right in zip(loss_and_gradient(config, *one), loss_and_gradient(config, *each), strict=True):
        assert torch.equal(left, right)


def test_ppo_takes_a_number_for_the_reward_of_the_last_token():
    rewards = torch.zeros(4, 5, dtype=torch.float64)
    rewards[range(4), [length - 1 for length in LENGTHS]] = NUMBERS
    one, each = batch_of(NUMBERS), batch_of(rewards)
    for left, right in zip(loss_and_gradient(PPOConfig(), *one), loss_and_gradient(PPOConfig(), *each), strict=True):
        assert torch.equal(left, right)
    earlier = rewards.roll(-1, -1)  # a reward that comes sooner is another one
    assert not torch.equal(
        loss_and_gradient(PPOConfig(), *batch_of(earlier))[1], loss_and_gradient(PPOConfig(), *one)[1]
    )


@pytest.mark.parametrize("config", BY_TOKEN, ids=names)
def test_a_token_s_advantage_is_its_own(config):
    config = config.model_copy(update={"kl_coef": 0.0, "entropy_coef": 0.0})
    advantages = NUMBERS[:, None].repeat(1, 5)
    advantages[:, 1] = 0.0
    _, changed = loss_and_gradient(config, *batch_of(advantages))
    _, plain = loss_and_gradient(config, *batch_of(NUMBERS))
    assert not changed[:, 1].any() and plain[:, 1].any()
    assert torch.equal(changed[:, [0, 2, 3, 4]], plain[:, [0, 2, 3, 4]])


@pytest.mark.parametrize("form", ["number", "per token"])
@pytest.mark.parametrize("config", ALL, ids=names)
def test_a_masked_token_has_no_gradient_and_counts_as_if_it_were_not_there(config, form):
    advantages = NUMBERS if form == "number" else NUMBERS[:, None] * torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
    hole = REAL & (torch.arange(5) != 1)
    loss, gradient = loss_and_gradient(config, *batch_of(advantages, hole))
    kept = [0, 2, 3, 4]
    without, expected = loss_and_gradient(config, *batch_of(advantages, hole, columns=kept))
    assert not gradient[:, 1].any()
    torch.testing.assert_close(loss, without, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient[:, kept], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", ALL, ids=names)
def test_what_lies_under_the_mask_never_matters(config):
    hole = REAL & (torch.arange(5) != 1)
    per_token = NUMBERS[:, None].repeat(1, 5)
    broken = per_token.clone()
    broken[:, 1] = 1e6 * NUMBERS  # of a pair, the sign says which is the better one
    left, right = (loss_and_gradient(config, *batch_of(each, hole)) for each in (per_token, broken))
    assert torch.equal(left[0], right[0]) and torch.equal(left[1][hole], right[1][hole])


def test_advantages_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"LossBatch.advantages has shape \(4, 3\)"):
        batch_of(torch.zeros(4, 3))
