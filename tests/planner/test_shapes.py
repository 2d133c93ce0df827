import pytest

from llamarl.core.errors import ConfigError
from llamarl.models.checkpoint import count_parameters, new_config
from llamarl.planner.shapes import ModelShape, model_names, public_shape

# published counts; of DeepSeek-V3 without the layer that predicts a second token
PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v3": 671_026_404_352,
}
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


# golden


@pytest.mark.parametrize("name", model_names())
def test_public_models_have_as_many_parameters_as_published(name: str) -> None:
    assert public_shape(name).parameters == PARAMETERS[name]


def test_a_real_models_count() -> None:
    assert ModelShape.from_config("SmolLM2-135M", SMOLLM2).parameters == 134_515_008


def test_active_parameters() -> None:
    # 48 layers of 120 idle experts with three matrices of 2048 x 768
    assert public_shape("qwen3-30b-a3b").active_parameters == 30_532_122_624 - 48 * 120 * 3 * 2048 * 768
    assert public_shape("qwen3-235b-a22b").active_parameters / 1e9 == pytest.approx(22.2, abs=0.05)
    assert public_shape("deepseek-v3").active_parameters / 1e9 == pytest.approx(37.6, abs=0.05)
    assert public_shape("llama-3.1-8b").active_parameters == PARAMETERS["llama-3.1-8b"]


def test_the_cache_of_a_token() -> None:
    assert public_shape("llama-3.1-8b").cache_numbers == 32 * 2 * 8 * 128
    assert public_shape("deepseek-v3").cache_numbers == 61 * (512 + 64)  # compressed keys and values, rotated keys


def test_touched_experts() -> None:
    shape = public_shape("qwen3-30b-a3b")
    assert shape.touched_experts(1) == pytest.approx(8 / 128)
    assert shape.touched_experts(1000) == pytest.approx(1.0)
    assert public_shape("llama-3.1-8b").touched_experts(64) == 0.0


# invariance: the real models' own counts


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {"attention_bias": True}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 24}),
        ("qwen3_moe", {"moe_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 2, "head_dim": 24}),
        (
            "deepseek_v3",
            {
                "moe_intermediate_size": 40,
                "n_routed_experts": 8,
                "n_group": 2,
                "topk_group": 1,
                "num_experts_per_tok": 2,
                "first_k_dense_replace": 1,
                "q_lora_rank": 20,
                "kv_lora_rank": 12,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 16,
                "v_head_dim": 16,
                "num_key_value_heads": 4,
            },
        ),
    ],
)
def test_shapes_count_as_transformers_does(family: str, sizes: dict[str, int]) -> None:
    common = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = new_config(family, **{"vocab_size": 100, "num_key_value_heads": 2, **common, **sizes})
    shape = ModelShape.from_config(family, config.to_dict())
    assert shape.parameters == count_parameters(config)
    assert shape.is_tied == config.tie_word_embeddings


def test_a_count_from_outside_wins() -> None:
    shape = ModelShape.from_config("mine", SMOLLM2, parameters=134_515_108)
    assert shape.parameters == shape.active_parameters == 134_515_108


# rejects


def test_unknown_names_and_bad_sizes() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'llama-3\.1-8b'"):
        public_shape("llama-3.1-8")
    with pytest.raises(ConfigError, match="hidden_size=0, which must be a whole number of at least 1"):
        ModelShape.from_config("mine", {**SMOLLM2, "hidden_size": 0})
