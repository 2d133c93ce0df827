"""Ways of weights against a plain memory copy and a bare gloo broadcast of the same tensors, in GB/s of weights moved.

    python -m benchmarks.weight_sync [--megabytes 200] [--threads 1] [--repeats 15]

Each round runs all ways, in rotating order, so that noise of the machine hits all alike; medians and the fastest round
are reported, and ratios within a round. A second process receives: `shm` is fetched by it; `shm both` is a publish and
its fetch, the bytes counted once; `gloo broadcast` and `collective` (a planned exchange, `weights.collective`) end when
it has everything.

`decoding alone` and `decoding beside` are the second process multiplying eight rows with all its weights, as decoding
does, while the first does nothing or publishes into the arena without a pause: the most that a sync can take from a
generator which goes on meanwhile.
"""

import math
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.common import Benchmark, paired_ratio
from llamarl.core.records import WeightManifest
from llamarl.functional.checksum import checksum, verify
from llamarl.weights import LocalChannel, ShmChannel
from llamarl.weights.collective import Link

WARM_UP = 3
"""Rounds that are not counted: the first two allocate the slots."""

Weights = dict[str, torch.Tensor]


def make_weights(megabytes: int) -> Weights:
    """Float32 tensors of a transformer's proportions: square, wide and tiny ones."""
    torch.manual_seed(0)
    weights: Weights = {}
    while sum(t.numel() * 4 for t in weights.values()) < megabytes * 1e6:
        layer = len(weights)
        weights |= {f"{layer}.attention": torch.randn(1024, 1024), f"{layer}.mlp": torch.randn(4096, 1024)}
        weights |= {f"{layer}.norm": torch.randn(1024)}
    return weights


def seconds_of(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Receiver:
    """The second process: does what it is told, and answers with the seconds it took and the checksums of what it has.

    Args:
        channel: to fetch from.
        address: where the first process waits for the groups.
        weights: of the shapes and dtypes that will arrive.
    """

    def __init__(self, channel: ShmChannel, address: str, weights: Weights) -> None:
        self._channel, self._mine = channel, {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        self._link = Link.join(address, "destination", 0, 1, 1, self._mine)
        self._rows = {name: torch.randn(8, t.shape[1]) for name, t in weights.items() if t.ndim == 2}

    def serve(self, pipe: Connection) -> None:
        """Answers until it is told nothing."""
        while (told := pipe.recv()) is not None:
            way, version = told
            started = time.perf_counter()
            self._act(way, version)
            pipe.send((time.perf_counter() - started, checksum(self._mine)))

    def _act(self, way: str, version: int) -> None:
        if way == "fetch":
            self._channel.fetch(version, self._mine)
        elif way == "broadcast":
            broadcast(self._link.group, self._mine)
        elif way == "collective":
            self._link.receive(version, self._mine)
        else:
            for name, rows in self._rows.items():
                rows @ self._mine[name].T


def broadcast(group: Any, weights: Weights) -> None:
    """What a training script would write."""
    for tensor in weights.values():
        group.broadcast(tensor, 0).wait()


def receive(channel: ShmChannel, address: str, pipe: Connection, megabytes: int, threads: int) -> None:
    """The second process."""
    torch.set_num_threads(threads)
    Receiver(channel, address, make_weights(megabytes)).serve(pipe)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def measure(megabytes: int, threads: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per round of each way."""
    torch.set_num_threads(threads)
    weights = make_weights(megabytes)
    mine = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    local, shm, address = LocalChannel(), ShmChannel(), free_address()
    here, there = multiprocessing.Pipe()
    arguments = (shm, address, there, megabytes, threads)
    process = multiprocessing.get_context("spawn").Process(target=receive, args=arguments)
    process.start()
    link = Link.join(address, "source", 0, 1, 1, weights)

    def answer(version: int) -> float:
        seconds, received = here.recv()
        verify(WeightManifest(version, checksum(weights)), version, received)
        return float(seconds)

    def fetch_there(version: int) -> float:
        here.send(("fetch", version))
        return answer(version)

    def send(way: str, action: Callable[[], None], version: int) -> float:
        """Seconds until all of it is there."""
        here.send((way, version))
        action()
        return answer(version)

    def decode(is_beside: bool, version: int) -> float:
        here.send(("decode", version))
        while is_beside and not here.poll():
            shm.publish(version, weights)
        return answer(version)

    def copy() -> None:
        torch._foreach_copy_(list(mine.values()), list(weights.values()))

    steps: list[dict[str, Callable[[int], float]]] = [
        {"memcpy": lambda version: seconds_of(copy)},
        {
            "local publish": lambda version: seconds_of(lambda: local.publish(version, weights)),
            "local fetch": lambda version: seconds_of(lambda: local.fetch(version, mine)),
        },
        {"shm publish": lambda version: seconds_of(lambda: shm.publish(version, weights)), "shm fetch": fetch_there},
        {"gloo broadcast": lambda version: send("broadcast", lambda: broadcast(link.group, weights), version)},
        {"collective": lambda version: send("collective", lambda: link.send(version, weights), version)},
        {
            "decoding alone": lambda version: decode(False, version),
            "decoding beside": lambda version: decode(True, version),
        },
        {"checksum": lambda version: seconds_of(lambda: checksum(weights))},
    ]
    rounds: dict[str, list[float]] = {}
    try:
        for version in range(WARM_UP + repeats):
            turn = version % len(steps)
            for step in steps[turn:] + steps[:turn]:  # nobody is always first, or always after the same other
                for way, action in step.items():
                    rounds.setdefault(way, []).append(action(version))
    finally:
        here.send(None)
        process.join(10)
        shm.close()
    return {way: seconds[WARM_UP:] for way, seconds in rounds.items()}


def main() -> None:
    # What is held against bounds are ratios within a round, which others' work on this machine hardly moves.
    benchmark = Benchmark("weight_sync", __doc__, repeats=15, max_load=math.inf)
    benchmark.parser.add_argument("--megabytes", type=int, default=200)
    benchmark.parser.add_argument("--threads", type=int, default=1)
    options = benchmark.start()
    rounds = measure(options.megabytes, options.threads, options.repeats)
    rounds["shm both"] = [sum(pair) for pair in zip(rounds["shm publish"], rounds["shm fetch"], strict=True)]
    gigabytes = sum(t.numel() * 4 for t in make_weights(options.megabytes).values()) / 1e9
    rows: list[dict[str, Any]] = [
        {
            "way": way,
            "median GB/s": round(gigabytes / statistics.median(seconds), 2),
            "best GB/s": round(gigabytes / min(seconds), 2),
            "of memcpy": paired_ratio(rounds["memcpy"], seconds)["median"],
        }
        for way, seconds in rounds.items()
    ]
    headlines = {f"{row['way']} / memcpy": row["of memcpy"] for row in rows}
    headlines["collective / gloo broadcast"] = paired_ratio(rounds["gloo broadcast"], rounds["collective"])["median"]
    beside = paired_ratio(rounds["decoding alone"], rounds["decoding beside"])["median"]
    headlines["decoding beside a sync / alone"] = beside
    notes = [
        f"{gigabytes * 1000:.0f} MB of weights, {options.threads} thread(s)",
        "GB/s are of a machine on which others worked too, where the load says so; ratios are within rounds",
    ]
    benchmark.finish(rows, headlines, notes)


if __name__ == "__main__":
    main()
