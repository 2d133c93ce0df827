"""Weights between processes of one host: a shared-memory file of two slots (`weights.slots`).

file:  length of the layout | stamps | layout as JSON | tensors of slot 0 | tensors of slot 1
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from multiprocessing import resource_tracker
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.weights.slots import NUM_SLOTS, Slots

_SHARED_MEMORY = Path("/dev/shm")
_ALIGNMENT = 64
_STAMPS_AT = 8
_LAYOUT_AT = _STAMPS_AT + NUM_SLOTS * 2 * 8

Layout = list[tuple[str, list[int], str]]
"""(name, shape, dtype) of each tensor in the order in which they lie in a slot."""


class ShmChannel:
    """A named arena. Build it where the run lives and hand it, pickled, to the trainer and the receivers.

    Whoever built it owns the name: `close` removes the arena, and should the owner's process die, even by SIGKILL,
    Python's resource tracker does. Pickled copies own nothing: `publish` lays the arena out (a restarted trainer lays
    out a new one under the name), `fetch` attaches to it.

    Args:
        name: of the arena, unique on this host; random by default.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or f"llamarl-{uuid4().hex[:12]}"
        self._is_owner = True
        self._published: Slots | None = None
        self._attached: Slots | None = None
        self._inode = 0
        """Inode of the file that is attached; 0 where none is."""
        resource_tracker.register(f"/{self.name}", "shared_memory")

    @property
    def path(self) -> Path:
        """The arena's file."""
        return (_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())) / self.name

    def publish(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Copies `tensors` onto the channel as `version`. One publisher at a time.

        Raises:
            WeightSyncError: names, shapes or dtypes differ from the first publication, or shared memory is full.
        """
        if self._published is None:
            self._published = _create(self.path, tensors)
        self._published.write(version, tensors)

    def fetch(self, version: int, into: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """Copies `version` into the tensors of `into` and returns it; without `into`, into new tensors.

        Raises:
            WeightSyncError: `version` is not on the channel or was overwritten meanwhile, or `into` does not fit.
        """
        return self._attach(version).read(version, into)

    def reading(self, version: int) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Lends the arena's own tensors of `version` inside the block: no memory is taken.

        Raises:
            WeightSyncError: `version` is not on the channel, or was overwritten before the block ended.
        """
        return self._attach(version).reading(version)

    def close(self) -> None:
        """Lets go of the arena; the owner removes it. Idempotent."""
        self._published = self._attached = None
        if self._is_owner:
            self._is_owner = False
            self.path.unlink(missing_ok=True)
            resource_tracker.unregister(f"/{self.name}", "shared_memory")

    def _attach(self, version: int) -> Slots:
        try:
            inode = self.path.stat().st_ino
        except FileNotFoundError:
            raise WeightSyncError(f"weights of version {version}: nothing was published at {self.path}") from None
        if self._attached is None or inode != self._inode:  # the first fetch, or a restarted trainer's new arena
            self._attached, self._inode = _open(self.path), inode
        return self._attached

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "_is_owner": False, "_published": None, "_attached": None, "_inode": 0}


def _create(path: Path, tensors: Mapping[str, Tensor]) -> Slots:
    """Makes the file. One that a dead trainer left is replaced; who has mapped it keeps the old pages."""
    layout = [(name, list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()]
    text = json.dumps(layout).encode()
    total = _tensors_at(len(text)) + NUM_SLOTS * _slot_bytes(layout)
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(file, 0, total)  # too little space is an error here; a mapped write would be a SIGBUS
        os.pwrite(file, text, _LAYOUT_AT)
        os.pwrite(file, len(text).to_bytes(_STAMPS_AT, "little"), 0)
    except OSError as error:
        path.unlink()
        raise WeightSyncError(
            f"weights: {path} needs {total / 1e6:.0f} MB: {error.strerror}; enlarge {path.parent}"
        ) from error
    finally:
        os.close(file)
    return _map(path, layout, len(text))


def _open(path: Path) -> Slots:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(_STAMPS_AT), "little")
        file.seek(_LAYOUT_AT)
        layout: Layout = json.loads(file.read(length) or "[]")
    return _map(path, layout, length)


def _map(path: Path, layout: Layout, layout_length: int) -> Slots:
    begin, size = _tensors_at(layout_length), _slot_bytes(layout)
    memory = torch.from_file(str(path), shared=True, size=begin + NUM_SLOTS * size, dtype=torch.uint8)
    stamps = memory[_STAMPS_AT:_LAYOUT_AT].view(torch.int64).view(NUM_SLOTS, 2)
    return Slots(stamps, [_views(memory[begin + slot * size :], layout) for slot in range(NUM_SLOTS)])


def _views(memory: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The tensors of one slot, as views of its bytes."""
    views, offset = {}, 0
    for name, shape, dtype in layout:
        num_bytes = _num_bytes(shape, dtype)
        views[name] = memory[offset : offset + num_bytes].view(getattr(torch, dtype)).view(shape)
        offset += _align(num_bytes)
    return views


def _slot_bytes(layout: Layout) -> int:
    return sum(_align(_num_bytes(shape, dtype)) for _, shape, dtype in layout)


def _num_bytes(shape: list[int], dtype: str) -> int:
    itemsize: int = getattr(torch, dtype).itemsize
    return torch.Size(shape).numel() * itemsize


def _tensors_at(layout_length: int) -> int:
    return _align(_LAYOUT_AT + layout_length)


def _align(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
