"""Weights to the workers of a vLLM server, by broadcast in a gloo group of its own.

Rank 0 is this process, the workers come after it. Only torch is needed on both sides.
"""

import zlib
from collections.abc import Mapping
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # as torch documents them

from llamarl.core.errors import WeightSyncError

GROUP = "llamarl"
"""Prefix of the group's keys, as the plugin has it."""


class Broadcast:
    """The sending end. `join` on both sides, then `send`.

    Args:
        host, port: where this end listens.
        num_workers: of the server.
        seconds: for joining, and for each tensor.

    Raises:
        WeightSyncError: the workers did not come in time.
    """

    def __init__(self, host: str, port: int, num_workers: int, seconds: float) -> None:
        timeout = timedelta(seconds=seconds)
        try:
            store = TCPStore(host, port, num_workers + 1, True, timeout)
            group = dist.ProcessGroupGloo(PrefixStore(GROUP, store), 0, num_workers + 1, timeout)
        except RuntimeError as error:
            raise WeightSyncError(f"weights: the server's workers did not join at {host}:{port}: {error}") from error
        self._store, self._group = store, cast(dist.ProcessGroup, group)

    @torch.no_grad()
    def send(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        """Sends tensors in their order; returns the number of elements and CRC-32 of each.

        Raises:
            WeightSyncError: a tensor has no element, or a worker was lost on the way.
        """
        sent = {}
        for name, tensor in tensors.items():
            if not tensor.numel():
                raise WeightSyncError(f"weights: {name!r} has no element; that of nothing would prove nothing")
            data = tensor.detach().to("cpu").contiguous()
            try:
                self._group.broadcast(data, 0).wait()
            except RuntimeError as error:
                raise WeightSyncError(f"weights: a worker of the server was lost at {name!r}: {error}") from error
            sent[name] = (data.numel(), zlib.crc32(data.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
        return sent
