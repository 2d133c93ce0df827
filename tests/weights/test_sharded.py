"""Weights of sharded trainers, by real processes: bit for bit in every pair of layouts."""

import contextlib
import os

import pytest
import torch
from ranks import Ranks
from small_model import build, shard
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from llamarl.core.errors import ConfigError, WeightSyncError
from llamarl.functional.checksum import checksum, combine_checksums, partial_checksums
from llamarl.functional.shards import local_part, view_region
from llamarl.weights import LocalChannel, ShmChannel
from llamarl.weights.layout import Region, layout_of, whole_layout
from llamarl.weights.plan import build_plan
from llamarl.weights.slots import Slots

SOURCES = [("full", 1), ("fsdp", 2), ("fsdp", 4), ("tp", 2), ("fsdp x tp", 4)]
TARGETS = [("full", 1), ("tp", 2)]
TIED = [True, False]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with contextlib.closing(Ranks(6, tmp_path_factory.mktemp("stores"))) as pool:
        yield pool


@pytest.fixture
def shm():
    with contextlib.closing(ShmChannel()) as channel:
        yield channel


def whole(seed: int, is_tied: bool) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in build(seed, is_tied).named_parameters()}


def parameters(seed: int, kind: str, is_tied: bool) -> dict[str, torch.Tensor]:
    return dict(shard(build(seed, is_tied), kind).named_parameters())


def publish(rank: int, channel: ShmChannel, kind: str, is_tied: bool, seeds: list[int]):
    """A trainer's rank: (layout, bytes that it holds, its shares of the last version's checksums)."""
    for version in seeds:
        tensors = parameters(version, kind, is_tied)
        channel.publish(version, tensors)
    return layout_of(tensors), sum(local_part(t).nbytes for t in tensors.values()), partial_checksums(tensors)


def receive(rank: int, channel: ShmChannel, kind: str, is_tied: bool, version: int):
    """A generator's rank: whether its part is right bit for bit, and its shares of the checksums."""
    mine = parameters(999, kind, is_tied)
    channel.fetch(version, mine)
    sent, layout = whole(version, is_tied), layout_of(mine)
    views = {
        name: view_region(sent[name], whole_layout({0: layout})[name], held.region) for name, held in layout.items()
    }
    is_equal = all(torch.equal(local_part(mine[name]), view) for name, view in views.items())
    return is_equal, partial_checksums(mine)


@pytest.mark.parametrize("is_tied", TIED)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_weights_arrive_bit_for_bit_through_shared_memory(ranks, shm, source, target, is_tied):
    (kind, size), (into, num_targets) = source, target
    published = ranks.run(size, publish, shm, kind, is_tied, [0, 1, 2])
    layouts = dict(enumerate(layout for layout, _, _ in published))
    sums = combine_checksums([sums for _, _, sums in published])
    assert sums == checksum(whole(2, is_tied))
    for version in (1, 2):
        received = ranks.run(num_targets, receive, shm, into, is_tied, version)
        assert all(is_equal for is_equal, _ in received)
    assert combine_checksums([sums for _, sums in received]) == sums
    model = sum(tensor.nbytes for tensor in whole(0, is_tied).values())
    sent = build_plan(layouts, {-1: whole_layout(layouts)}).bytes_by_source
    assert sum(sent.values()) == model
    assert max(sent.values()) <= 1.1 * min(sent.values())
    with shm.reading(2) as tensors:
        assert all(torch.equal(tensors[name], tensor) for name, tensor in whole(2, is_tied).items())


def publish_too_much(rank: int, channel: ShmChannel):
    mesh = init_device_mesh("cpu", (2,))
    free = os.statvfs(channel.path.parent)
    rows = 2 * (free.f_bavail * free.f_frsize // 4096)
    local = torch.empty(1, 1).expand(rows // 2, 1024)  # no memory of its own
    channel.publish(0, {"w": DTensor.from_local(local, mesh, [Shard(0)])})


def test_every_rank_learns_that_shared_memory_is_full(ranks, shm):
    ranks.begin(0, 2, publish_too_much, shm)
    for rank in (0, 1):
        is_good, error = ranks._reply(rank)
        assert not is_good
        assert isinstance(error, WeightSyncError)
        assert "enlarge" in str(error)
    assert not shm.path.exists()


def test_a_version_is_held_once_every_rank_has_written_it():
    stamps, copies = torch.zeros(2, 2, 2, dtype=torch.int64), [{"w": torch.zeros(4)} for _ in range(2)]
    halves = [Region((0,), (2,)), Region((2,), (2,))]
    writers = [Slots(stamps, copies, rank, {"w": [halves[rank]]}) for rank in range(2)]
    reader = Slots(stamps, copies)
    for version in (1, 2):
        weights = {"w": torch.full((4,), float(version))}
        writers[0].write(version, weights)
        assert version not in reader.versions
        with pytest.raises(WeightSyncError, match=f"version {version} are not on the channel"):
            reader.read(version)
        writers[1].write(version, weights)
        assert reader.read(version)["w"].tolist() == [version] * 4
    assert reader.versions == [1, 2]
    with pytest.raises(WeightSyncError, match="version 1 were overwritten"), reader.reading(1):
        writers[1].write(3, {"w": torch.full((4,), 3.0)})


def publish_locally(rank: int):
    LocalChannel().publish(0, parameters(0, "fsdp", True))


def test_a_local_channel_refuses_shards(ranks):
    with pytest.raises(
        ConfigError, match=r"'embed.weight' lies on several ranks, a LocalChannel on one; use ShmChanne"
    ):
        ranks.run(2, publish_locally)
