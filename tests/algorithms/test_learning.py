"""Both halves together: on a bandit of four arms every algorithm finds the best arm."""

import pytest
import torch

from llamarl.algorithms import (
    AIPOConfig,
    CISPOConfig,
    DAPOConfig,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    ReinforcePPConfig,
    RLOOConfig,
)
from llamarl.core.records import Completion, Group, Prompt, Sample
from llamarl.functional.losses import Denominators, LossBatch

torch.set_num_threads(1)

PAYOFF = [0.2, 1.0, 0.5, 0.0]
# GSPO's published clip is made for long completions; at one token and three steps of lag it would cut nearly everything
GSPO = GSPOConfig(clip_low=0.2, clip_high=0.2)
ALL = [AIPOConfig(), CISPOConfig(), DAPOConfig(), DrGRPOConfig(), GRPOConfig(), GSPO, ReinforcePPConfig(), RLOOConfig()]


def rollout(logits, generator, version):
    """Four groups of eight one-token completions, judged."""
    logprobs = logits.log_softmax(-1)
    groups = []
    for index in range(4):
        arms = torch.multinomial(logprobs.exp(), 8, replacement=True, generator=generator).tolist()
        samples = [
            Sample(Completion((0,), (arm,), (logprobs[arm].item(),), (version,), "", "stop"), {}, PAYOFF[arm])
            for arm in arms
        ]
        groups.append(Group(Prompt(str(index), ()), tuple(samples), index=index))
    return groups


def loss_batch(logits, assignment, reference):
    samples = assignment.samples
    arms = [sample.token_ids[0] for sample in samples]
    return LossBatch(
        logprobs=logits.log_softmax(-1)[arms, None],
        behavior_logprobs=torch.tensor([sample.logprobs for sample in samples]),
        reference_logprobs=reference.log_softmax(-1)[arms, None],
        mask=torch.ones(len(samples), 1, dtype=torch.bool),
        advantages=torch.tensor([sample.advantage for sample in samples]),
        weights=torch.tensor([sample.weight for sample in samples]),
        groups=torch.tensor([sample.group for sample in samples]),
        denominators=Denominators.count(
            [1] * len(samples), [sample.group for sample in samples], prompts=assignment.num_prompts, max_tokens=1
        ),
    )


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.type)
def test_the_best_arm_wins(config):
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(4, requires_grad=True)
    reference = torch.zeros(4)
    algorithm = config.build()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    staleness = 3 if algorithm.corrects_staleness else 0
    queue = [rollout(logits.detach(), generator, 0) for _ in range(staleness)]
    for step in range(80):
        queue.append(rollout(logits.detach(), generator, step))
        batch = loss_batch(logits, algorithm.assign(queue.pop(0)), reference)
        optimizer.zero_grad()
        algorithm.loss(batch).loss.backward()
        optimizer.step()
    probs = logits.softmax(-1)
    assert probs[1] > 0.8, probs
