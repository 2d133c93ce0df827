"""Both halves together: on a bandit of four arms every algorithm finds the best arm.

Those of CGPO find the best arm that keeps to the constraint, those that don't look at constraints fall for the other.
"""

import math

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
    OnlineDPOConfig,
    PPOConfig,
    RAFTConfig,
    ReinforcePPConfig,
    RLOOConfig,
)
from llamarl.core.records import Completion, Group, Prompt, Sample, Trajectory
from llamarl.functional.losses import Denominators, LossBatch

torch.set_num_threads(1)

PAYOFF = [0.2, 1.0, 0.5, 0.0]
# GSPO's published clip is made for long completions; at one token and three steps of lag it would cut nearly everything
GSPO = GSPOConfig(clip_low=0.2, clip_high=0.2)
ALL = [AIPOConfig(), CISPOConfig(), DAPOConfig(), DrGRPOConfig(), GRPOConfig(), GSPO, ReinforcePPConfig(), RLOOConfig()]
BLIND = [RAFTConfig(), OnlineDPOConfig(), PPOConfig(kl_coef=0.0)]
CONSTRAINED = [CRPGConfig(reward="as_is"), CRPGConfig(off_policy="aipo", reward="as_is"), CODPOConfig(), CRRAFTConfig()]


def rollout(logits, generator, version, forbidden=None):
    """Four groups of eight one-token completions, judged; the reference likes all arms alike."""
    logprobs = logits.log_softmax(-1)
    groups = []
    for index in range(4):
        arms = torch.multinomial(logprobs.exp(), 8, replacement=True, generator=generator).tolist()
        samples = [
            Sample(
                Completion(Trajectory.sampled((0,), (arm,), (logprobs[arm].item(),), (version,)), str(arm)),
                {},
                PAYOFF[arm],
                is_satisfied=arm != forbidden,
                reference_logprobs=(-math.log(4),),
            )
            for arm in arms
        ]
        groups.append(Group(Prompt(str(index), ()), tuple(samples), index=index))
    return groups


def loss_batch(logits, assignment, value):
    samples = assignment.samples
    arms = [sample.trajectory.token_ids[0] for sample in samples]
    return LossBatch(
        logprobs=logits.log_softmax(-1)[arms, None],
        behavior_logprobs=torch.tensor([sample.trajectory.logprobs.tolist() for sample in samples]),
        reference_logprobs=torch.full((len(samples), 1), -math.log(4)),
        values=value.expand(len(samples), 1),
        mask=torch.ones(len(samples), 1, dtype=torch.bool),
        advantages=torch.tensor([sample.advantages for sample in samples]),
        weights=torch.tensor([sample.weight for sample in samples]),
        groups=torch.tensor([sample.group for sample in samples]),
        denominators=Denominators.count(
            [1] * len(samples), [sample.group for sample in samples], prompts=assignment.num_prompts, max_tokens=1
        ),
    )


def learned(config, forbidden=None):
    """Probabilities of the arms after 80 steps."""
    generator = torch.Generator().manual_seed(0)
    logits, value = torch.zeros(4, requires_grad=True), torch.zeros(1, requires_grad=True)
    credit, loss = config.credit(), config.loss()
    optimizer = torch.optim.Adam([logits, value], lr=0.1)
    staleness = 3 if config.needs.corrects_staleness else 0
    queue = [rollout(logits.detach(), generator, 0, forbidden) for _ in range(staleness)]
    for step in range(80):
        queue.append(rollout(logits.detach(), generator, step, forbidden))
        assignment = credit.assign(queue.pop(0))
        if assignment.samples:
            optimizer.zero_grad()
            loss(loss_batch(logits, assignment, value)).loss.backward()
            optimizer.step()
    return logits.softmax(-1)


@pytest.mark.parametrize("config", [*ALL, *BLIND, *CONSTRAINED], ids=lambda config: config.type)
def test_the_best_arm_wins(config):
    assert learned(config)[1] > 0.8


@pytest.mark.parametrize("config", CONSTRAINED, ids=lambda config: config.type)
def test_the_best_arm_that_keeps_the_constraint_wins(config):
    probs = learned(config, forbidden=1)
    assert probs[2] > 0.8 and probs[1] < 0.05, probs


@pytest.mark.parametrize("config", BLIND, ids=lambda config: config.type)
def test_without_constraints_the_forbidden_arm_wins(config):
    assert learned(config, forbidden=1)[1] > 0.8
