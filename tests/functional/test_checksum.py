import pickle
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import WeightSyncError
from llamarl.core.records import WeightManifest
from llamarl.core.shards import Region, Shard
from llamarl.functional.checksum import (
    MAX_SAMPLES,
    PartialSum,
    _weighted_bits,
    checksum,
    combine_checksums,
    verify,
)
from llamarl.functional.shards import shard_of, view_region

LARGE = 10 * MAX_SAMPLES + 37


def one(tensor: torch.Tensor) -> int:
    return checksum({"x": tensor})["x"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# golden


def test_values_are_63_bit_and_equal_in_another_process():
    code = (
        "import torch; from llamarl.functional.checksum import checksum; torch.set_num_threads(1);"
        f"print(checksum({{'x': torch.arange({LARGE}.)}})['x'])"
    )
    other = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert other == one(torch.arange(float(LARGE)))
    assert 0 <= other < 2**63


def test_golden_linear_form_of_two_elements():
    # bits of 1.0 are 0x3F800000 and of 0.0 are 0, so [1, 0] and [0, 1] give 0x3F800000 times the first or second
    # multiplier: different unless the multipliers are equal.
    assert one(torch.tensor([1.0, 0.0])) != one(torch.tensor([0.0, 1.0]))


# invariance


@pytest.mark.parametrize("rows", [8, 4 * MAX_SAMPLES // 16])
def test_strides_do_not_matter(rows: int):
    fused = random(16, 3 * rows)
    view = fused[:, rows : 2 * rows]
    assert not view.is_contiguous()
    assert one(view) == one(view.clone(memory_format=torch.contiguous_format)) == one(view.t().contiguous().t())


def test_bfloat16_counts_as_the_float32_of_the_same_value():
    low = random(100, 30).bfloat16()
    assert one(low) == one(low.float())
    assert one(low) != one(random(100, 30))
    exact = {"w": random(100, 30), "big": random(LARGE), "count": torch.arange(5)}
    cast = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in exact.items()}
    assert checksum(exact, torch.bfloat16) == checksum(cast) != checksum(exact)


def test_parameters_integers_scalars_and_empty_tensors_are_accepted():
    tensors = {
        "parameter": torch.nn.Parameter(random(3)),
        "integer": torch.tensor([1, 2]),
        "flag": torch.tensor(True),
        "scalar": torch.tensor(2.0),
    }
    assert list(checksum(tensors)) == list(tensors)


@st.composite
def splits(draw, shape: tuple[int, ...]) -> list[Region]:
    """Boxes that cover a shape exactly once: it is cut in two along some dimension, and the halves again."""
    boxes = [Region((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6))):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        dim = draw(st.integers(0, len(shape) - 1))
        cut = draw(st.integers(0, box.shape[dim]))  # an empty half is what a rank holds that got no rows
        for begin, size in ((0, cut), (cut, box.shape[dim] - cut)):
            offset = tuple(o + begin * (d == dim) for d, o in enumerate(box.offset))
            boxes.append(Region(offset, tuple(size if d == dim else n for d, n in enumerate(box.shape))))
    return boxes


def partial(name: str, tensor: torch.Tensor, region: Region) -> dict[str, PartialSum]:
    """What a rank says that holds this region of the tensor."""
    whole = shard_of(name, tensor)
    held = view_region(tensor, whole, region).clone()
    shard = Shard(whole.global_shape, region, whole.dtype)
    return {name: PartialSum(shard, int(_weighted_bits(held, shard)))}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_shards_add_up_to_the_whole_however_it_is_split(data):
    tensor = random(*data.draw(st.sampled_from([(7,), (5, 6), (3, 4, 5), (129, 257), (3, 11, 1000)])))
    regions = data.draw(splits(tuple(tensor.shape)))
    parts = [partial("w", tensor, region) for region in regions]
    replica = data.draw(st.sampled_from(parts))
    assert combine_checksums([*parts, replica]) == checksum({"w": tensor})


# detects


@pytest.mark.parametrize("numel", [7, MAX_SAMPLES, MAX_SAMPLES + 1, LARGE])
def test_zeros_old_values_shape_and_order_are_seen(numel: int):
    new, old = random(numel), random(numel, seed=1)
    faults = [torch.zeros(numel), old, new.flip(0), new[:-1], new[None], new.roll(1), new * (1 + 2**-20)]
    assert len({one(new), *map(one, faults)}) == len(faults) + 1


def test_swapped_tensors_of_one_shape_are_seen():
    a, b = random(4, 4), random(4, 4, seed=1)
    sent, got = checksum({"a": a, "b": b}), checksum({"a": b, "b": a})
    assert sent["a"] == got["b"] != got["a"]


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, LARGE), share=st.floats(2.1 / MAX_SAMPLES, 0.5))
def test_any_contiguous_missing_part_is_seen(start: int, share: float):
    sent = random(LARGE)
    got = sent.clone()
    length = int(share * LARGE) + 1
    start = min(start, LARGE - length)
    got[start : start + length] = 0
    assert one(got) != one(sent)


def test_one_missing_column_of_a_wide_matrix_is_seen():
    sent = random(1024, 512)
    got = sent.clone()
    got[:, 137] = 0
    assert one(got) != one(sent)


def test_each_single_element_of_a_small_tensor_counts():
    sent = random(64)
    seen = {one(torch.where(torch.arange(64) == i, 0.0, sent)) for i in range(64)}
    assert len(seen | {one(sent)}) == 65


def test_cost_is_bounded():
    large = torch.zeros(20_000_000)
    one(large)
    started = time.thread_time()
    one(large)
    assert (
        time.thread_time() - started < 0.5 * large.numel() / 20e6
    )  # a full pass over 80 MB with int64 sums costs more


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_shard_that_is_lost_stale_or_elsewhere_is_seen(data):
    sent, old = random(40, 30), random(40, 30, seed=1)
    regions = data.draw(splits((40, 30)).filter(lambda boxes: all(box.numel for box in boxes) and len(boxes) > 1))
    parts = [partial("w", sent, region) for region in regions]
    assert combine_checksums([partial("w", old, regions[0]), *parts[1:]]) != checksum({"w": sent})
    with pytest.raises(WeightSyncError, match=r"shards of 'w' do not cover \[40, 30\] exactly once"):
        combine_checksums(parts[1:])
    with pytest.raises(WeightSyncError, match="do not cover"):
        combine_checksums([*parts, partial("w", sent, Region((0, 0), (40, 30)))])  # overlaps with all of them


def test_ranks_whose_replicas_differ_are_named():
    whole = Region((0,), (8,))
    with pytest.raises(WeightSyncError, match=r"ranks 0 and 1 hold different values of norm\[0:8\]"):
        combine_checksums([partial("norm", random(8), whole), partial("norm", random(8, seed=1), whole)])


# rejects


def test_a_checksum_of_nothing_is_refused():
    with pytest.raises(WeightSyncError, match="no tensor to take a checksum of"):
        checksum({})
    with pytest.raises(WeightSyncError, match=r"'packed' of shape \[0, 4\] has no element"):
        checksum({"w": random(3), "packed": torch.empty(0, 4)})
    with pytest.raises(WeightSyncError, match="version 3: the manifest has no checksums"):
        verify(WeightManifest(3, {}), 3, {})


# verify


def test_verify_accepts_equal_weights():
    sums = checksum({"a": random(3)})
    verify(WeightManifest(4, sums), 4, sums)


def test_verify_names_version_and_tensors():
    manifest = WeightManifest(4, {"a": 1, "b": 2, "c": 3})
    with pytest.raises(WeightSyncError, match="received version 3, expected 4"):
        verify(manifest, 3, manifest.checksums)
    with pytest.raises(
        WeightSyncError, match=r"version 4.*1 missing \(c\); 1 unexpected \(d\); 1 different \(b\)"
    ) as e:
        verify(manifest, 4, {"a": 1, "b": 9, "d": 3})
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)


def test_verify_shows_only_some_of_many_names():
    manifest = WeightManifest(0, {f"layer{i}": i for i in range(50)})
    with pytest.raises(WeightSyncError, match=r"50 different \(layer0, .*, \.\.\.\)") as error:
        verify(manifest, 0, dict.fromkeys(manifest.checksums, -1))
    assert len(str(error.value)) < 200
