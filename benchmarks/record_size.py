"""What a group's tokens weigh: bytes a response token, in memory and pickled, beside tuples of Python's numbers.

    python -m benchmarks.record_size

A group of 8 completions of one prompt of 100 tokens, whose ids all 8 share; ids up to 128,000, log-probs as a model
computes them, versions that change once on the way. `arrays` are `core.records.Trajectory`, `tuples` the same fields as
tuples with one version a token. No clock: every run gives the same numbers.
"""

import math
import pickle
import random
import tracemalloc
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.common import Benchmark
from llamarl.core.records import Trajectory, join_turns, pack_ids

GROUP_SIZE, PROMPT_LENGTH, VOCABULARY = 8, 100, 128_000
LENGTHS = (64, 512, 4096)


@dataclass(frozen=True, slots=True)
class Tuples:
    """A turn whose numbers are Python's."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish_reason: str = "stop"


def draw(length: int, rng: random.Random) -> tuple[list[int], list[float], list[int]]:
    """Ids, log-probs and versions of a turn."""
    ids = [rng.randrange(VOCABULARY) for _ in range(length)]
    logprobs = array("f", [math.log(1.0 - rng.random()) for _ in range(length)]).tolist()
    return ids, logprobs, [1000] * (length // 2) + [1001] * (length - length // 2)


def build_tuples(length: int, rng: random.Random) -> list[Tuples]:
    """A group of one turn each."""
    prompt = tuple(draw(PROMPT_LENGTH, rng)[0])
    return [Tuples(prompt, *map(tuple, draw(length, rng))) for _ in range(GROUP_SIZE)]  # type: ignore[arg-type]


def build_arrays(length: int, rng: random.Random) -> list[Trajectory]:
    """The same."""
    prompt = pack_ids(draw(PROMPT_LENGTH, rng)[0])
    return [Trajectory.sampled(prompt, *draw(length, rng)) for _ in range(GROUP_SIZE)]


def build_dialogues(length: int, rng: random.Random) -> list[Trajectory]:
    """A group of four turns each, with 16 tokens given between two of them."""
    prompt, group = pack_ids(draw(PROMPT_LENGTH, rng)[0]), []
    for _ in range(GROUP_SIZE):
        turns, read = [], prompt
        for _ in range(4):
            ids, logprobs, versions = draw(length // 4, rng)
            turns.append(Trajectory.sampled(read, ids, logprobs, versions))
            read = read + pack_ids([*ids, *draw(16, rng)[0]])
        group.append(join_turns(turns))
    return group


def weigh(build: Callable[[int, random.Random], Any], length: int) -> tuple[float, float]:
    """Bytes a response token, in memory and pickled."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    group = build(length, random.Random(0))
    in_memory = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    tokens = GROUP_SIZE * length
    return in_memory / tokens, len(pickle.dumps(group, protocol=pickle.HIGHEST_PROTOCOL)) / tokens


def main() -> None:
    benchmark = Benchmark("record_size", __doc__, repeats=1, quick_repeats=1, max_load=math.inf)  # no clock
    benchmark.start()
    kinds = {"tuples": build_tuples, "arrays": build_arrays, "arrays, 4 turns": build_dialogues}
    rows, headlines = [], {}
    for length in LENGTHS:
        for kind, build in kinds.items():
            weigh(build, length)  # whatever Python makes once is not the record's
            in_memory, pickled = (round(value, 2) for value in weigh(build, length))
            rows.append({"tokens": length, "record": kind, "bytes in memory": in_memory, "pickled": pickled})
            headlines |= {f"{length} {kind}, memory": in_memory, f"{length} {kind}, pickled": pickled}
    benchmark.finish(rows, headlines)


if __name__ == "__main__":
    main()
