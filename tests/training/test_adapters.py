"""Adapters beside frozen weights: what the packed decoder computes with them, and what is written of them."""

from types import SimpleNamespace

import pytest
import torch
from tiny_policies import tiny_model
from torch import nn
from torch.nn import functional as F

from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.models.adapted import AdaptedDense
from llamarl.models.checkpoint import load_classifier, load_model, resolve
from llamarl.models.lora import Adapters, load_adapter
from llamarl.models.lora_config import LoraConfig
from llamarl.models.tiny import build_tiny
from llamarl.training.fitter import Fitter
from llamarl.training.objectives import SFT, SFTConfig


def tune(model, seed=0):
    """Adapters that change what the model computes."""
    adapters = Adapters(model, LoraConfig(rank=2), seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=noise)
    return adapters


def logits_of(model):
    return model(torch.tensor([[3, 4, 5]])).logits.detach()


def test_a_frozen_weight_that_is_cast_once_computes_what_autocast_computes():
    torch.manual_seed(0)
    low, high = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)
    layer = SimpleNamespace(
        lora_A={"default": low}, lora_B={"default": high}, scaling={"default": 2.0}, disable_adapters=False
    )
    weight, x = torch.randn(5, 6), torch.randn(7, 6)
    dense = AdaptedDense(weight, None, layer=layer)
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.linear(x, weight) + 2.0 * F.linear(F.linear(x, low.weight), high.weight)
        for _ in range(2):
            assert torch.equal(dense(x), expected)
    assert dense.cast_weight is not None and dense.cast_weight.dtype == torch.bfloat16
    exact = F.linear(x, weight) + 2.0 * F.linear(F.linear(x, low.weight), high.weight)
    torch.testing.assert_close(dense(x), exact)  # outside autocast the weight itself


def test_an_adapter_that_is_saved_and_loaded_computes_what_it_computed(tmp_path):
    model = tiny_model()
    adapters = tune(model)
    adapters.save(tmp_path / "adapter", "base")
    fresh = tiny_model()
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits_of(fresh), logits_of(model))
    assert not torch.allclose(logits_of(fresh), logits_of(tiny_model()))
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_broken_adapter_and_one_of_another_model_are_refused(tmp_path):
    tune(tiny_model()).save(tmp_path, "base")
    with pytest.raises(CheckpointError, match=r"lora_B.weight has shape \[16, 2\], the model's .* takes \[24, 2\]"):
        load_adapter(tiny_model(hidden_size=24, intermediate_size=24), tmp_path)
    with pytest.raises(CheckpointError, match=r"fit no layer, first .*layers\.2\."):
        load_adapter(tiny_model(num_hidden_layers=3), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="can't load the adapter"):
        load_adapter(tiny_model(), tmp_path)
    with pytest.raises(CheckpointError, match=r"no adapter_config.json"):
        load_adapter(tiny_model(), tmp_path / "nowhere")


def test_without_adapters_there_is_nothing_to_save(tmp_path):
    fitter = Fitter(tiny_model(), SFT(SFTConfig(num_steps=1, warmup_steps=0)), 1)
    with pytest.raises(ConfigError, match=r"no adapters to save; set lora.rank"):
        fitter.save_adapter(tmp_path, "base")


def test_an_adapter_in_place_of_a_model_is_added_to_the_model_that_it_names(tmp_path):
    base, prompt = build_tiny("llama", tmp_path / "base"), torch.tensor([[3, 4, 5]])
    model = load_model(base)
    tune(model).save(tmp_path / "adapter", str(base))
    with torch.no_grad():
        expected, plain = model(prompt).logits, load_model(base)(prompt).logits
        loaded = load_model(tmp_path / "adapter")
        torch.testing.assert_close(loaded(prompt).logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert dict(loaded.named_parameters()).keys() == dict(load_model(base).named_parameters()).keys()
    assert str(resolve(tmp_path / "adapter")) == str(
        tmp_path / "adapter"
    )  # and so do executors that are given the name
    with pytest.raises(CheckpointError, match="an adapter of a language model; write the whole model first"):
        load_classifier(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"base_model_name_or_path": "/gone"}', r"the adapter's model: /gone: no such directory"),
        ('{"base_model_name_or_path": null}', r"base_model_name_or_path=None names no model; write its directory"),
        ("{}", r"can't read base_model_name_or_path"),
        ("torn", r"can't read base_model_name_or_path"),
    ],
)
def test_an_adapter_whose_model_is_not_there_is_named(config, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)
