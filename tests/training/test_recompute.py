"""Activations that are computed again in the backward pass."""

import pytest
import torch
from tiny_policies import samples_of, step_of, tiny_model

from llamarl.algorithms.grpo import GRPOConfig
from llamarl.core.errors import ConfigError
from llamarl.training.memory import activation_bytes
from llamarl.training.trainer import PolicyTrainer

SHAPE = [(3, [4, 1, 7]), (6, [2, 5]), (1, [3, 3, 3])]
BATCH = step_of(samples_of(SHAPE))


def gradients(how, family="llama", **sizes):
    trainer = PolicyTrainer(tiny_model(family, **sizes), GRPOConfig(kl_coef=0.0), checkpointing=how)
    trainer.loss(BATCH)
    return {name: p.grad for name, p in trainer.model.named_parameters()}, trainer.memory()["activations"]


@pytest.mark.parametrize("how", ["selective", "full"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gradients_are_the_same_to_the_last_bit(family, how):
    expected, kept = gradients("none", family)
    found, fewer = gradients(how, family)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert fewer < kept


@pytest.mark.parametrize("how", ["selective", "full"])
def test_what_blocks_keep_is_counted_as_it_is_planned(how):
    """One block more is planned, of what is computed again in the backward pass."""
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8, "head_dim": 32}
    model = tiny_model("llama", scale=0.1, **sizes)
    num_tokens = sum(prompt + sum(lengths) - len(lengths) for prompt, lengths in SHAPE)
    config, again = model.config, activation_bytes(model.config) // 8
    trainer = PolicyTrainer(model, GRPOConfig(kl_coef=0.0), checkpointing=how)
    trainer.loss(BATCH)
    planned = num_tokens * (activation_bytes(config, how) - again)
    assert planned * 0.8 < trainer.memory()["activations"] < planned * 1.25


def test_families_of_transformers_alone_are_refused():
    with pytest.raises(ConfigError, match=r"checkpointing='full'.*'gpt_neox'"):
        gradients("full", "gpt_neox")
