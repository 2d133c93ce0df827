"""Both ways to read states against transformers, sequence by sequence."""

import pytest
import torch

from llamarl.models.checkpoint import new_model
from llamarl.models.tiny import char_tokenizer, tiny_config
from llamarl.scoring.states import PackedStates, PaddedStates, build_states

PREFIX = (5, 9, 13, 7)
SEQUENCES = [
    (*PREFIX, 20, 21, 22),
    (*PREFIX, 30),
    PREFIX,
    (*PREFIX, *range(10, 60)),
    (5, 9, 40, 41),  # leaves the prefix early
    (8,),
    (*PREFIX, 30),
]


def build(family):
    model = new_model(tiny_config(family, char_tokenizer(), num_hidden_layers=3, max_position_embeddings=128), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def read_alone(model, ids):
    """The states of one sequence, by transformers."""
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.stack([each[0, -1] for each in states[1:]]), states[-1][0].mean(dim=0)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gemma2", "phi3"])
@pytest.mark.parametrize("prefix", [(), PREFIX])
def test_states_are_those_of_each_sequence_alone(family, prefix):
    model = build(family)
    last, mean = build_states(model)(SEQUENCES, prefix)
    assert last.shape == (len(SEQUENCES), 3, 32) and mean.shape == (len(SEQUENCES), 32)
    for row, ids in enumerate(SEQUENCES):
        expected_last, expected_mean = read_alone(model, ids)
        torch.testing.assert_close(last[row], expected_last, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean[row], expected_mean, rtol=1e-4, atol=1e-4)


def test_packed_and_padded_agree_and_small_passes_change_nothing():
    model = build("llama")
    packed, padded = PackedStates(model)(SEQUENCES, PREFIX), PaddedStates(model)(SEQUENCES, PREFIX)
    in_parts = PaddedStates(model, max_padded=60)(SEQUENCES, PREFIX)
    for one, other, third in zip(packed, padded, in_parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(third, other, rtol=1e-4, atol=1e-4)


def test_the_last_layers_state_is_what_the_output_head_reads():
    model = build("llama")
    last, _ = PackedStates(model)(SEQUENCES, PREFIX)
    with torch.no_grad():
        logits = model(torch.tensor([SEQUENCES[0]])).logits[0, -1]
        torch.testing.assert_close(model.lm_head(last[0, -1]), logits, rtol=1e-4, atol=1e-4)
