"""Tiny models, random samples and gradients for the tests of the training side."""

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from llamarl.core.records import Assignment, TrainSample, Trajectory
from llamarl.models.checkpoint import new_config, new_model

VOCABULARY = 24


def tiny_model(family: str = "llama", seed: int = 0, scale: float = 5.0, **sizes: object) -> nn.Module:
    """Random weights, large enough that attention and head are far from uniform."""
    fields: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "mistral":
        fields["sliding_window"] = None
    if family == "gpt_neox":
        fields.pop("num_key_value_heads"), fields.pop("head_dim")
        fields["tie_word_embeddings"] = False
    model = new_model(new_config(family, **{**fields, **sizes}), seed)
    if family == "qwen3_moe":  # transformers' default multiplies the experts by a kernel that knows no double precision
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    return model


def samples_of(shape: Sequence[tuple[int, Sequence[int]]], seed: int = 0, version: int = 0) -> list[TrainSample]:
    """One group per entry: (prompt length, completion lengths); random tokens, log-probs near -1, advantages."""
    rng = random.Random(seed)
    samples = []
    for group, (prompt_length, lengths) in enumerate(shape):
        prompt = tuple(rng.randrange(3, VOCABULARY) for _ in range(prompt_length))
        for length in lengths:
            samples.append(
                TrainSample(
                    Trajectory.sampled(
                        prompt,
                        [rng.randrange(3, VOCABULARY) for _ in range(length)],
                        [-3.0 + 0.3 * rng.random() for _ in range(length)],
                        (version,) * length,
                    ),
                    advantages=rng.uniform(-1.5, 1.5),
                    group=group,
                )
            )
    return samples


def rows_of(samples: Sequence[TrainSample]) -> list[Trajectory]:
    """What a scorer reads of the samples."""
    return [sample.trajectory for sample in samples]


def sampled_with(sample: TrainSample, logprobs: Sequence[float], version: int | None = None) -> TrainSample:
    """The sample as another policy would have sampled it."""
    old = sample.trajectory
    versions = old.versions if version is None else ((version, old.response_length),)
    return replace(sample, trajectory=replace(old, logprobs=array("f", logprobs), versions=versions))


def step_of(samples: Sequence[TrainSample], num_prompts: int | None = None) -> Assignment:
    """The samples as a task's whole batch."""
    return Assignment(tuple(samples), len({s.group for s in samples}) if num_prompts is None else num_prompts)


def gradients(model: nn.Module, run: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of every parameter of the scalar that `run` gives."""
    model.zero_grad(set_to_none=True)
    run().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
