"""Who sends what to whom, so that weights in one layout arrive in another.

For each tensor of each destination, the borders of the sources' shards cut the destination's shard into cells. Within a
cell the same sources hold every element, so that no element is sent twice however replicas overlap, and one that nobody
holds shows.

A cell that one source holds is sent by it. One that several hold is shared out by rows, such that the sources that have
the least to send are brought up to one level.

Every rank computes the same plan from the same layouts, so nobody has to send one.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from llamarl.core.errors import WeightSyncError
from llamarl.core.shards import Region, Shard
from llamarl.weights.layout import Layouts, whole_layout

_SMALL = 4096
"""Bytes under which a cell is not shared out: a message more costs more than a balance of so little gains."""


@dataclass(frozen=True, slots=True)
class Move:
    """One region of one tensor on its way from one rank to another."""

    name: str
    source: int
    destination: int
    region: Region
    dtype: str
    """That of the source: receivers cast."""
    num_bytes: int


@dataclass(frozen=True)
class Plan:
    """All moves of one synchronisation, in an order that both sides share: by tensor, destination, place."""

    moves: tuple[Move, ...]

    @cached_property
    def bytes_by_source(self) -> dict[int, int]:
        """What each source sends; sources that send nothing are left out."""
        loads: dict[int, int] = {}
        for move in self.moves:
            loads[move.source] = loads.get(move.source, 0) + move.num_bytes
        return loads

    def sent_by(self, rank: int) -> list[Move]:
        """The moves that begin at a source."""
        return [move for move in self.moves if move.source == rank]

    def received_by(self, rank: int) -> list[Move]:
        """The moves that end at a destination."""
        return [move for move in self.moves if move.destination == rank]


def build_plan(sources: Layouts, destinations: Layouts) -> Plan:
    """Plans the moves that fill every element of every destination exactly once.

    Destinations may ask for some of the parameters only, and in another dtype.

    Raises:
        WeightSyncError: no source holds a tensor or an element of it that a destination wants, or shapes differ.
    """
    offered = whole_layout(sources)
    loads = dict.fromkeys(sources, 0)
    moves: list[Move] = []
    replicated: list[tuple[str, int, Region, list[int]]] = []
    cut = _Cutter()
    held = {name: {rank: layout[name].region for rank, layout in sources.items() if name in layout} for name in offered}
    for destination, layout in destinations.items():
        for name, wanted in layout.items():
            _check(name, wanted, offered, destination)
            for region, holders in cut(wanted.region, held[name]):
                if not holders:
                    raise WeightSyncError(
                        f"weights: no source holds {name}{region}, which destination {destination} needs"
                    )
                if len(holders) > 1:
                    replicated.append((name, destination, region, holders))
                else:
                    moves.append(_move(name, holders[0], destination, region, offered))
                    loads[holders[0]] += moves[-1].num_bytes
    # What has no choice is counted first, and large cells before small ones: the small ones level what is left.
    for name, destination, region, holders in sorted(replicated, key=lambda cell: -cell[2].numel):
        for source, part in _share_out(region, holders, loads, _itemsize(offered[name])):
            moves.append(_move(name, source, destination, part, offered))
            loads[source] += moves[-1].num_bytes
    order = {name: index for index, name in enumerate(offered)}
    return Plan(tuple(sorted(moves, key=lambda m: (order[m.name], m.destination, m.region.offset))))


def _check(name: str, wanted: Shard, offered: Mapping[str, Shard], destination: int) -> None:
    if name not in offered:
        raise WeightSyncError(f"weights: no tensor {name!r} among the {len(offered)} published")
    if wanted.global_shape != offered[name].global_shape:
        raise WeightSyncError(
            f"weights: {name!r} is {offered[name]} at its sources and {wanted} on destination {destination}"
        )


class _Cutter:
    """Cuts regions into cells. A model's layers are cut alike, so what was cut before is remembered."""

    def __init__(self) -> None:
        self._known: dict[tuple[Region, tuple[tuple[int, Region], ...]], list[tuple[Region, list[int]]]] = {}

    def __call__(self, wanted: Region, held: Mapping[int, Region]) -> list[tuple[Region, list[int]]]:
        """Cuts a region at the borders of what each rank holds: (cell, ranks that hold all of it)."""
        key = wanted, tuple(held.items())
        if key not in self._known:
            self._known[key] = list(_cells(wanted, held)) if wanted.numel else []
        return self._known[key]


def _cells(wanted: Region, held: Mapping[int, Region]) -> Iterator[tuple[Region, list[int]]]:
    parts = {rank: region.intersect(wanted) for rank, region in held.items()}
    parts = {rank: region for rank, region in parts.items() if region.numel}
    borders = [_borders(dim, [wanted, *parts.values()]) for dim in range(len(wanted.shape))]
    holders: dict[tuple[int, ...], list[int]] = {}
    for rank, region in parts.items():
        spans = (
            range(bisect_left(cuts, a), bisect_left(cuts, b))
            for cuts, a, b in zip(borders, region.offset, region.end, strict=True)
        )
        for index in itertools.product(*spans):
            holders.setdefault(index, []).append(rank)
    for index in itertools.product(*(range(len(cuts) - 1) for cuts in borders)):
        start = tuple(cuts[i] for cuts, i in zip(borders, index, strict=True))
        size = tuple(cuts[i + 1] - cuts[i] for cuts, i in zip(borders, index, strict=True))
        yield Region(start, size), holders.get(index, [])


def _borders(dim: int, regions: Sequence[Region]) -> list[int]:
    """Where regions begin and end along a dimension, ascending."""
    return sorted({region.offset[dim] for region in regions} | {region.end[dim] for region in regions})


def _share_out(
    region: Region, holders: Sequence[int], loads: Mapping[int, int], itemsize: int
) -> Iterator[tuple[int, Region]]:
    """Shares a cell out among its holders by rows, such that the least loaded ones come to one level of bytes sent."""
    ranks = sorted(holders, key=lambda rank: loads[rank])
    total = region.numel * itemsize
    if not region.shape or total < _SMALL:
        yield ranks[0], region
        return
    level = min((total + sum(loads[rank] for rank in ranks[:n])) / n for n in range(1, len(ranks) + 1))
    row_bytes = total // region.shape[0]
    filled, begin = 0.0, 0
    for rank in ranks:
        filled += max(0.0, level - loads[rank])
        end = round(filled / row_bytes)
        if end > begin:
            first = region.offset[0] + begin
            yield rank, Region((first, *region.offset[1:]), (end - begin, *region.shape[1:]))
        begin = end


def _move(name: str, source: int, destination: int, region: Region, offered: Mapping[str, Shard]) -> Move:
    return Move(name, source, destination, region, offered[name].dtype, region.numel * _itemsize(offered[name]))


def _itemsize(shard: Shard) -> int:
    size: int = getattr(torch, shard.dtype).itemsize
    return size
