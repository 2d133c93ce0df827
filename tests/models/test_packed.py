import pytest
import torch
from torch.nn import functional as F

from llamarl.core.errors import WeightSyncError
from llamarl.models.blocks import Dense
from llamarl.models.checkpoint import new_config, new_model
from llamarl.models.decoder import Decoder, named_tensors
from llamarl.models.packed import Packed, suits_packing
from llamarl.models.probe import arbitrary_ids, probe_logprobs

DTYPES = [torch.float32, torch.bfloat16]
SIZES = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}


def weight_of(dtype, num_outputs=192, num_inputs=128, seed=0):
    weight = torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if not suits_packing(weight):
        pytest.skip("this machine gains nothing by packing")
    return weight


def model(seed=0, **settings):
    return new_model(new_config("llama", **SIZES, num_attention_heads=4, num_key_value_heads=2, **settings), seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 4, 16, 40, 300])
def test_a_product_equals_that_of_dense_weights(dtype, rows):
    weight, bias = weight_of(dtype), torch.linspace(-1, 1, 192).to(dtype)
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-1}
    torch.testing.assert_close(Packed(weight, bias)(x), F.linear(x, weight, bias), **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_held_is_seen_and_looked_up_exactly(dtype):
    weight = weight_of(dtype)
    packed = Packed(weight)
    assert torch.equal(packed.dense(slice(0, 192)), weight)
    assert torch.equal(packed.lookup(torch.tensor([5, 191, 5, 64])), weight[[5, 191, 5, 64]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [slice(0, 192), slice(64, 128), slice(10, 75)])
def test_writing_changes_these_outputs_and_no_others(dtype, rows):
    weight, new = weight_of(dtype), weight_of(dtype, seed=3).float()
    packed = Packed(weight)
    packed.write(rows, new[rows])
    expected = weight.clone()
    expected[rows] = new[rows].to(dtype)
    assert torch.equal(packed.dense(slice(0, 192)), expected)
    x = torch.eye(128)[:8].to(dtype)
    torch.testing.assert_close(packed(x), expected.t()[:8])


def test_one_wrong_number_is_a_gap():
    weight = weight_of(torch.float32)
    packed = Packed(weight)
    assert packed.holds(slice(64, 128), weight[64:128])
    weight[100, 7] += 1e-6
    assert not packed.holds(slice(64, 128), weight[64:128])
    assert packed.holds(slice(128, 192), weight[128:])


@pytest.mark.parametrize("shape", [(200, 128), (192, 120), (64, 64), (192, 128, 2)])
def test_what_does_not_fit_the_blocks_or_is_small_stays_dense(shape):
    assert not suits_packing(torch.empty(shape))


def test_other_dtypes_stay_dense():
    assert not suits_packing(torch.empty(192, 128, dtype=torch.float64))


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_packed_decoder_takes_new_weights_and_names_what_it_holds(is_tied):
    weight_of(torch.float32)
    old, new = (model(seed, tie_word_embeddings=is_tied) for seed in (0, 1))
    decoder, tensors = Decoder.fuse(old), dict(named_tensors(new))
    assert isinstance(decoder.head, Packed) and isinstance(decoder.layers[0].down, Packed)
    assert decoder.named_views().keys() == tensors.keys()
    assert set(decoder.mismatches(tensors)) >= {"model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"}
    decoder.copy_from(tensors)
    assert decoder.mismatches(tensors) == []
    assert all(torch.equal(view, tensors[name]) for name, view in decoder.named_views().items())
    expected = probe_logprobs(Decoder.live(new), arbitrary_ids(256, 24))
    assert probe_logprobs(decoder, arbitrary_ids(256, 24)) == pytest.approx(expected, abs=1e-5)


def test_a_wrong_shape_is_refused_before_anything_is_written():
    decoder, tensors = Decoder.fuse(model()), dict(named_tensors(model(1)))
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(192, 128)
    with pytest.raises(WeightSyncError, match=r"down_proj.weight has shape \[192, 128\], not \[128, 192\]"):
        decoder.copy_from(tensors)
    assert decoder.mismatches(dict(named_tensors(model()))) == []


def test_a_dense_map_looks_rows_up_too():
    weight = torch.arange(12.0).view(4, 3)
    assert torch.equal(Dense(weight).lookup(torch.tensor([3, 0])), weight[[3, 0]])
