import pytest

from llamarl.models.checkpoint import new_config
from llamarl.models.tensor_parallel import why_not_split

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 24, "vocab_size": 8, "head_dim": 4}


@pytest.mark.parametrize(
    ("family", "sizes", "num_parts", "reason"),
    [
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3}, 2, "3 query heads, 3 key/value heads cannot"),
        ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2}, 4, "2 key/value heads cannot be cut into 4"),
        ("llama", {"num_attention_heads": 4, "intermediate_size": 26}, 4, "26 numbers of the MLP's inner width"),
        ("llama", {"num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 8}, 6, "a vocabulary of 8 tokens"),
        ("gemma2", {"num_attention_heads": 4, "num_key_value_heads": 4}, 2, "only llamarl's own modules"),
    ],
)
def test_what_cannot_be_cut_is_told_with_the_numbers(family, sizes, num_parts, reason):
    config = new_config(family, **{**SIZES, **sizes})
    assert reason in why_not_split(config, num_parts)
    assert why_not_split(config, 1) is None


def test_what_can_be_cut_has_no_reason():
    assert why_not_split(new_config("llama", **SIZES, num_attention_heads=4, num_key_value_heads=2), 2) is None
