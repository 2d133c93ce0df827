"""Two stamped copies of a set of tensors, shared by the ranks of one writer and many readers without locks.

    slot:  stamps of each writing rank (they count publications; 0 while the rank is writing, or before), tensors

The writer takes the slot that is not the newest, so readers of the newest version are never disturbed. A slot holds a
version once all ranks have stamped it so. A reader looks at the stamps before and after its copy: a slot that was
rewritten meanwhile is noticed, and nobody waits for anybody.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.shards import Layout, Region, Shard
from llamarl.functional.shards import local_part, view_region
from llamarl.weights.layout import cast_layout, layout_of

NUM_SLOTS = 2


class Slots:
    """Versions of a fixed set of tensors.

    Args:
        stamps: int64 [ranks, NUM_SLOTS, 2] on the CPU, zero at first: (stamp, version) of each slot by each writer.
        copies: the whole tensors of each slot, equal in names, shapes and dtypes.
        rank: whose stamps and regions `write` writes.
        parts: the regions of each tensor that this rank writes; by default all of every tensor.
        dtype: of floating-point tensors in the slots; None: that of what is written.
    """

    def __init__(
        self,
        stamps: Tensor,
        copies: Sequence[Mapping[str, Tensor]],
        rank: int = 0,
        parts: Mapping[str, Sequence[Region]] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._stamps, self._copies, self._rank, self._dtype = stamps, copies, rank, dtype
        self._layout = layout_of(copies[0])
        self._parts = parts or {name: [shard.region] for name, shard in self._layout.items()}

    @property
    def versions(self) -> list[int]:
        """Versions that can be read now."""
        return [version for stamp, version in self._held() if stamp > 0]

    @property
    def stamps(self) -> dict[int, int]:
        """The version of each publication that can be read now, by its stamp, oldest first: stamps never repeat."""
        return dict(sorted((stamp, version) for stamp, version in self._held() if stamp > 0))

    @torch.no_grad()
    def write(self, version: int, tensors: Mapping[str, Tensor], layout: Layout | None = None) -> None:
        """Copies this rank's parts of `tensors` into the older slot. One writer at a time.

        Args:
            version: what they are called.
            tensors: what this rank holds.
            layout: the place of that in the whole tensors; by default they are whole.

        Raises:
            WeightSyncError: names, shapes or dtypes are not those of the slots.
        """
        layout = layout or layout_of(tensors)
        self._check_layout(cast_layout(layout, self._dtype))
        mine = self._stamps[self._rank]
        stamps = [stamp for stamp, _ in mine.tolist()]
        # Ranks write the same publications in the same order, so all of them find the same slot to be the older.
        slot = stamps.index(min(stamps))
        # 0 before any byte is copied: no reader begins with this slot, and one still busy finds its stamp gone.
        mine[slot, 0] = 0
        into, source = [], []
        for name, regions in self._parts.items():
            into += [view_region(self._copies[slot][name], self._layout[name], region) for region in regions]
            source += [view_region(local_part(tensors[name]), layout[name], region) for region in regions]
        _copy(into, source)
        mine[slot, 1] = version
        # The stamp comes last, since readers choose a slot by it.
        mine[slot, 0] = max(stamps) + 1

    @torch.no_grad()
    def read(self, version: int, into: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """Copies `version` into the tensors of `into` (all names or some; any dtype or device) and returns `into`.

        A DTensor takes this rank's part. Without `into` it copies into new, whole tensors.

        Raises:
            WeightSyncError: `version` is not held, `into` does not fit, or the slot was rewritten during the copy.
        """
        with self.reading(version) as source:
            if into is None:
                into = {name: torch.empty_like(tensor) for name, tensor in source.items()}
            wanted = self._check_fit(into)
            parts = [view_region(source[name], self._layout[name], shard.region) for name, shard in wanted.items()]
            _copy([local_part(into[name]) for name in wanted], parts)
        return into

    @contextmanager
    def reading(self, version: int) -> Iterator[Mapping[str, Tensor]]:
        """Lends the slot's own tensors inside the block, to be read and not written.

        Raises:
            WeightSyncError: `version` is not held; or, at the end of the block, the slot was rewritten meanwhile.
        """
        slots = [(stamp, slot) for slot, (stamp, of) in enumerate(self._held()) if stamp > 0 and of == version]
        if not slots:
            raise WeightSyncError(f"weights of version {version} are not on the channel; it holds {self.versions}")
        stamp, slot = max(slots)
        yield self._copies[slot]
        if self._held()[slot] != (stamp, version):
            raise WeightSyncError(f"weights of version {version} were overwritten while they were being read")

    def _held(self) -> list[tuple[int, int]]:
        """(stamp, version) of each slot; (0, 0) where the ranks do not agree yet."""
        by_slot = zip(*([tuple(pair) for pair in rank] for rank in self._stamps.tolist()), strict=True)
        return [pairs[0] if len(set(pairs)) == 1 else (0, 0) for pairs in by_slot]

    def _check_layout(self, layout: Layout) -> None:
        """Raises `WeightSyncError` naming the first tensor that was added, removed or changed in shape or dtype."""
        for name in sorted(layout.keys() | self._layout.keys()):
            was, now = (str(found.get(name, "absent")) for found in (self._layout, layout))
            if was != now:
                raise WeightSyncError(f"weights: {name!r} was {was} when the channel was laid out and is {now} now")

    def _check_fit(self, into: Mapping[str, Tensor]) -> dict[str, Shard]:
        wanted = layout_of(into)
        for name, shard in wanted.items():
            if name not in self._layout:
                raise WeightSyncError(f"weights: no tensor {name!r} among the {len(self._layout)} published")
            sent, got = list(self._layout[name].global_shape), list(shard.global_shape)
            if got != sent:  # `copy_` would broadcast
                raise WeightSyncError(f"weights: {name!r} was published as {sent}, the receiver has {got}")
        return wanted


def _copy(into: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    if into:  # the list form refuses empty lists
        torch._foreach_copy_(list(into), list(source))
