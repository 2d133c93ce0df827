"""Proof that weights which arrived are the weights which were sent.

A checksum reads every element of a small tensor and a spread sample of a large one, so its cost does not grow with the
model's width. It is a guard against faults (skipped, partial, zeroed, old or swapped weights), not against an attacker.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.records import WeightManifest
from llamarl.core.seeds import derive_seed

MAX_SAMPLES = 16384
"""Elements read per tensor. Larger tensors are sampled once in each of this many equal blocks, plus both ends."""

_NAMES_SHOWN = 5


@torch.no_grad()
def checksum(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """One number in [0, 2**63) per tensor, from its shape and its sampled float32 bits at their positions.

    Let b_i be the float32 bits of sample i and m_i a fixed odd 64-bit number: the value is a hash of the shape and of
    sum_i b_i * m_i (mod 2**64). Any contiguous run longer than 2 * numel / MAX_SAMPLES holds a sample, so such a run
    cannot go missing unseen. Strides and devices don't matter; the dtype does: float32 values rounded to bfloat16
    differ, so both sides hash what they hold after the same cast.

    Args:
        tensors: by name; any strides, views into larger buffers included.
    """
    sums: dict[torch.device, list[Tensor]] = {}
    kinds: dict[str, tuple[torch.device, torch.Size]] = {}
    for name, tensor in tensors.items():  # once: a mapping may make its tensors at each access
        kinds[name] = tensor.device, tensor.shape
        sums.setdefault(tensor.device, []).append(_weighted_bits(tensor))
    values = {device: iter(torch.stack(column).tolist()) for device, column in sums.items()}  # one sync per device
    return {name: derive_seed(next(values[device]), *shape) for name, (device, shape) in kinds.items()}


def verify(manifest: WeightManifest, received_version: int, checksums: Mapping[str, int]) -> None:
    """Checks a receiver's weights against the sender's manifest.

    Args:
        manifest: what the trainer says it published.
        received_version: the version that the receiver believes it took.
        checksums: the receiver's own `checksum`, of the tensors it will serve from.

    Raises:
        WeightSyncError: names the version and the tensors that are missing, unexpected or different.
    """
    if received_version != manifest.version:
        raise WeightSyncError(f"weights: received version {received_version}, expected {manifest.version}")
    expected = manifest.checksums
    faults = {
        "missing": sorted(expected.keys() - checksums.keys()),
        "unexpected": sorted(checksums.keys() - expected.keys()),
        "different": sorted(name for name in expected.keys() & checksums.keys() if expected[name] != checksums[name]),
    }
    found = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if found:
        raise WeightSyncError(f"weights of version {manifest.version}, {len(expected)} tensors: " + "; ".join(found))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _weighted_bits(tensor: Tensor) -> Tensor:
    """sum_i b_i * m_i as an int64 scalar on the tensor's device."""
    tensor = tensor.detach()
    if tensor.numel() <= MAX_SAMPLES:
        samples = tensor.reshape(-1)
    else:
        samples = tensor.take(_positions(tensor.numel(), tensor.device))  # `take` reads views without copying them
    bits = samples.to(torch.float32).contiguous().view(torch.int32).to(torch.int64)
    return (bits * _multipliers(tensor.device)[: bits.numel()]).sum()


@lru_cache(maxsize=256)
def _positions(numel: int, device: torch.device) -> Tensor:
    """Flat positions [MAX_SAMPLES + 2]: both ends, and an irregular place in each block: no column is skipped."""
    block = torch.arange(MAX_SAMPLES, dtype=torch.int64)
    start = block * numel // MAX_SAMPLES
    length = (block + 1) * numel // MAX_SAMPLES - start
    places = start + (_multipliers(torch.device("cpu"))[:MAX_SAMPLES] >> 32).remainder(length)
    return torch.cat([torch.tensor([0, numel - 1]), places]).to(device)


@lru_cache(maxsize=8)
def _multipliers(device: torch.device) -> Tensor:
    """Fixed odd 64-bit numbers [MAX_SAMPLES + 2], well mixed."""
    x = torch.arange(1, MAX_SAMPLES + 3, dtype=torch.int64) * -7046029254386353131
    x = (x ^ (x >> 29)) * -4658895280553007687  # int64 products wrap
    x = (x ^ (x >> 32)) * -7723592293110705685
    return ((x ^ (x >> 30)) | 1).to(device)
