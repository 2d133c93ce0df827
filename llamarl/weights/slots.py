"""Two stamped copies of a set of tensors, shared by one writer and many readers without locks.

    slot:  stamp (counts publications; 0 while the slot is being written or empty), version, tensors

The writer takes the slot that is not the newest, so readers of the newest version are never disturbed. A reader looks
at the stamp before and after its copy: a slot that was rewritten meanwhile is noticed, and nobody waits for anybody.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError

NUM_SLOTS = 2


class Slots:
    """Versions of a fixed set of tensors.

    Args:
        stamps: int64 [NUM_SLOTS, 2] on the CPU, zero at first: (stamp, version) of each slot.
        copies: the tensors of each slot, equal in names, shapes and dtypes.
    """

    def __init__(self, stamps: Tensor, copies: Sequence[Mapping[str, Tensor]]) -> None:
        self._stamps = stamps
        self._copies = copies

    @property
    def versions(self) -> list[int]:
        """Versions that can be read now."""
        return [version for stamp, version in self._stamps.tolist() if stamp > 0]

    @torch.no_grad()
    def write(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Copies `tensors` into the older slot. One writer at a time.

        Raises:
            WeightSyncError: names, shapes or dtypes are not those of the slots.
        """
        check_layout(tensors, self._copies[0])
        stamps = [stamp for stamp, _ in self._stamps.tolist()]
        slot = stamps.index(min(stamps))
        # 0 before any byte is copied: no reader begins with this slot, and one still busy finds its stamp gone.
        self._stamps[slot, 0] = 0
        _copy(self._copies[slot], tensors)
        self._stamps[slot, 1] = version
        # The stamp comes last, since readers choose a slot by it.
        self._stamps[slot, 0] = max(stamps) + 1

    @torch.no_grad()
    def read(self, version: int, into: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """Copies `version` into the tensors of `into` (all names or some; any dtype or device) and returns `into`.

        Without `into` it copies into new tensors.

        Raises:
            WeightSyncError: `version` is not held, `into` does not fit, or the slot was rewritten during the copy.
        """
        with self.reading(version) as source:
            if into is None:
                into = {name: torch.empty_like(tensor) for name, tensor in source.items()}
            _check_fit(into, source)
            _copy(into, {name: source[name] for name in into})
        return into

    @contextmanager
    def reading(self, version: int) -> Iterator[Mapping[str, Tensor]]:
        """Lends the slot's own tensors inside the block, to be read and not written.

        Raises:
            WeightSyncError: `version` is not held; or, at the end of the block, the slot was rewritten meanwhile.
        """
        slots = self._stamps.tolist()
        held = [(stamp, slot) for slot, (stamp, of) in enumerate(slots) if stamp > 0 and of == version]
        if not held:
            raise WeightSyncError(f"weights of version {version} are not on the channel; it holds {self.versions}")
        stamp, slot = max(held)
        yield self._copies[slot]
        if self._stamps[slot].tolist() != [stamp, version]:
            raise WeightSyncError(f"weights of version {version} were overwritten while they were being read")


def check_layout(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises `WeightSyncError` naming the first tensor that was added, removed or changed in shape or dtype."""
    for name in sorted(tensors.keys() | expected.keys()):
        was, now = _describe(expected.get(name)), _describe(tensors.get(name))
        if was != now:
            raise WeightSyncError(f"weights: {name!r} was {was} when the channel was laid out and is {now} now")


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _check_fit(into: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    for name, target in into.items():
        if name not in source:
            raise WeightSyncError(f"weights: no tensor {name!r} among the {len(source)} published")
        if target.shape != source[name].shape:  # `copy_` would broadcast
            sent, got = list(source[name].shape), list(target.shape)
            raise WeightSyncError(f"weights: {name!r} was published as {sent}, the receiver has {got}")


def _copy(into: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    if into:  # the list form refuses empty lists
        torch._foreach_copy_([tensor.detach() for tensor in into.values()], [source[name].detach() for name in into])
