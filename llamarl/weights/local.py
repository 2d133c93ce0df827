"""Weights between threads of one process."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import NoReturn

import torch
from torch import Tensor

from llamarl.core.errors import ConfigError, WeightSyncError
from llamarl.core.shards import Sharding
from llamarl.weights.layout import cast_layout, lone_sharding
from llamarl.weights.slots import NUM_SLOTS, Slots


class LocalChannel:
    """Two private copies of the weights, on the device where the trainer's tensors are.

    Args:
        dtype: in which it holds floating-point tensors; None: theirs.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self._slots: Slots | None = None

    def open(self, host: str) -> "LocalChannel":
        """Returns the channel itself: it is ready, and `host` reads it without a network."""
        return self

    def publish(self, version: int, tensors: Mapping[str, Tensor], sharding: Sharding | None = None) -> None:
        """Copies `tensors` onto the channel as `version`. One publisher at a time.

        Raises:
            WeightSyncError: names, shapes or dtypes differ from the first publication.
            ConfigError: they are one rank's of several, which have no memory in common.
        """
        if sharding is not None and len(sharding.layouts) > 1:
            raise ConfigError(
                f"weights: a LocalChannel cannot take them from {len(sharding.layouts)} ranks; use ShmChannel"
            )
        layout = lone_sharding(tensors).own
        if self._slots is None:
            dtypes = {name: getattr(torch, shard.dtype) for name, shard in cast_layout(layout, self.dtype).items()}
            copies = [
                {name: torch.empty_like(tensor, dtype=dtypes[name]).detach() for name, tensor in tensors.items()}
                for _ in range(NUM_SLOTS)
            ]
            self._slots = Slots(torch.zeros(1, NUM_SLOTS, 2, dtype=torch.int64), copies, dtype=self.dtype)
        self._slots.write(version, tensors, layout)

    def fetch(self, version: int, into: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """Copies `version` into the tensors of `into` and returns it; without `into`, into new tensors.

        Raises:
            WeightSyncError: `version` is not on the channel or was overwritten meanwhile, or `into` does not fit.
        """
        if self._slots is None:
            raise WeightSyncError(f"weights of version {version} are not on the channel; nothing was published")
        return self._slots.read(version, into)

    def reading(self, version: int) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Lends the channel's own copy of `version` inside the block: no memory is taken.

        Raises:
            WeightSyncError: `version` is not on the channel, or was overwritten before the block ended.
        """
        if self._slots is None:
            raise WeightSyncError(f"weights of version {version} are not on the channel; nothing was published")
        return self._slots.reading(version)

    async def prepare(self, version: int) -> None:
        """Does nothing: what was published is near already."""

    def close(self) -> None:
        """Frees the copies. Idempotent."""
        self._slots = None

    def __reduce__(self) -> NoReturn:
        raise ConfigError("weights: a LocalChannel cannot leave its process; use ShmChannel between processes")
