"""The ranks of one trainer: who this process is among them, and the few things that they tell each other.

    rank = share * tp + part          share: samples are dealt out over `fsdp` shares, weights are cut up over them
                                      part:  each block's matrices are cut up over `tp` parts

Lone trainers have one rank, which everything here costs nothing. What ranks tell each other is numbers and JSON, never
pickles.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined] # public, though not listed

from llamarl.core.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Address:
    """The place where ranks find each other: where the first one listens."""

    host: str
    port: int


class Meeting:
    """The first rank's ear: a key/value store on a free port, at which all ranks meet.

    Args:
        host: this machine's name or address as the others know it.
        num_ranks: how many will come.
        seconds: how long to wait for each other.
    """

    def __init__(self, host: str, num_ranks: int, seconds: float) -> None:
        self.store = TCPStore(
            host, 0, num_ranks, is_master=True, timeout=timedelta(seconds=seconds), wait_for_workers=False
        )
        self.address = Address(host, self.store.port)


class Ranks:
    """One rank among `fsdp * tp`.

    Args:
        fsdp: shares of the samples.
        tp: parts of each block.
        rank: the number of this process.
        mesh: of the process group, with the dimensions `fsdp` and `tp`; None for one rank.
    """

    def __init__(self, fsdp: int = 1, tp: int = 1, rank: int = 0, mesh: "DeviceMesh | None" = None) -> None:
        self.fsdp, self.tp, self.rank = fsdp, tp, rank
        self.mesh = mesh

    @classmethod
    def join(
        cls,
        fsdp: int,
        tp: int,
        rank: int,
        address: Address,
        device: str = "cpu",
        seconds: float = 600.0,
        meeting: Meeting | None = None,
    ) -> "Ranks":
        """Meets the other ranks; returns when all are there.

        Args:
            fsdp: shares of the samples.
            tp: parts of each block.
            rank: the number of this process.
            address: where the first rank listens.
            device: `cpu` (gloo) or `cuda` (nccl for tensors, gloo for what is told).
            seconds: deadline of each exchange; a rank that misses it makes the others fail.
            meeting: the first rank's own.

        Raises:
            ConfigError: this process is a rank already.
        """
        from torch.distributed.device_mesh import init_device_mesh

        if dist.is_initialized():
            raise ConfigError("ranks: this process belongs to a group already; give each rank a process of its own")
        limit = timedelta(seconds=seconds)
        is_local = address.host in (LOOPBACK, "localhost", "::1")
        store = meeting.store if meeting else TCPStore(address.host, address.port, fsdp * tp, timeout=limit)
        with _gloo_interface(is_local):
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=fsdp * tp, timeout=limit)
            mesh = init_device_mesh(device, (fsdp, tp), mesh_dim_names=("fsdp", "tp"))
        return cls(fsdp, tp, rank, mesh)

    @property
    def count(self) -> int:
        """Ranks together."""
        return self.fsdp * self.tp

    @property
    def share(self) -> int:
        """Number of this rank's share of the samples."""
        return self.rank // self.tp

    @property
    def part(self) -> int:
        """Number of this rank's part of each block."""
        return self.rank % self.tp

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes files and publishes."""
        return self.rank == 0

    def close(self) -> None:
        """Leaves the group. Idempotent."""
        if self.mesh is not None:
            self.mesh = None
            dist.destroy_process_group()

    # All ranks call these, in the same order

    def agree(self, flag: bool) -> bool:
        """True where `flag` is True on all ranks."""
        if self.mesh is None:
            return flag
        told = torch.tensor([int(flag)])
        dist.all_reduce(told, dist.ReduceOp.MIN)
        return bool(told.item())

    def total(self, number: float) -> float:
        """The sum of everyone's number."""
        if self.mesh is None:
            return number
        told = torch.tensor([number], dtype=torch.float64)
        dist.all_reduce(told)
        return float(told.item())

    def tell(self, values: Any) -> list[Any]:
        """What every rank says, in their order: plain values, as JSON has them."""
        if self.mesh is None:
            return [values]
        text = torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)
        return [json.loads(bytes(told.tolist())) for told in self.exchange(text)]

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        """Everyone's tensor `[n, ...]`, in their order; of n alone each has its own, which may be 0. On the CPU."""
        if self.mesh is None:
            return [tensor]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(lengths, torch.tensor([len(tensor)]))
        longest = max(int(length) for length in lengths)
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        found = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(found, padded)
        return [told[: int(length)] for told, length in zip(found, lengths, strict=True)]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Sums each tensor over the shares, in place."""
        if self.mesh is not None:
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.mesh.get_group("fsdp"))

    def collect(self, tensor: Tensor, num_numbers: int) -> list[Tensor] | None:
        """Everyone's tensor on the first rank, flat and filled up to `num_numbers`; None on the others."""
        flat = tensor.new_zeros(num_numbers)
        flat[: tensor.numel()] = tensor.reshape(-1)
        found = [torch.empty_like(flat) for _ in range(self.count)] if self.is_first else None
        dist.gather(flat, found, dst=0)
        return found


ALONE = Ranks()
"""The one rank of a trainer that is one process."""


def is_broken_exchange(error: RuntimeError) -> bool:
    """True where an exchange failed since another rank is gone or silent; gloo says so in a plain `RuntimeError`."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


@contextlib.contextmanager
def _gloo_interface(is_local: bool) -> Iterator[None]:
    """Lets gloo listen on the loopback interface alone where all ranks are on this machine.

    By itself it takes the interface of the machine's name: open to others, and unreachable where that name is wrong.
    """
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if not is_local or "GLOO_SOCKET_IFNAME" in os.environ or not names:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = names[0]
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]
