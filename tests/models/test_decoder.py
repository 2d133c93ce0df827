import pytest
import torch

from llamarl.core.errors import WeightSyncError
from llamarl.models.checkpoint import new_config, new_model
from llamarl.models.decoder import (
    Decoder,
    causal,
    named_tensors,
    why_unsupported,
)

FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe", "mistral"]
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}


def tiny(family, seed=0, **sizes):
    if family.startswith("qwen3"):
        sizes = {"head_dim": 16, **sizes}
    if family == "qwen3_moe":
        sizes = {**EXPERTS, **sizes}
    if family == "mistral":
        sizes = {"sliding_window": None, **sizes}
    defaults = {
        "vocab_size": 61,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    config = new_config(family, **{**defaults, **sizes})
    model = new_model(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # trained-looking weights: norms and biases away from 1 and 0
        for name, parameter in model.named_parameters():
            scale = 0.3 if "norm" in name or "bias" in name else 0.1
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def logits(decoder, ids):
    return decoder.head(decoder.hidden_states(torch.tensor(ids), torch.arange(len(ids)), causal))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("build", [Decoder.live, Decoder.fuse])
def test_logprobs_equal_those_of_transformers(family, build):
    model = tiny(family)
    ids = torch.randint(0, 61, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        ours = torch.log_softmax(logits(build(model), ids), dim=-1)
        theirs = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
)
def test_scaled_rotary_positions_equal_those_of_transformers(rope):
    model = tiny("llama", rope_parameters={"rope_theta": 10000.0, **rope})
    ids = list(range(60))
    with torch.no_grad():
        gap = (logits(Decoder.fuse(model), ids) - model(torch.tensor([ids])).logits[0]).abs().max()
    assert gap < 1e-5


def test_rotary_tables_grow_past_their_first_length():
    model = tiny("llama", max_position_embeddings=2048)
    ids = (list(range(61)) * 12)[:700]
    with torch.no_grad():
        gap = (logits(Decoder.fuse(model), ids) - model(torch.tensor([ids])).logits[0]).abs().max()
    assert gap < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_named_views_hold_every_parameter_under_its_name(family):
    model = tiny(family)
    views, parameters = Decoder.fuse(model).named_views(), dict(named_tensors(model))
    assert views.keys() == parameters.keys()
    assert all(torch.equal(views[name], parameters[name]) for name in views)
    assert not any(views[name].data_ptr() == parameters[name].data_ptr() for name in views)


def test_tied_head_is_carried_once():
    model = tiny("llama", tie_word_embeddings=True)
    decoder = Decoder.fuse(model)
    assert "lm_head.weight" not in decoder.named_views()
    assert decoder.head is decoder.embed


def test_writing_a_view_changes_the_forward_pass():
    model = tiny("qwen2")
    decoder = Decoder.fuse(model)
    before = logits(decoder, [1, 2, 3])
    decoder.named_views()["model.layers.1.self_attn.k_proj.weight"].mul_(2.0)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight.mul_(2.0)
        expected = model(torch.tensor([[1, 2, 3]])).logits[0]
    after = logits(decoder, [1, 2, 3])
    assert (after - expected).abs().max() < 1e-5
    assert (after - before).abs().max() > 1e-3


def test_copy_from_takes_all_weights_or_none():
    old, new = tiny("qwen3", 0), tiny("qwen3", 1)
    decoder, tensors = Decoder.fuse(old), dict(named_tensors(new))
    assert len(decoder.mismatches(tensors)) == len(tensors)
    decoder.copy_from(tensors)
    assert decoder.mismatches(tensors) == []
    partial = {name: torch.zeros_like(t) for name, t in list(tensors.items())[:-1]}
    with pytest.raises(WeightSyncError, match=r"1 names missing or unknown: model\.norm\.weight|lm_head"):
        decoder.copy_from(partial)
    wrong_shape = {**tensors, "model.norm.weight": torch.ones(3)}
    with pytest.raises(WeightSyncError, match=r"model\.norm\.weight has shape \[3\], not \[48\]"):
        decoder.copy_from(wrong_shape)
    assert decoder.mismatches(tensors) == []


def test_bf16_copy_is_the_rounded_one():
    model = tiny("llama")
    decoder, tensors = Decoder.fuse(model, torch.bfloat16), dict(named_tensors(model))
    assert decoder.mismatches(tensors) == []
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.1
    assert decoder.mismatches(tensors) == ["model.norm.weight"]


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("qwen2", {}),
        ("qwen3_moe", {}),
        ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": [0]}),  # a layer without experts
    ],
)
def test_gradients_of_live_equal_those_of_transformers(family, sizes):
    model = tiny(family, **sizes)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    model(torch.tensor([ids])).logits.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits(Decoder.live(model), ids).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "sizes", "reason"),
    [
        ("gpt2", {}, "model_type 'gpt2'"),
        ("mistral", {"sliding_window": 16}, "sliding-window attention"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'dynamic'",
        ),
    ],
)
def test_why_unsupported_gives_the_reason(family, sizes, reason):
    assert reason in why_unsupported(new_config(family, **sizes))


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families_have_no_reason(family):
    assert why_unsupported(tiny(family).config) is None
