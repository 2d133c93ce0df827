"""Trained weights onto a channel: each rank offers what it holds, and no rank ever has the whole model."""

from collections.abc import Mapping

from torch import Tensor

from llamarl.core.protocols import WeightChannel
from llamarl.functional.checksum import PartialSum, checksum, combine_checksums, partial_checksums
from llamarl.training.layout import Layout


def publish(channel: WeightChannel, version: int, tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, int]:
    """Offers weights on a channel. All ranks call it; what is offered can be read once all have returned.

    Args:
        channel: where to offer them.
        version: of the policy.
        tensors: what this rank holds of each.
        layout: the place of that.

    Returns:
        Checksums of the whole tensors, as they lie on the channel.

    Raises:
        WeightSyncError: the channel refused, or ranks hold different values of the same weights.
    """
    if layout.ranks.count == 1:
        channel.publish(version, tensors)
        return checksum(tensors, channel.dtype)
    sharding = layout.sharding
    channel.publish(version, tensors, sharding)
    parts = partial_checksums(tensors, sharding.own, channel.dtype)
    told = layout.ranks.tell({name: part.value for name, part in parts.items()})
    return combine_checksums(
        [
            {name: PartialSum(shards[name], value) for name, value in values.items()}
            for values, shards in zip(told, sharding.layouts, strict=True)
        ]
    )
