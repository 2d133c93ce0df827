"""The data plane of weights: from one trainer to its generators, past the controller.

    channel = build_channel("monarch")                # shared memory; "inprocess": private memory; several hosts: TCP
    receivers = channel.open(host)                    # trainer: what its receivers are given
    channel.publish(version, tensors)                 # trainer: copies them onto the channel
    with receivers.reading(version) as tensors: ...   # receiver: reads them in place, or raises WeightSyncError
    receivers.fetch(version, into=mine)               # or copies them off
    verify(manifest, version, checksum(mine))         # receiver: proves them (`functional.checksum`)

A channel holds the two newest versions, so a receiver may lag one publication behind, and nothing in it waits.
"""

import torch

from llamarl.core.errors import ConfigError
from llamarl.weights.local import LocalChannel
from llamarl.weights.shm import ShmChannel
from llamarl.weights.tcp import TcpChannel


def build_channel(
    engine: str,
    *,
    is_across_hosts: bool = False,
    dtype: torch.dtype | None = None,
    sends_deltas: bool = False,
) -> LocalChannel | ShmChannel | TcpChannel:
    """The channel that suits executors of `engine`.

    Args:
        engine: threads need no shared memory, processes do.
        is_across_hosts: executors may live on several hosts, which share none.
        dtype: in which floating-point weights travel; None: theirs.
        sends_deltas: sends what changed alone, where that is less; between hosts.

    Raises:
        ConfigError: no such engine.
    """
    if engine not in ("inprocess", "monarch", "ray"):
        raise ConfigError(f"engine: no weight channel for {engine!r}; choose one of: inprocess, monarch, ray")
    if engine == "inprocess":
        return LocalChannel(dtype)
    return TcpChannel(dtype, sends_deltas) if is_across_hosts else ShmChannel(dtype=dtype)


__all__ = ["LocalChannel", "ShmChannel", "TcpChannel", "build_channel"]
