import pytest
import torch

from llamarl.models.checkpoint import new_config, new_model
from llamarl.models.decoder import Decoder
from llamarl.models.probe import probe_logprobs, probe_rows


def tiny(family="llama", seed=0, **sizes):
    defaults = {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    return new_model(new_config(family, **{**defaults, **sizes}), seed)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_rows_are_prompts_with_the_tokens_the_model_deems_likeliest(family):
    model = tiny(family)
    rows = probe_rows(model, [(5, 9, 11), tuple(range(3, 60)) * 2, (4, 4)])
    assert [row[:3] for row in rows] == [(5, 9, 11), (3, 4, 5)] and [len(row) for row in rows] == [3 + 16, 64 + 16]
    for row, length in zip(rows, (3, 64), strict=True):
        with torch.no_grad():
            likeliest = model(torch.tensor([row])).logits[0].argmax(dim=-1).tolist()
        assert list(row[length:]) == likeliest[length - 1 : -1]


def test_without_prompts_four_tokens_stand_for_one_and_short_models_are_not_exceeded():
    assert len(probe_rows(tiny())[0]) == 4 + 16
    assert len(probe_rows(tiny(max_position_embeddings=32), [tuple(range(40))])[0]) == 32


def test_logprobs_are_the_models_own_and_see_each_layer():
    model = tiny()
    row = probe_rows(model, [(5, 9, 11)])[0]
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([row])).logits[0], dim=-1)
    expected = [table[i, row[i + 1]].item() for i in range(len(row) - 1)]
    assert probe_logprobs(Decoder.fuse(model), row) == pytest.approx(expected, abs=1e-5)
    changed = tiny()
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight.mul_(-50)
    gap = max(abs(a - b) for a, b in zip(probe_logprobs(Decoder.fuse(changed), row), expected, strict=True))
    assert gap > 1e-2
