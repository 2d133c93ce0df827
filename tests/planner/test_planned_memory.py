import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError
from llamarl.models.checkpoint import new_config, new_skeleton
from llamarl.models.lora import count_adapters
from llamarl.models.lora_config import LoraConfig
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


def test_adapters_have_gradients_and_moments_and_the_weights_are_held_once() -> None:
    # rank 16 beside q and o (4096 + 4096), k and v (4096 + 1024), gate, up and down (4096 + 14336) of 32 layers
    numbers = 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert LLAMA.adapter_parameters(16) == numbers == 41_943_040
    assert LLAMA.adapter_parameters(16, ("q_proj", "v_proj")) == 16 * 32 * (8192 + 5120)
    parts = trainer_memory(LLAMA, TrainerLayout(precision="fp32"), 10, adapters=numbers, has_reference=True)
    assert parts["weights"] == 4 * (LLAMA.parameters + numbers)
    assert parts["gradients"] == 4 * numbers and parts["moments"] == 8 * numbers
    assert "reference weights" not in parts  # the model without its adapters
    held = generator_memory(LLAMA, "bf16", 1, cached_tokens=0, slots=0, adapters=numbers)["weights"]
    assert held == 2 * (LLAMA.parameters + numbers)
    assert checkpoint_bytes(LLAMA, numbers) == 12 * numbers


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_adapters_are_counted_as_the_trainer_makes_them(family: str, targets: tuple[str, ...]) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = new_config(family, **sizes, num_key_value_heads=2, vocab_size=98, head_dim=8)
    shape = ModelShape.from_config("tiny", config.to_dict())
    targets = tuple(name for name in targets if name in shape.linear_layers())
    assert shape.adapter_parameters(5, targets) == count_adapters(
        new_skeleton(config), LoraConfig(rank=5, targets=targets)
    )


def test_adapters_that_nothing_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets: 'w_proj' is none of q_proj, k_proj"):
        LLAMA.adapter_parameters(8, ("w_proj",))
    with pytest.raises(ConfigError, match="compressed keys and values"):
        public_shape("deepseek-v3").adapter_parameters(8)


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
