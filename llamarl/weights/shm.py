"""Weights between processes of one host: a shared-memory file of two slots (`weights.slots`).

file:  length of the layout | number of writing ranks | stamps | layout as JSON | tensors of slot 0 | of slot 1

A sharded trainer's ranks write into one file, each its own shards at their places, so that no rank ever holds the whole
model; where several ranks hold the same elements, they share the work (`weights.plan`).
"""

import json
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from multiprocessing import resource_tracker
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.shards import Layout, Region, Sharding
from llamarl.weights.layout import cast_layout, lone_sharding, whole_layout
from llamarl.weights.plan import build_plan
from llamarl.weights.slots import NUM_SLOTS, Slots

_SHARED_MEMORY = Path("/dev/shm")
_ALIGNMENT = 64
_STAMPS_AT = 16
_ARENA = -1
"""The arena's place among the ranks of a plan."""

Fields = list[tuple[str, list[int], str]]
"""(name, shape, dtype) of each tensor in the order in which they lie in a slot."""

Publication = tuple[int, int]
"""The arena's inode and the stamp. A version's number alone may come twice, after a restart."""


class ShmChannel:
    """A named arena. Build it where the run lives and hand it, pickled, to the trainer and the receivers.

    Whoever built it owns the name: `close` removes the arena, and should the owner's process die, even by SIGKILL,
    Python's resource tracker does. Pickled copies own nothing: `publish` lays the arena out (a restarted trainer lays
    out a new one under the name), `fetch` attaches to it.

    Args:
        name: of the arena, unique on this host; random by default.
        dtype: in which it holds floating-point tensors; None: theirs.
        is_owner: False makes what a pickled copy is.
    """

    def __init__(self, name: str | None = None, dtype: torch.dtype | None = None, is_owner: bool = True) -> None:
        self.name = name or f"llamarl-{uuid4().hex[:12]}"
        self.dtype = dtype
        self._is_owner = is_owner
        self._published: Slots | None = None
        self._attached: Slots | None = None
        self._inode = 0
        """Inode of the file that is attached; 0 where none is."""
        if is_owner:
            resource_tracker.register(f"/{self.name}", "shared_memory")

    @property
    def path(self) -> Path:
        """The arena's file."""
        return (_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())) / self.name

    def open(self, host: str) -> "ShmChannel":
        """Returns the channel itself: it is ready, and `host` reads it without a network."""
        return self

    def publish(self, version: int, tensors: Mapping[str, Tensor], sharding: Sharding | None = None) -> None:
        """Copies `tensors` onto the channel as `version`. One publisher at a time.

        With a sharding, every rank of the default process group calls it, with what it holds and with its own copy of
        the channel; the version can be read once all of them have returned.

        Raises:
            WeightSyncError: names, shapes or dtypes differ from the first publication, the ranks together do not hold
                every element, or shared memory is full.
        """
        sharding = sharding or lone_sharding(tensors)
        if self._published is None:
            self._published = _create(self.path, sharding, self.dtype)
        self._published.write(version, tensors, sharding.own)

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

    def publications(self) -> dict[Publication, int]:
        """The versions that can be read now, oldest first, by what tells them from others of the same number."""
        if not self.path.exists():
            return {}
        stamps = self._attach(version=-1).stamps
        return {(self._inode, stamp): version for stamp, version in stamps.items()}

    async def prepare(self, version: int) -> None:
        """Does nothing: what was published is near already."""

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
        return {
            "name": self.name,
            "dtype": self.dtype,
            "_is_owner": False,
            "_published": None,
            "_attached": None,
            "_inode": 0,
        }


def _create(path: Path, sharding: Sharding, dtype: torch.dtype | None) -> Slots:
    """Makes one file for all ranks: the first makes it, and all learn whether it could."""
    layouts = {rank: cast_layout(layout, dtype) for rank, layout in enumerate(sharding.layouts)}
    whole = whole_layout(layouts)
    plan = build_plan(layouts, {_ARENA: whole})
    failure: WeightSyncError | None = None
    if sharding.rank == 0:
        try:
            _make_file(path, whole, len(layouts))
        except WeightSyncError as error:
            failure = error
    is_made = torch.tensor([failure is None])
    if len(layouts) > 1:
        dist.broadcast(is_made, src=0)  # also holds the others back until the file is there
    if not is_made:
        raise failure or WeightSyncError(f"weights: rank 0 could not make {path}; its error says why")
    parts: dict[str, list[Region]] = {}
    for move in plan.sent_by(sharding.rank):
        parts.setdefault(move.name, []).append(move.region)
    return _open(path, sharding.rank, parts, dtype)


def _make_file(path: Path, layout: Layout, num_ranks: int) -> None:
    """Makes the file. One that a dead trainer left is replaced; who has mapped it keeps the old pages."""
    fields: Fields = [(name, list(shard.global_shape), shard.dtype) for name, shard in layout.items()]
    text = json.dumps(fields).encode()
    total = _tensors_at(num_ranks, len(text)) + NUM_SLOTS * _slot_bytes(fields)
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(file, 0, total)  # too little space is an error here; a mapped write would be a SIGBUS
        os.pwrite(file, text, _layout_at(num_ranks))
        os.pwrite(file, struct.pack("<QQ", len(text), num_ranks), 0)
    except OSError as error:
        path.unlink()
        raise WeightSyncError(
            f"weights: {path} needs {total / 1e6:.0f} MB: {error.strerror}; enlarge {path.parent}"
        ) from error
    finally:
        os.close(file)


def _open(
    path: Path,
    rank: int = 0,
    parts: Mapping[str, Sequence[Region]] | None = None,
    dtype: torch.dtype | None = None,
) -> Slots:
    """Maps the file; all but the path is for a writer."""
    with open(path, "rb") as file:
        length, num_ranks = struct.unpack("<QQ", file.read(_STAMPS_AT).ljust(_STAMPS_AT, b"\0"))
        if not num_ranks:  # whoever makes it writes this last
            raise WeightSyncError(f"weights: {path} is still being laid out")
        file.seek(_layout_at(num_ranks))
        fields: Fields = json.loads(file.read(length))
    begin, size = _tensors_at(num_ranks, length), _slot_bytes(fields)
    memory = torch.from_file(str(path), shared=True, size=begin + NUM_SLOTS * size, dtype=torch.uint8)
    stamps = memory[_STAMPS_AT : _layout_at(num_ranks)].view(torch.int64).view(num_ranks, NUM_SLOTS, 2)
    copies = [_views(memory[begin + slot * size :], fields) for slot in range(NUM_SLOTS)]
    return Slots(stamps, copies, rank, parts, dtype)


def _views(memory: Tensor, fields: Fields) -> dict[str, Tensor]:
    """The tensors of one slot, as views of its bytes."""
    views, offset = {}, 0
    for name, shape, dtype in fields:
        num_bytes = _num_bytes(shape, dtype)
        views[name] = memory[offset : offset + num_bytes].view(getattr(torch, dtype)).view(shape)
        offset += _align(num_bytes)
    return views


def _slot_bytes(fields: Fields) -> int:
    return sum(_align(_num_bytes(shape, dtype)) for _, shape, dtype in fields)


def _num_bytes(shape: list[int], dtype: str) -> int:
    itemsize: int = getattr(torch, dtype).itemsize
    return torch.Size(shape).numel() * itemsize


def _layout_at(num_ranks: int) -> int:
    return _STAMPS_AT + num_ranks * NUM_SLOTS * 2 * 8


def _tensors_at(num_ranks: int, layout_length: int) -> int:
    return _align(_layout_at(num_ranks) + layout_length)


def _align(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
