import pytest
import torch
from tiny_policies import rows_of, samples_of, step_of, tiny_model

from llamarl.algorithms import AIPOConfig
from llamarl.models.checkpoint import new_config
from llamarl.scoring.logprobs import MAX_LOGITS, PackedScorer
from llamarl.training.memory import activation_bytes, default_micro_batch_tokens, logits_bytes, total_memory
from llamarl.training.trainer import PolicyTrainer

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def test_activations_of_a_token_by_hand():
    config = new_config("llama", hidden_size=8, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2)
    # a layer: 4 * 8 of norms, (5 + 8) * 2 heads of 4, 4 * 20 of the MLP = 216; three layers and the last norm's 16
    assert activation_bytes(config) == 4 * (3 * (32 + 104 + 80) + 16)


def test_logits_and_their_gradient_stop_growing_where_they_are_made_in_pieces():
    config = new_config("llama", **LLAMA_8B)
    assert logits_bytes(config, 100) == 2 * 4 * 100 * 128256
    assert logits_bytes(config, 100, tp=3) == 2 * 4 * 100 * 42752
    assert logits_bytes(config, 10**6) == 2 * 4 * MAX_LOGITS


def test_planned_activations_are_near_what_a_forward_pass_saves():
    model = tiny_model(hidden_size=64, intermediate_size=128, num_hidden_layers=4)
    rows = rows_of(samples_of([(10, [40, 40]), (10, [40])]))
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        PackedScorer(model)(rows)
    planned = (20 + 3 * 39) * activation_bytes(model.config)
    assert 0.7 < sum(sizes.values()) / planned < 1.3


def test_the_default_micro_batch_is_a_power_of_two_that_fits_an_eighth_of_the_memory():
    tiny, large = tiny_model().config, new_config("llama", **LLAMA_8B)
    assert default_micro_batch_tokens(tiny, "cpu") == 16384
    tokens = default_micro_batch_tokens(large, "cpu")
    need = [n * activation_bytes(large) + logits_bytes(large, n) for n in (tokens, 2 * tokens)]
    assert tokens == 256 or need[0] <= total_memory("cpu") // 8 < need[1]
    assert tokens & (tokens - 1) == 0


def test_total_memory_is_the_machine_s():
    assert total_memory("cpu") > 2**30


@pytest.mark.parametrize("field", ["weights", "gradients", "moments", "activations"])
def test_a_trainer_says_what_it_holds(field):
    trainer = PolicyTrainer(tiny_model(), AIPOConfig())
    assert trainer.memory()["activations"] == 0
    trainer.train(step_of(samples_of([(3, [4, 5]), (2, [6])])))
    weights = sum(p.nbytes for p in trainer.model.parameters())
    held = trainer.memory()
    assert held[field] > 0 and held["weights"] == held["gradients"] == weights
    assert 2 * weights <= held["moments"] < 2 * weights + 8 * len(list(trainer.model.parameters()))
