"""Weights of sharded trainers, by real processes: bit for bit in every pair of layouts."""

import contextlib
import os
import socket

import pytest
import torch
from ranks import Ranks
from small_model import build, shard

from llamarl.core.errors import ConfigError, WeightSyncError
from llamarl.core.shards import Region, Sharding
from llamarl.core.shards import Shard as WeightShard
from llamarl.functional.checksum import checksum, combine_checksums, partial_checksums
from llamarl.functional.shards import local_part, view_region
from llamarl.weights import LocalChannel, ShmChannel
from llamarl.weights.collective import Link
from llamarl.weights.layout import gather_sharding, layout_of, whole_layout
from llamarl.weights.plan import build_plan
from llamarl.weights.reference import reshard
from llamarl.weights.slots import Slots

SOURCES = [("full", 1), ("fsdp", 2), ("fsdp", 4), ("tp", 2), ("fsdp x tp", 4)]
TARGETS = [("full", 1), ("tp", 2)]
TIED = [True, False]
RECEIVERS = 4
"""The first process that receives over a group: torch remembers a process's place in meshes of a shape."""


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
        channel.publish(version, tensors, gather_sharding(tensors) if kind != "full" else None)
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
    free = os.statvfs(channel.path.parent)
    rows = free.f_bavail * free.f_frsize // 4096
    halves = (WeightShard((2 * rows, 1024), Region((rows * half, 0), (rows, 1024)), "float32") for half in range(2))
    local = torch.empty(1, 1).expand(rows, 1024)  # no memory of its own
    channel.publish(0, {"w": local}, Sharding(rank, tuple({"w": half} for half in halves)))


def test_every_rank_learns_that_shared_memory_is_full(ranks, shm):
    ranks.begin(0, 2, publish_too_much, shm)
    for rank, message in enumerate(["enlarge", "rank 0 could not make"]):
        is_good, error = ranks._reply(rank)
        assert not is_good
        assert isinstance(error, WeightSyncError)
        assert message in str(error)
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


def publish_without_sharding(rank: int, channel: ShmChannel):
    channel.publish(0, parameters(0, "fsdp", True))


def test_shards_that_nobody_says_are_shards_are_refused(ranks, shm):
    ranks.begin(0, 2, publish_without_sharding, shm)
    with pytest.raises(
        WeightSyncError, match=r"holds embed.weight\[0:49, 0:32\] of float32 \[98, 32\] alone; pass the"
    ):
        ranks.end(0, 2)


def publish_locally(rank: int):
    tensors = parameters(0, "fsdp", True)
    LocalChannel().publish(0, tensors, gather_sharding(tensors))


def test_a_local_channel_refuses_shards(ranks):
    with pytest.raises(ConfigError, match="LocalChannel cannot take them from 2 ranks; use ShmChannel"):
        ranks.run(2, publish_locally)


# over a process group


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def send(rank: int, address: str, kind: str, sizes: tuple[int, int], is_tied: bool, versions: list[int]):
    tensors = parameters(versions[0], kind, is_tied)
    link = Link.join(address, "source", rank, *sizes, tensors, timeout_seconds=60)
    for version in versions:
        link.send(version, parameters(version, kind, is_tied))
    return link.plan


def take(rank: int, address: str, kind: str, sizes: tuple[int, int], is_tied: bool, versions: list[int], dtype):
    mine = parameters(999, kind, is_tied)
    if dtype is not None:
        mine = {name: tensor.detach().to(dtype) for name, tensor in mine.items()}
    link = Link.join(address, "destination", rank, *sizes, mine, timeout_seconds=60)
    for version in versions:
        link.receive(version, mine)
    return layout_of(mine), {name: local_part(tensor).clone() for name, tensor in mine.items()}, link.plan


def exchange(ranks, source, target, is_tied, dtype=None, versions=(1, 2)):
    (kind, size), (into, num_targets) = source, target
    address, sizes = free_address(), (size, num_targets)
    ranks.begin(0, size, send, address, kind, sizes, is_tied, list(versions))
    ranks.begin(RECEIVERS, num_targets, take, address, into, sizes, is_tied, list(versions), dtype)
    return ranks.end(0, size), ranks.end(RECEIVERS, num_targets)


@pytest.mark.parametrize("is_tied", TIED)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_weights_arrive_bit_for_bit_over_gloo(ranks, source, target, is_tied):
    plans, received = exchange(ranks, source, target, is_tied)
    sent, model = plans[0].bytes_by_source, whole(2, is_tied)
    layouts = {rank: layout for rank, (layout, _, _) in enumerate(received)}
    expected = reshard({0: model}, {0: layout_of(model)}, layouts)
    for rank, (_, held, plan) in enumerate(received):
        assert plan == plans[0]  # each rank planned for itself
        assert all(torch.equal(held[name], tensor) for name, tensor in expected[rank].items())
    wanted = sum(tensor.nbytes for tensors in expected.values() for tensor in tensors.values())
    assert sum(sent.values()) == wanted
    assert max(sent.values()) <= 1.1 * min(sent.values())
    if target == ("full", 1):
        assert wanted == sum(tensor.nbytes for tensor in model.values())


def test_receivers_of_another_dtype_cast(ranks):
    _, received = exchange(ranks, ("fsdp", 2), ("full", 1), True, torch.bfloat16)
    assert all(torch.equal(received[0][1][name], tensor.bfloat16()) for name, tensor in whole(2, True).items())


def test_another_version_than_expected_is_refused(ranks):
    address = free_address()
    ranks.begin(0, 2, send, address, "fsdp", (2, 1), True, [7])
    ranks.begin(RECEIVERS, 1, take, address, "full", (2, 1), True, [8], None)
    with pytest.raises(WeightSyncError, match=r"version 8: the sources sent \[7\]"):
        ranks.end(RECEIVERS, 1)
    with pytest.raises(WeightSyncError, match="version 7: a rank was lost on the way"):
        ranks.end(0, 2)


def join_alone(rank: int, address: str):
    Link.join(address, "source", 0, 1, 1, {"w": torch.zeros(3)}, timeout_seconds=1)


def test_a_link_that_nobody_joins_is_given_up(ranks):
    address = free_address()
    with pytest.raises(WeightSyncError, match=rf"source 0 could not join 2 ranks at {address}"):
        ranks.run(1, join_alone, address)
    with pytest.raises(ConfigError, match="address: 'somewhere' is not HOST:PORT"):
        Link.join("somewhere", "source", 0, 1, 1, {})


# the reference


def test_the_reference_finds_gaps_and_differing_replicas():
    shape, halves = (4,), [Region((0,), (3,)), Region((2,), (2,))]
    layouts = {rank: {"w": WeightShard(shape, region, "float32")} for rank, region in enumerate(halves)}
    held = {0: {"w": torch.tensor([1.0, 2, 3])}, 1: {"w": torch.tensor([3.0, 4])}}
    assert reshard(held, layouts, {5: layouts[1]})[5]["w"].tolist() == [3, 4]
    with pytest.raises(WeightSyncError, match=r"rank 1 holds other values of w\[2:4\] than ranks before it"):
        reshard({**held, 1: {"w": torch.tensor([9.0, 4])}}, layouts, layouts)
    with pytest.raises(WeightSyncError, match="no source holds all of 'w'"):
        reshard(held, {0: layouts[0]}, layouts)


def publish_in_bf16(rank: int, channel: ShmChannel):
    tensors = parameters(3, "fsdp", True)
    channel.publish(3, tensors, gather_sharding(tensors))
    return partial_checksums(tensors, dtype=channel.dtype)


def test_shards_published_in_bf16_are_proved_as_what_arrives(ranks):
    with contextlib.closing(ShmChannel(dtype=torch.bfloat16)) as channel:
        sums = combine_checksums(ranks.run(4, publish_in_bf16, channel))
        received = channel.fetch(3)
        assert all(torch.equal(received[name], tensor.bfloat16()) for name, tensor in whole(3, True).items())
        assert checksum(received) == sums
