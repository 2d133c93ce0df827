import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.models.checkpoint import new_config
from llamarl.planner.memory import (
    MAX_LOGITS,
    Pipeline,
    TrainerLayout,
    activation_numbers,
    cache_bytes_per_token,
    checkpoint_bytes,
    generator_memory,
    trainer_memory,
)
from llamarl.planner.shapes import ModelShape, public_shape
from llamarl.scoring import logprobs
from llamarl.training.memory import activation_bytes, logits_bytes

LLAMA = public_shape("llama-3.1-8b")


# golden


def test_weights_gradients_and_moments_of_one_rank() -> None:
    parts = trainer_memory(LLAMA, TrainerLayout(8), 2048)
    assert parts["weights"] == parts["gradients"] == 4 * LLAMA.parameters // 8
    assert parts["moments"] == 8 * LLAMA.parameters // 8
    # a layer of 4096 (2 x 32 + 2 x 8) 128 + 3 x 4096 x 14336 + 2 x 4096 numbers, twice, embedding and head, in bf16
    layer = 4096 * 80 * 128 + 3 * 4096 * 14336 + 2 * 4096
    assert parts["gathered weights"] == 2 * (2 * layer + 2 * 128256 * 4096)


def test_full_checkpointing_keeps_a_layers_input() -> None:
    assert activation_numbers(LLAMA, "full") == 4096
    # input, q, v, attention's output, gate, and the MLP's output
    assert activation_numbers(LLAMA, "selective") == 2 * 4096 + 2 * 4096 + 1024 + 14336
    assert activation_numbers(LLAMA) == 4 * 4096 + (5 * 32 + 8 * 8) * 128 + 4 * 14336


def test_a_pipelines_first_stage_holds_as_many_micro_batches_as_there_are_stages() -> None:
    assert Pipeline(8).in_flight(8) == 8
    assert Pipeline(3).in_flight(8) == 3
    assert Pipeline(16, chunks=2).in_flight(8) == (8 + 2 * 7 + 1) / 2


def test_generator_weights_by_precision() -> None:
    wide = 2 * 128256 * 4096
    sizes = {
        each: generator_memory(LLAMA, each, 1, cached_tokens=0, slots=0)["weights"] for each in ("bf16", "fp8", "int8")
    }
    assert sizes["bf16"] == 2 * LLAMA.parameters
    assert sizes["fp8"] == LLAMA.parameters + wide
    assert sizes["int8"] == LLAMA.parameters + 3 * wide


def test_cache_heads_are_never_cut() -> None:
    assert cache_bytes_per_token(LLAMA, 1) == 2 * 65536
    assert cache_bytes_per_token(LLAMA, 8) == cache_bytes_per_token(LLAMA, 16) == 2 * 65536 / 8
    latent = public_shape("deepseek-v3")
    assert cache_bytes_per_token(latent, 1) == cache_bytes_per_token(latent, 8)


def test_a_checkpoint_holds_weights_and_moments() -> None:
    assert checkpoint_bytes(LLAMA) == 12 * LLAMA.parameters


# reduces to what the run itself plans


def test_on_one_rank_in_fp32_a_token_keeps_what_the_trainer_says() -> None:
    config = new_config(
        "llama", hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=3, vocab_size=98
    )
    shape = ModelShape.from_config("tiny", config.to_dict())
    assert 4 * (shape.layers * activation_numbers(shape) + 2 * shape.hidden) == activation_bytes(config)
    for tokens in (10, 10_000_000):
        parts = trainer_memory(shape, TrainerLayout(precision="fp32"), tokens)
        assert parts["logits of a micro-batch"] == logits_bytes(config, tokens)
        assert "gathered weights" not in parts
    assert MAX_LOGITS == logprobs.MAX_LOGITS


# invariance


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.integers(1, 100_000))
def test_more_ranks_never_hold_more_of_the_states(fsdp: int, tp: int, tokens: int) -> None:
    def states(layout: TrainerLayout) -> int:
        parts = trainer_memory(LLAMA, layout, tokens)
        return parts["weights"] + parts["gradients"] + parts["moments"]

    assert states(TrainerLayout(2 * fsdp, tp)) <= states(TrainerLayout(fsdp, tp)) // 2 + 3
    assert states(TrainerLayout(fsdp, tp)) == pytest.approx(16 * LLAMA.parameters / fsdp / tp, abs=3)


@given(st.integers(1, 50_000))
def test_checkpointing_saves_activations_from_two_layers_on(tokens: int) -> None:
    sizes = [
        trainer_memory(LLAMA, TrainerLayout(checkpointing=each), tokens)["activations of a micro-batch"]
        for each in ("full", "selective", "none")
    ]
    assert sizes == sorted(sizes) and math.isfinite(sizes[0])
