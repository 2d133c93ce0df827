"""Proof that weights which arrived are the weights which were sent.

A checksum reads every element of a small tensor and a spread sample of a large one, so its cost does not grow with the
model's width. It is a guard against faults (skipped, partial, zeroed, old or swapped weights), not against an attacker.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.records import WeightManifest
from llamarl.core.seeds import derive_seed
from llamarl.core.shards import Layout, Region, Shard, Sizes
from llamarl.functional.shards import local_part, shard_of

MAX_SAMPLES = 16384
"""Elements read per tensor. Larger tensors are sampled once in each of this many equal blocks, plus both ends."""

_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class PartialSum:
    """One rank's share of one tensor's checksum."""

    shard: Shard
    value: int
    """sum_i b_i * m_i (mod 2**64) over the samples i that lie in the shard."""


def checksum(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, int]:
    """One number in [0, 2**63) per tensor, from its shape and its sampled float32 bits at their positions.

    Let b_i be the float32 bits of sample i and m_i a fixed odd 64-bit number: the value is a hash of the shape and of
    sum_i b_i * m_i (mod 2**64). Any contiguous run longer than 2 * numel / MAX_SAMPLES holds a sample, so such a run
    cannot go missing unseen. Strides and devices don't matter; the dtype does: float32 values rounded to bfloat16
    differ, so both sides hash what they hold after the same cast.

    The samples lie at places of the whole tensor and the sum is one of integers, so the shards' sums add up to that of
    the whole, however it is split: `combine_checksums` of each rank's `partial_checksums`.

    Args:
        tensors: by name, whole; any strides, views into larger buffers included.
        dtype: takes the checksums that floating-point tensors have after a cast to this; None: of what they are.

    Raises:
        WeightSyncError: no tensor, one without elements, or one that this rank holds a part of.
    """
    return combine_checksums([partial_checksums(tensors, dtype=dtype)])


@torch.no_grad()
def partial_checksums(
    tensors: Mapping[str, Tensor], layout: Layout | None = None, dtype: torch.dtype | None = None
) -> dict[str, PartialSum]:
    """This rank's share of each tensor's checksum.

    Args:
        tensors: what this rank holds, by name.
        layout: the place of that in the whole tensors; by default DTensors say it, and plain tensors are whole.
        dtype: as for `checksum`.
    """
    sums: dict[torch.device, list[Tensor]] = {}
    kinds: dict[str, tuple[torch.device, Shard]] = {}
    for name, tensor in tensors.items():  # once: a mapping may make its tensors at each access
        shard, held = layout[name] if layout else shard_of(name, tensor), local_part(tensor)
        kinds[name] = held.device, shard
        sums.setdefault(held.device, []).append(_weighted_bits(held, shard, dtype))
    values = {device: iter(torch.stack(column).tolist()) for device, column in sums.items()}  # one sync per device
    return {name: PartialSum(shard, next(values[device])) for name, (device, shard) in kinds.items()}


def combine_checksums(parts: Sequence[Mapping[str, PartialSum]]) -> dict[str, int]:
    """The checksums of the whole tensors, from every rank's `partial_checksums`.

    A shard that several ranks hold counts once.

    Raises:
        WeightSyncError: no tensor, one without elements, shards that don't cover their tensor exactly once, or ranks
            that hold different values of one shard.
    """
    by_name: dict[str, list[tuple[int, PartialSum]]] = {}
    for rank, part in enumerate(parts):
        for name, partial in part.items():
            by_name.setdefault(name, []).append((rank, partial))
    if not by_name:
        raise WeightSyncError("weights: no tensor to take a checksum of; that of nothing would prove nothing")
    return {name: _combine(name, partials) for name, partials in by_name.items()}


def _combine(name: str, partials: Sequence[tuple[int, PartialSum]]) -> int:
    shape = partials[0][1].shard.global_shape
    if not math.prod(shape):
        raise WeightSyncError(f"weights: {name!r} of shape {list(shape)} has no element; its checksum proves nothing")
    values: dict[Region, tuple[int, int]] = {}
    for rank, partial in partials:
        region = partial.shard.region
        first, value = values.setdefault(region, (rank, partial.value))
        if value != partial.value:
            raise WeightSyncError(f"weights: ranks {first} and {rank} hold different values of {name}{region}")
    if not _covers(shape, frozenset(values)):
        held = ", ".join(sorted(str(region) for region in values)[:_NAMES_SHOWN])
        raise WeightSyncError(f"weights: the shards of {name!r} do not cover {list(shape)} exactly once: {held}")
    total = sum(value for _, value in values.values()) % 2**64
    return derive_seed(total - 2**64 if total >= 2**63 else total, *shape)


@lru_cache(maxsize=4096)
def _covers(shape: Sizes, regions: frozenset[Region]) -> bool:
    """Whether the regions hold each element of the shape exactly once."""
    filled = [region for region in regions if region.numel]
    count = sum(region.numel for region in filled)
    return count == math.prod(shape) and not any(a.intersect(b).numel for a, b in combinations(filled, 2))


def verify(manifest: WeightManifest, received_version: int, checksums: Mapping[str, int]) -> None:
    """Checks a receiver's weights against the sender's manifest.

    Args:
        manifest: what the trainer says it published.
        received_version: the version that the receiver believes it took.
        checksums: the receiver's own `checksum`, of the tensors it will serve from.

    Raises:
        WeightSyncError: names the version and the tensors that are missing, unexpected or different; or the manifest
            holds no checksum, so that nothing would be proved.
    """
    if received_version != manifest.version:
        raise WeightSyncError(f"weights: received version {received_version}, expected {manifest.version}")
    if not manifest.checksums:
        raise WeightSyncError(f"weights of version {manifest.version}: the manifest has no checksums to prove them by")
    if faults := _compare(manifest.checksums, checksums):
        raise WeightSyncError(f"weights of version {manifest.version}, {len(manifest.checksums)} tensors: {faults}")


def verify_base(manifest: WeightManifest, checksums: Mapping[str, int]) -> None:
    """Checks that a receiver of adapters holds the frozen weights that they were trained beside.

    Args:
        manifest: what the trainer says it published.
        checksums: of the receiver's frozen weights as they were loaded, before any rounding.

    Raises:
        WeightSyncError: names the frozen tensors that are missing, unexpected or different.
    """
    if faults := _compare(manifest.base, checksums):
        raise WeightSyncError(
            f"adapters of version {manifest.version} were trained beside another base than this generator loaded, "
            f"{len(manifest.base)} tensors: {faults}; give all executors the same unchanged checkpoint"
        )


def digest(checksums: Mapping[str, int]) -> int:
    """One number in [0, 2**63) for many tensors, whatever their order."""
    return derive_seed("tensors", *(part for name in sorted(checksums) for part in (name, checksums[name])))


def _compare(expected: Mapping[str, int], checksums: Mapping[str, int]) -> str:
    """Says which tensors are missing, unexpected or different; empty where all agree."""
    faults = {
        "missing": sorted(expected.keys() - checksums.keys()),
        "unexpected": sorted(checksums.keys() - expected.keys()),
        "different": sorted(name for name in expected.keys() & checksums.keys() if expected[name] != checksums[name]),
    }
    return "; ".join(f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _weighted_bits(held: Tensor, shard: Shard, dtype: torch.dtype | None = None) -> Tensor:
    """sum_i b_i * m_i as an int64 scalar on the tensor's device, over the samples in the shard."""
    places, multipliers = _samples(shard.global_shape, shard.region, held.device)
    samples = held.reshape(-1) if places is None else held.take(places)  # `take` reads views without copying them
    if dtype is not None and samples.is_floating_point():
        samples = samples.to(dtype)
    bits = samples.to(torch.float32).contiguous().view(torch.int32).to(torch.int64)
    return (bits * multipliers).sum()


@lru_cache(maxsize=256)
def _samples(shape: Sizes, region: Region, device: torch.device) -> tuple[Tensor | None, Tensor]:
    """Flat positions in the region of the samples that lie in it (None: each element, in order), and their numbers."""
    numel = math.prod(shape)
    is_small = numel <= MAX_SAMPLES
    places = torch.arange(numel) if is_small else _positions(numel)
    multipliers = _multipliers()[: places.numel()]
    if region.shape == shape:
        return None if is_small else places.to(device), multipliers.to(device)
    index = torch.unravel_index(places, shape)
    is_inside = torch.ones_like(places, dtype=torch.bool)
    local = torch.zeros_like(places)
    for along, begin, size in zip(index, region.offset, region.shape, strict=True):
        is_inside &= (along >= begin) & (along < begin + size)
        local = local * size + (along - begin)
    return local[is_inside].to(device), multipliers[is_inside].to(device)


def _positions(numel: int) -> Tensor:
    """Flat positions [MAX_SAMPLES + 2]: both ends, and an irregular place in each block: no column is skipped."""
    block = torch.arange(MAX_SAMPLES, dtype=torch.int64)
    start = block * numel // MAX_SAMPLES
    length = (block + 1) * numel // MAX_SAMPLES - start
    places = start + (_multipliers()[:MAX_SAMPLES] >> 32).remainder(length)
    return torch.cat([torch.tensor([0, numel - 1]), places])


@lru_cache(maxsize=1)
def _multipliers() -> Tensor:
    """Fixed odd 64-bit numbers [MAX_SAMPLES + 2], well mixed."""
    x = torch.arange(1, MAX_SAMPLES + 3, dtype=torch.int64) * -7046029254386353131
    x = (x ^ (x >> 29)) * -4658895280553007687  # int64 products wrap
    x = (x ^ (x >> 32)) * -7723592293110705685
    return (x ^ (x >> 30)) | 1
