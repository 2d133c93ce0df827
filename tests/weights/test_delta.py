import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import WeightSyncError
from llamarl.core.records import WeightManifest
from llamarl.functional.checksum import checksum, verify
from llamarl.weights.delta import BLOCK, Delta, apply_delta, encode_delta

DTYPES = [torch.float32, torch.bfloat16, torch.int8]


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (37, 8), "odd": (13,), "scale": (), "row": (1, 64)}
    return {name: (100 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}


def copy(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(a, b) -> bool:
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return all(
        torch.equal(a[n].reshape(-1).view(bits[a[n].itemsize]), b[n].reshape(-1).view(bits[b[n].itemsize])) for n in b
    )


# golden


def test_golden_delta_of_three_blocks_and_a_tail():
    """27 elements: three blocks of 8 and three more. Element 9 changes: the mask is 010, of which a byte is 0x40."""
    old, new = {"w": torch.zeros(27)}, {"w": torch.zeros(27)}
    new["w"][9] = 5.0
    delta = encode_delta(3, old, 4, new)
    assert delta.masks["w"].tolist() == [0x40]
    assert delta.values["w"].tolist() == [0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert delta.num_bytes == 1 + 11 * 4
    apply_delta(delta, 3, old)
    assert equal(old, new)


# properties


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_the_receiver_ends_with_the_new_version_bit_for_bit(dtype, seed, share):
    old, other = weights(seed, dtype), weights(seed + 1, dtype)
    generator = torch.Generator().manual_seed(seed)
    new = {
        name: torch.where(torch.rand(tensor.shape, generator=generator) < share, other[name], tensor)
        for name, tensor in old.items()
    }
    held, delta = copy(old), encode_delta(1, old, 2, new)
    apply_delta(delta, 1, held)
    assert equal(held, new)
    apply_delta(delta, 1, held)  # values are absolute: once more does no harm
    assert equal(held, new)
    verify(WeightManifest(2, checksum(new)), 2, checksum(held))
    total = sum(tensor.nbytes for tensor in new.values())
    assert delta.num_bytes <= total + sum(-(-tensor.numel() // (8 * BLOCK)) for tensor in new.values())


def test_nan_and_the_sign_of_zero_travel():
    old = {"w": torch.tensor([0.0, torch.nan] * 8)}
    new = {"w": torch.tensor([-0.0, torch.nan] * 4 + [0.0, torch.nan] * 4)}
    delta = encode_delta(0, old, 1, new)
    assert delta.values["w"].numel() == 8  # the second block has the same bits, NaN included
    apply_delta(delta, 0, old)
    assert equal(old, new)


def test_nothing_changed_costs_one_bit_a_block():
    same = {"w": torch.randn(800, 8)}
    assert encode_delta(0, same, 1, same).num_bytes == 800 / 8


# rejects


def test_a_delta_onto_another_version_or_another_model_is_refused_and_writes_nothing():
    old, new = weights(0), weights(1)
    delta, held = encode_delta(6, old, 7, new), copy(old)
    with pytest.raises(WeightSyncError, match="a delta from version 6 does not fit version 5"):
        apply_delta(delta, 5, held)
    with pytest.raises(WeightSyncError, match="the delta has other names: odd"):
        apply_delta(delta, 6, {name: tensor for name, tensor in held.items() if name != "odd"})
    with pytest.raises(WeightSyncError, match="delta of 'row' is not one of its 72 elements"):
        apply_delta(delta, 6, {**held, "row": torch.zeros(72)})
    cut = Delta(6, 7, delta.masks, {**delta.values, "row": delta.values["row"][:-1]})
    with pytest.raises(WeightSyncError, match="delta of 'row' is not one of its 64 elements"):
        apply_delta(cut, 6, held)
    assert equal(held, old)


def test_versions_of_different_models_have_no_delta():
    with pytest.raises(WeightSyncError, match="versions 0 and 1 differ in names: extra"):
        encode_delta(0, weights(0), 1, weights(1) | {"extra": torch.zeros(3)})
    with pytest.raises(WeightSyncError, match="'w' changed its shape or dtype between 0 and 1"):
        encode_delta(0, weights(0), 1, weights(1) | {"w": torch.zeros(3)})


def test_a_delta_that_was_lost_is_found_by_the_checksums():
    old, new = weights(0), weights(1)
    with pytest.raises(WeightSyncError, match="version 2, 4 tensors: 4 different"):
        verify(WeightManifest(2, checksum(new)), 2, checksum(old))
