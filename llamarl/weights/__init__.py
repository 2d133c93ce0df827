"""The data plane of weights: from one trainer to its generators, past the controller.

    channel = build_channel("monarch")                # shared memory; "inprocess": private memory
    channel.publish(version, tensors)                 # trainer: copies them onto the channel
    with channel.reading(version) as tensors: ...     # receiver: reads them in place, or raises WeightSyncError
    channel.fetch(version, into=mine)                 # or copies them off
    verify(manifest, version, checksum(mine))         # receiver: proves them (`functional.checksum`)

A channel holds the two newest versions, so a receiver may lag one publication behind, and nothing in it waits.
"""

from llamarl.core.errors import ConfigError
from llamarl.weights.local import LocalChannel
from llamarl.weights.shm import ShmChannel


def build_channel(engine: str) -> LocalChannel | ShmChannel:
    """The channel that suits executors of `engine` on one host.

    Raises:
        ConfigError: no such engine.
    """
    if engine == "inprocess":
        return LocalChannel()
    if engine == "monarch":
        return ShmChannel()
    raise ConfigError(f"engine: no weight channel for {engine!r}; choose one of: inprocess, monarch")


__all__ = ["LocalChannel", "ShmChannel", "build_channel"]
