"""Weight channels against a plain memory copy of the same tensors, in GB/s of weights moved.

    python benchmarks/weight_sync.py [--megabytes 200] [--threads 1] [--repeats 15]

Each round runs all ways, in rotating order, so that noise of the machine hits all alike; medians and the fastest round
are reported. `shm` is fetched by a second process. Writes benchmarks/results/weight_sync.json.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import torch

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "weight_sync.json")
    arguments = parser.parse_args()
    rounds = measure(arguments.megabytes, arguments.threads, arguments.repeats)
    gigabytes = sum(t.numel() * 4 for t in make_weights(arguments.megabytes).values()) / 1e9
    memcpy = statistics.median(rounds["memcpy"])
    ways = {
        way: {
            "median_gb_per_second": round(gigabytes / statistics.median(seconds), 2),
            "best_gb_per_second": round(gigabytes / min(seconds), 2),
            "median_of_memcpy": round(memcpy / statistics.median(seconds), 2),
        }
        for way, seconds in rounds.items()
    }
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": platform.machine(), "torch": torch.__version__, "python": platform.python_version()},
        "megabytes": round(gigabytes * 1000),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "ways": ways,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for way, numbers in ways.items():
        print(f"{way:14} {numbers['median_gb_per_second']:6.2f} GB/s  ({numbers['median_of_memcpy']:.2f} of memcpy)")


if __name__ == "__main__":
    main()
