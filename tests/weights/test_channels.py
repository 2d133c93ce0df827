import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from llamarl.core.errors import ConfigError, WeightSyncError
from llamarl.core.records import WeightManifest
from llamarl.functional.checksum import checksum, verify
from llamarl.weights import LocalChannel, ShmChannel, TcpChannel, build_channel
from llamarl.weights.testing import FaultyChannel


@pytest.fixture(params=["local", "shm", "tcp"])
def channel(request):
    made = {"local": LocalChannel, "shm": ShmChannel, "tcp": TcpChannel}[request.param]()
    made.open("127.0.0.1")
    yield made
    made.close()


@pytest.fixture
def shm():
    with contextlib.closing(ShmChannel()) as made:
        yield made


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (37, 8), "up": (8, 16), "gate": (8, 16), "norm": (8,), "scale": (), "none": (0, 3)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def empty_like(tensors):
    return {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}


def filled(tensors):
    """Those that have elements, of which there is a checksum."""
    return {name: tensor for name, tensor in tensors.items() if tensor.numel()}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def receiver_of(channel):
    """The channel as another executor gets it: pickled where that is how it travels."""
    return pickle.loads(pickle.dumps(channel)) if isinstance(channel, ShmChannel | TcpChannel) else channel


# round trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_published_arrives_bit_for_bit(channel, dtype):
    receiver = receiver_of(channel)
    for version in range(4):
        sent = weights(version, dtype)
        channel.publish(version, sent)
        got = empty_like(sent)
        assert receiver.fetch(version, got) is got
        assert equal(got, sent)
        assert equal(receiver.fetch(version), sent)


def test_what_was_prepared_is_read_without_the_trainer(channel):
    receiver = channel.open("127.0.0.1")
    channel.publish(0, weights(0))
    asyncio.run(receiver.prepare(0))
    if isinstance(channel, TcpChannel):
        channel.close()
    with receiver.reading(0) as tensors:
        assert equal(tensors, weights(0))
    if isinstance(channel, TcpChannel):  # what was lent once is not lent again: the next time may mean another
        with pytest.raises(WeightSyncError, match="did not arrive"), receiver.reading(0):
            pass


@pytest.fixture
def tcp():
    with contextlib.closing(TcpChannel(sends_deltas=True)) as made:
        made.open("127.0.0.1")
        yield made


def test_a_receiver_of_deltas_ends_with_the_same_bits(tcp):
    receiver, late = tcp.open("127.0.0.1"), tcp.open("127.0.0.1")
    sent = weights(0)
    for version in range(6):
        sent = {name: tensor.clone() for name, tensor in sent.items()}
        sent["embed"][version, 0] += 1  # one element of 700
        tcp.publish(version, sent)
        assert equal(receiver.fetch(version), sent)
        if version % 3 == 0:
            assert equal(late.fetch(version), sent)  # what it holds is no more on the channel: a full copy
    tcp.publish(5, weights(1))  # the same number again, and other weights
    assert equal(receiver.fetch(5), weights(1))


def test_deltas_send_less_where_little_changed_and_a_full_copy_where_all_did(tcp):
    receiver, arena = tcp.open("127.0.0.1"), ShmChannel(tcp._name, is_owner=False)
    sent = {"w": torch.randn(8000)}
    tcp.publish(0, sent)
    receiver.fetch(0)
    little = {"w": sent["w"].clone()}
    little["w"][5] = 0
    tcp.publish(1, little)
    found = tcp._server._find_delta(arena, 1, receiver._held)
    assert found.delta.num_bytes == 1000 / 8 + 8 * 4
    assert equal(receiver.fetch(1), little)
    tcp.publish(2, {"w": torch.randn(8000)})
    assert tcp._server._find_delta(arena, 2, receiver._held) is None


def test_a_restarted_trainer_is_not_taken_for_the_one_before(tcp):
    receiver = tcp.open("127.0.0.1")
    tcp.publish(0, weights(0))
    assert equal(receiver.fetch(0), weights(0))
    again = pickle.loads(pickle.dumps(tcp))
    again.publish(0, weights(1))  # lays the arena out anew
    again.publish(1, weights(2))
    assert equal(receiver.fetch(1), weights(2))


@pytest.mark.parametrize("kind", [LocalChannel, ShmChannel])
def test_a_channel_of_a_lower_precision_holds_what_its_receivers_would_round_to(kind):
    with contextlib.closing(kind(dtype=torch.bfloat16)) as channel:
        receiver = receiver_of(channel)
        assert receiver.dtype == torch.bfloat16
        for version in range(3):
            sent = weights(version) | {"count": torch.tensor([version])}
            channel.publish(version, sent)
            got = receiver.fetch(version)
            assert equal(got, {name: t.bfloat16() if t.is_floating_point() else t for name, t in sent.items()})
            manifest = WeightManifest(version, checksum(filled(sent), channel.dtype))
            verify(manifest, version, checksum(filled(got)))
        with pytest.raises(WeightSyncError, match=r"'count' was int64 \[1\] .* is int64 \[2\] now"):
            channel.publish(3, sent | {"count": torch.tensor([1, 2])})


def test_the_two_newest_versions_are_held(channel):
    receiver = receiver_of(channel)
    for version in (3, 4, 7):  # numbers may skip: the older slot is taken, whatever its parity
        channel.publish(version, weights(version))
    assert equal(receiver.fetch(4), weights(4))
    assert equal(receiver.fetch(7), weights(7))
    with pytest.raises(WeightSyncError, match=r"version 3 are not on the channel; it holds \[7, 4\]"):
        receiver.fetch(3)


def test_a_version_published_again_replaces_the_first(channel):
    channel.publish(5, weights(0))
    channel.publish(5, weights(1))
    assert equal(receiver_of(channel).fetch(5), weights(1))


def test_later_training_does_not_reach_what_was_published(channel):
    live = {name: torch.nn.Parameter(tensor) for name, tensor in weights(0).items()}
    channel.publish(0, live)
    with torch.no_grad():
        for tensor in live.values():
            tensor.add_(1)
    assert equal(channel.fetch(0), weights(0))


def test_receivers_take_views_of_fused_buffers_parameters_parts_and_other_dtypes(channel):
    sent = weights(0)
    channel.publish(0, sent)
    fused = torch.zeros(8, 32)
    norm = torch.nn.Parameter(torch.zeros(8, dtype=torch.bfloat16))
    channel.fetch(0, {"up": fused[:, :16], "gate": fused[:, 16:], "norm": norm})
    assert torch.equal(fused, torch.cat([sent["up"], sent["gate"]], dim=1))
    assert torch.equal(norm, sent["norm"].bfloat16())


# rejects


def test_nothing_published(channel):
    with pytest.raises(WeightSyncError, match="published"):
        receiver_of(channel).fetch(0)


def test_a_receiver_that_does_not_fit_is_refused_and_untouched(channel):
    channel.publish(0, weights(0))
    good = torch.zeros(8)
    with pytest.raises(WeightSyncError, match=r"'up' was published as \[8, 16\], the receiver has \[1, 16\]"):
        channel.fetch(0, {"norm": good, "up": torch.zeros(1, 16)})
    with pytest.raises(WeightSyncError, match="no tensor 'lora' among the 6 published"):
        channel.fetch(0, {"norm": good, "lora": torch.zeros(1)})
    assert not good.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": torch.zeros(9)}, r"'norm' was float32 \[8\] .* is float32 \[9\] now"),
        ({"norm": torch.zeros(8).double()}, r"'norm' was float32 .* is float64"),
        ({"extra": torch.zeros(1)}, r"'extra' was absent"),
    ],
)
def test_a_layout_that_changed_is_refused(channel, change, message):
    channel.publish(0, weights(0))
    with pytest.raises(WeightSyncError, match=message):
        channel.publish(1, weights(1) | change)
    assert equal(channel.fetch(0), weights(0))


def test_a_file_that_is_still_being_laid_out_is_not_kept(shm):
    shm.path.write_bytes(bytes(4096))
    receiver = receiver_of(shm)
    with pytest.raises(WeightSyncError, match="still being laid out"):
        receiver.fetch(0)
    shm.publish(0, weights(0))
    assert equal(receiver.fetch(0), weights(0))


def test_a_local_channel_cannot_be_pickled():
    with pytest.raises(ConfigError, match="use ShmChannel"):
        pickle.dumps(LocalChannel())


def test_build_channel():
    assert isinstance(build_channel("inprocess"), LocalChannel)
    with contextlib.closing(build_channel("monarch")) as channel:
        assert isinstance(channel, ShmChannel)
    assert isinstance(build_channel("monarch", is_across_hosts=True), TcpChannel)
    with pytest.raises(ConfigError, match="'slurm'"):
        build_channel("slurm")


# faults


@pytest.mark.parametrize("fault", ["none", "skipped", "partial", "zeros", "old", "swapped"])
def test_every_fault_is_found_by_checksums(channel, fault):
    faulty = FaultyChannel(channel)
    held = empty_like(weights(0))
    for version in (0, 1):
        faulty.fault = fault if version == 1 else "none"
        faulty.publish(version, weights(version))
        manifest = WeightManifest(version, checksum(filled(weights(version))))
        faulty.fetch(version, held)
        if faulty.fault == "none":
            verify(manifest, version, checksum(filled(held)))
        else:
            with pytest.raises(WeightSyncError, match=r"version 1, .* different"):
                verify(manifest, version, checksum(filled(held)))


def test_a_slot_that_is_rewritten_during_the_copy_is_noticed(channel):
    """A receiver that lags two publications behind gets an error or whole weights, never a mixture."""
    size = 300_000
    channel.publish(0, {"w": torch.full((size,), 0.0)})
    permits, done, is_over = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def keep_publishing():
        version = 1
        while permits.acquire() and not is_over.is_set():
            channel.publish(version, {"w": torch.full((size,), float(version))})
            version += 1
            done.release()

    thread = threading.Thread(target=keep_publishing)
    thread.start()
    receiver, outcomes = receiver_of(channel), {"whole": 0, "refused": 0}
    got, version = torch.empty(size), 0
    try:
        for attempt in range(40):
            # In turn: nothing is published; one or two publications beside the fetch; three just before it.
            for _ in range(attempt % 4):
                permits.release()
            for _ in range({0: 0, 1: 0, 2: 0, 3: 6}[attempt % 4]):
                done.acquire()
            try:
                receiver.fetch(version, {"w": got})
                assert got.unique().tolist() == [version]
                outcomes["whole"] += 1
            except WeightSyncError as error:
                held = str(error).rsplit("[")[-1].rstrip("]").split(",")
                version = int(held[-1]) if held[-1].strip().isdigit() else version + 1
                outcomes["refused"] += 1
    finally:
        is_over.set()
        permits.release()
        thread.join()
    assert min(outcomes.values()) >= 5


# shared memory


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    code = "import os, pickle, signal, sys, torch\nfrom llamarl.weights import ShmChannel\n" + code
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600)


def test_another_process_fetches_and_its_end_removes_nothing(shm):
    shm.publish(3, weights(0))
    code = (
        "channel = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "print(float(channel.fetch(3)['up'].sum()))\n"
        "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_python(code, pickle.dumps(shm).hex())
    assert float(done.stdout) == pytest.approx(float(weights(0)["up"].sum()))
    assert shm.path.exists()
    assert equal(shm.fetch(3), weights(0))


def test_closing_removes_the_arena_and_only_the_owner_does(shm):
    copy = pickle.loads(pickle.dumps(shm))
    copy.publish(0, weights(0))  # the trainer's copy lays the arena out
    copy.close()
    assert shm.path.exists()
    assert shm.path.stat().st_mode & 0o777 == 0o600
    shm.close()
    shm.close()
    assert not shm.path.exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_a_killed_owner_leaves_no_arena():
    code = (
        "channel = ShmChannel(); channel.publish(0, {'w': torch.zeros(1000)})\n"
        "print(channel.path); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = Path(run_python(code).stdout.strip())
    assert path.parent == Path("/dev/shm")
    deadline = time.monotonic() + 120  # against hanging
    while path.exists():
        assert time.monotonic() < deadline, f"{path} leaked"
        time.sleep(0.05)


def test_an_owner_that_closes_is_quiet():
    done = run_python("channel = ShmChannel(); channel.publish(0, {'w': torch.zeros(9)}); channel.close()")
    assert (done.returncode, done.stderr) == (0, "")


def test_receivers_follow_a_restarted_trainer(shm):
    first, second, receiver = (pickle.loads(pickle.dumps(shm)) for _ in range(3))
    first.publish(0, weights(0))
    assert equal(receiver.fetch(0), weights(0))
    second.publish(1, weights(1))  # the trainer died and came back
    assert equal(receiver.fetch(1), weights(1))
    with pytest.raises(WeightSyncError, match=r"version 0 .* holds \[1\]"):
        receiver.fetch(0)
    third = pickle.loads(pickle.dumps(shm))
    third.publish(1, weights(2))  # and again: it resumed before version 1 and made another one
    assert equal(receiver.fetch(1), weights(2))


def test_too_little_shared_memory_is_an_error(shm):
    free = os.statvfs(shm.path.parent)
    too_much = torch.empty(1).expand(free.f_bavail * free.f_frsize // 4)  # one slot fits, two don't
    with pytest.raises(WeightSyncError, match=rf"{shm.path} needs \d+ MB: .*; enlarge {shm.path.parent}"):
        shm.publish(0, {"w": too_much})
    assert not shm.path.exists()
