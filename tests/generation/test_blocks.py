import sys

import pytest
import torch

from llamarl.generation.blocks import BlockPool, _GrownMemory, _MappedMemory
from llamarl.models.decoder import Geometry

SIZES = Geometry(
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    hidden_size=32,
    vocab_size=9,
    norm_eps=1e-6,
    max_positions=64,
)
CPU = torch.device("cpu")


def pool(dtype=torch.float32, max_blocks=5000):
    return BlockPool(SIZES, dtype, CPU, max_blocks)


def write(block, number):
    for layer in block.pool.layers:
        layer[:, block.index] = number


def numbers(blocks):
    return [float(block.pool.layers[1][1, block.index, -1, -1, -1]) for block in blocks]


# golden


@pytest.mark.parametrize(("dtype", "num_positions"), [(torch.float32, 16), (torch.bfloat16, 32)])
def test_a_block_has_as_many_bytes_in_each_precision(dtype, num_positions):
    p = pool(dtype)
    assert p.block_size == num_positions
    before = p.num_bytes
    p.add()
    assert p.num_bytes - before == 2 * 2 * 2 * 8 * 64  # layers, keys and values, heads, components, bytes


def test_a_hole_is_filled_first():
    p = pool()
    blocks = [p.add() for _ in range(20)]
    p.drop(blocks[6])
    p.drop(blocks[3])
    assert len(p) == 18
    assert [p.add().index, p.add().index, p.add().index] == [4, 7, 21]


# invariance


@pytest.mark.parametrize("num_dropped", [0, 1, 60, 199, 200])
def test_compacting_keeps_what_blocks_hold_and_gives_memory_back(num_dropped):
    p = pool()
    blocks = [p.add() for _ in range(200)]
    for number, block in enumerate(blocks):
        write(block, number)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(num_dropped)).tolist()
    for index in order[:num_dropped]:
        p.drop(blocks[index])
    p.compact()
    stayed = sorted(order[num_dropped:])
    assert numbers(blocks[index] for index in stayed) == stayed
    per_block = p.num_bytes // (1 + max((blocks[i].index for i in stayed), default=0))
    assert len(p) == 200 - num_dropped
    assert p.num_bytes <= per_block * (1 + len(p) * 8 / 7)
    assert {blocks[i].index for i in stayed} <= set(range(1, 1 + int(len(p) * 8 / 7)))


def test_blocks_move_between_pools_with_what_they_hold():
    one, other = pool(), pool()
    blocks = [one.add() for _ in range(10)]
    for number, block in enumerate(blocks):
        write(block, number)
    other.add()
    other.take_over(blocks[2:6])
    assert numbers(blocks) == list(range(10))
    assert [block.pool is other for block in blocks] == [2 <= i < 6 for i in range(10)]
    assert (len(one), len(other)) == (6, 5)


def test_blocks_that_are_not_wanted_make_room():
    p, attic = pool(), pool()
    blocks = [p.add() for _ in range(40)]
    for number, block in enumerate(blocks):
        write(block, number)
    wanted = set(blocks[5:])
    p.compact(wanted, attic)
    assert (len(p), len(attic)) == (40, 0)  # five of forty are not worth a copy
    p.compact(set(blocks[20:]), attic)
    assert (len(p), len(attic)) == (20, 20) and numbers(blocks) == list(range(40))


def test_what_is_read_is_the_blocks_and_what_is_behind_them_is_a_number():
    p = pool()
    for _ in range(33):
        p.add()
    assert p.num_read >= 34 and all(torch.isfinite(x).all() for pair in p.spans() for x in pair)
    keys, values = p.spans()[0]
    assert keys.shape == (p.num_read * 2, 8, 16) and values.shape == (p.num_read * 2, 16, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one kind")
@pytest.mark.parametrize("num_blocks", [3, 1000])
def test_both_kinds_of_memory_grow_and_shrink_alike(num_blocks):
    shape = (2, 16, 8)
    grown = _GrownMemory(2, shape, torch.float32, CPU)
    mapped = _MappedMemory(2, shape, torch.float32, 2000)
    for memory in (grown, mapped):
        memory.resize(num_blocks)
        for layer in memory.layers:
            layer[:, :num_blocks] = torch.arange(num_blocks).view(1, -1, 1, 1, 1)
        memory.resize(num_blocks // 2)
        assert all(
            layer[1, : num_blocks // 2, 0, 0, 0].tolist() == list(range(num_blocks // 2)) for layer in memory.layers
        )
        memory.resize(num_blocks)
        assert all(torch.isfinite(layer[:, :num_blocks]).all() for layer in memory.layers)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is copied to another size")
def test_memory_that_was_given_back_is_the_systems_again():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    memory = _MappedMemory(2, (4, 16, 64), torch.float32, 100_000)
    before = resident()
    memory.resize(2000)
    for layer in memory.layers:
        layer[:, :2000] = 1
    assert resident() - before > 0.9 * memory.num_bytes == 0.9 * 2000 * 4 * 4 * 16 * 64 * 4
    memory.resize(1)
    assert resident() - before < 4 << 20
