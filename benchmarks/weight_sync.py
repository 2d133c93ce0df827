"""Weight channels against a plain memory copy of the same tensors, in GB/s of weights moved.

    python -m benchmarks.weight_sync [--megabytes 200] [--threads 1] [--repeats 15]

Each round runs all ways, in rotating order, so that noise of the machine hits all alike; medians and the fastest round
are reported. `shm` is fetched by a second process; `shm both` is a publish and its fetch, the bytes counted once.
"""

import multiprocessing
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


def receive(channel: ShmChannel, pipe: Connection, megabytes: int, threads: int) -> None:
    """The second process: fetches each version it is told, answers with the seconds it took and its checksums."""
    torch.set_num_threads(threads)
    mine = {name: torch.zeros_like(tensor) for name, tensor in make_weights(megabytes).items()}
    while (version := pipe.recv()) is not None:
        seconds = seconds_of(lambda: channel.fetch(version, mine))
        pipe.send((seconds, checksum(mine)))


def measure(megabytes: int, threads: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per round of each way."""
    torch.set_num_threads(threads)
    weights = make_weights(megabytes)
    mine = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    local, shm = LocalChannel(), ShmChannel()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=receive, args=(shm, there, megabytes, threads))
    process.start()

    def fetch_there(version: int) -> float:
        here.send(version)
        seconds, received = here.recv()
        verify(WeightManifest(version, checksum(weights)), version, received)
        return float(seconds)

    def copy() -> None:
        torch._foreach_copy_(list(mine.values()), list(weights.values()))

    steps: list[dict[str, Callable[[int], float]]] = [
        {"memcpy": lambda version: seconds_of(copy)},
        {
            "local publish": lambda version: seconds_of(lambda: local.publish(version, weights)),
            "local fetch": lambda version: seconds_of(lambda: local.fetch(version, mine)),
        },
        {"shm publish": lambda version: seconds_of(lambda: shm.publish(version, weights)), "shm fetch": fetch_there},
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
    benchmark = Benchmark("weight_sync", __doc__, repeats=15)
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
    benchmark.finish(rows, headlines, [f"{gigabytes * 1000:.0f} MB of weights, {options.threads} thread(s)"])


if __name__ == "__main__":
    main()
