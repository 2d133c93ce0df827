"""Algorithms with needs of their own in the trainer: whole pairs, critics, weights and given responses."""

from dataclasses import replace

import pytest
import torch
from tiny_policies import rows_of, samples_of, step_of, tiny_model

from llamarl.algorithms import AIPOConfig, CODPOConfig, CRPGConfig, PPOConfig
from llamarl.core.errors import CheckpointError
from llamarl.functional.gae import generalized_advantages, token_rewards
from llamarl.models.decoder import named_tensors
from llamarl.scoring.logprobs import PackedScorer, PaddedScorer
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel

FAST = TrainerConfig(learning_rate=1e-2, warmup_steps=0)
CODPO, PPO = CODPOConfig(beta=0.5, likelihood_coef=0.3), PPOConfig(value_coef=0.5, kl_coef=0.1, lam=0.8, gamma=0.9)


def trainer_of(*algorithms, config=FAST, model=None, **arguments):
    return PolicyTrainer(model or tiny_model(), algorithms, config, **arguments)


def pairs():
    """Two prompts with a pair each, and reference log-probs near -3."""
    samples = samples_of([(3, [4, 7]), (6, [5, 2])])
    return [
        replace(
            s,
            advantages=1.0 if i % 2 == 0 else -1.0,
            reference_logprobs=tuple(v - 0.1 * i for v in s.trajectory.logprobs),
        )
        for i, s in enumerate(samples)
    ]


def gradient(trainer, assignments):
    trainer.loss(assignments)
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


def gradient_of(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def critic_gradient(trainer):
    return {name: p.grad.clone() for name, p in trainer.critics.named_parameters()}


# golden


def test_codpo_on_a_model_is_the_formula_by_hand():  # two pairs of a batch of three prompts
    model, samples = tiny_model(), pairs()
    log_ratios, likelihoods = [], []
    for sample in samples:
        logprobs = PaddedScorer(model)(rows_of([sample])).logprobs
        log_ratios.append((logprobs - torch.tensor(sample.reference_logprobs)).sum())
        likelihoods.append(logprobs.mean())
    terms = [torch.sigmoid(0.5 * (log_ratios[i] - log_ratios[i + 1])).log() + 0.3 * likelihoods[i] for i in (0, 2)]
    expected = gradient_of(model, -sum(terms) / 3)
    assert torch.allclose(gradient(trainer_of(CODPO), step_of(samples, num_prompts=3)), expected, atol=1e-5)


def test_ppo_on_a_model_is_the_formula_by_hand():
    samples = pairs()
    trainer, model = trainer_of(PPO), tiny_model()
    head = trainer.critics.by_task["0"]
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-0.2, 0.3, head.in_features))
        head.bias.fill_(0.1)
    losses = []
    for sample in samples:
        scores = PaddedScorer(model)(rows_of([sample]), hidden=True)
        values = (scores.hidden @ head.weight.detach()[0] + 0.1)[None]
        behavior, reference = (
            torch.tensor([sample.trajectory.logprobs.tolist()]),
            torch.tensor([sample.reference_logprobs]),
        )
        mask = torch.ones_like(behavior, dtype=torch.bool)
        rewards = token_rewards(torch.tensor([sample.advantages]), 0.1 * (behavior - reference), mask)
        found = generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.8)
        ratio = (scores.logprobs[None] - behavior).exp()
        surrogate = torch.minimum(ratio * found.advantages, ratio.clamp(0.8, 1.2) * found.advantages)
        losses.append((-surrogate + 0.25 * (values - found.returns).square()).sum())
    expected = gradient_of(model, sum(losses) / 18)  # 4 + 7 + 5 + 2 tokens
    assert torch.allclose(gradient(trainer, step_of(samples)), expected, atol=1e-5)
    assert all(float(g.abs().sum()) > 0 for g in critic_gradient(trainer).values())


def test_the_critic_learns_the_reward_and_is_never_published():
    channel, samples = LocalChannel(), [replace(s, advantages=2.0) for s in pairs()]
    trainer = trainer_of(PPOConfig(kl_coef=0.0, lam=1.0), channel=channel)
    metrics = [trainer.train(step_of(samples)).metrics for _ in range(40)]
    assert metrics[0]["train/value/mean"] == 0.0 and metrics[0]["train/value_loss"] == pytest.approx(4.0)
    assert metrics[-1]["train/value_loss"] < 0.2
    trainer.publish()
    assert channel.fetch(trainer.version).keys() == dict(named_tensors(trainer.model)).keys()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_hidden_states_are_those_the_head_reads(family):
    model, samples = tiny_model(family, scale=1.0), pairs()
    scorer = PaddedScorer if family == "gpt_neox" else PackedScorer
    scores = scorer(model)(rows_of(samples), hidden=True)
    head = model.get_output_embeddings()
    targets = torch.tensor([token for sample in samples for token in sample.trajectory.token_ids])
    again = head(scores.hidden).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(again, scores.logprobs, atol=1e-5, rtol=1e-5)
    assert scorer(model)(rows_of(samples)).hidden is None


# invariance


@pytest.mark.parametrize("config", [CODPO, PPO, CRPGConfig()], ids=lambda c: c.type)
@pytest.mark.parametrize("micro_batch_tokens", [1, 15])
def test_the_cut_into_micro_batches_does_not_matter(config, micro_batch_tokens):
    cut, whole = trainer_of(config, config=TrainerConfig(micro_batch_tokens=micro_batch_tokens)), trainer_of(config)
    assert torch.allclose(gradient(cut, step_of(pairs())), gradient(whole, step_of(pairs())), atol=1e-6)
    for left, right in zip(critic_gradient(cut).values(), critic_gradient(whole).values(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_each_task_has_its_own_critic():
    samples = pairs()
    trainer = trainer_of(PPO, AIPOConfig(), PPO)
    assert sorted(trainer.critics.by_task) == ["0", "2"]
    first = step_of([replace(s, advantages=1.0) for s in samples])
    last = step_of([replace(s, advantages=-1.0, group=s.group + 5) for s in samples])
    for _ in range(5):
        result = trainer.train([first, step_of(samples), last])
    values = [metrics["train/value/mean"] for metrics in (result.task_metrics[0], result.task_metrics[2])]
    assert values[0] > 0 > values[1] and "train/value/mean" not in result.task_metrics[1]


# checkpoints


def test_a_critic_is_saved_and_restored_bit_for_bit(tmp_path):
    whole, part, resumed = (trainer_of(PPO) for _ in range(3))
    batch = step_of(pairs())
    expected = [whole.train(batch) for _ in range(3)][-1]
    for _ in range(2):
        part.train(batch)
    part.save(tmp_path / "c")
    assert resumed.load(tmp_path / "c") == 2
    result = resumed.train(batch)
    assert {**result.metrics, "time/train": 0} == {**expected.metrics, "time/train": 0}
    for left, right in zip(resumed.critics.parameters(), whole.critics.parameters(), strict=True):
        assert torch.equal(left, right)


def test_critics_of_other_algorithms_are_refused(tmp_path):
    trainer_of(PPO).save(tmp_path / "ppo")
    trainer_of(AIPOConfig()).save(tmp_path / "aipo")
    assert not (tmp_path / "aipo" / "critics.safetensors").exists()
    with pytest.raises(CheckpointError, match=r"holds critics .*by_task.0.* but the run's algorithms train"):
        trainer_of(AIPOConfig()).load(tmp_path / "ppo")
    with pytest.raises(CheckpointError, match="resume with the algorithms that wrote it"):
        trainer_of(PPO).load(tmp_path / "aipo")
