"""Keys and values in blocks: memory for the tokens that are held, whatever the longest row is.

A block holds the keys and values of some consecutive tokens, of all layers and heads. It belongs to every row of which
these tokens are a part; one that several rows hold is never written again. Pools hold blocks side by side, so that
attention reads a pool as one tensor instead of gathering blocks:

    own       blocks of one active row each
    shared    blocks of several active rows: the prompt of a group, a system message
    kept      blocks of rows that are not active

Shape legend: L layers, C blocks of a pool, K key/value heads, B positions of a block, D head size.
"""

import contextlib
import heapq
import mmap
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llamarl.models.decoder import Geometry

BLOCK_BYTES = 64
"""Bytes of one component of a block's positions: 16 in fp32, 32 in bf16. Half as many products are slower for the same
bytes; twice as many leave more of a row's last block empty."""
_MAX_HOLES = 8
"""A pool is compacted once one block in this many is empty: each block is moved at most once for one that was freed."""
_MAP_NORESERVE = 0x4000
"""Linux's flag for addresses that nothing is set aside for; the module names it from Python 3.13 on."""


@dataclass(slots=True, eq=False)
class Block:
    """Consecutive tokens of rows, somewhere in a pool."""

    pool: "BlockPool"
    index: int
    num_tokens: int = 0
    """The positions that are filled, from the first on."""
    num_rows: int = 1
    """Rows that hold it."""


class BlockPool:
    """Blocks of one use.

    Block 0 is no row's: it stays zero, and stands for what isn't there.

    Args:
        geometry: sizes of the model.
        dtype: of keys and values.
        device: where they live.
        max_blocks: most blocks that can be needed at once.
    """

    def __init__(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, max_blocks: int) -> None:
        self.block_size = BLOCK_BYTES // dtype.itemsize
        self._blocks: list[Block | None] = [None]
        self._holes: list[int] = []
        self._shape = (geometry.num_kv_heads, self.block_size, geometry.head_dim)
        self._memory = _memory(geometry.num_layers, self._shape, dtype, device, _round_up(max_blocks + 1))
        self._spans: list[tuple[Tensor, Tensor]] | None = None
        self._memory.resize(1)

    @property
    def layers(self) -> list[Tensor]:
        """The keys and values of each layer, `[2, C, K, B, D]`, at least `num_read` blocks."""
        return self._memory.layers

    @property
    def num_read(self) -> int:
        """Number of blocks that attention reads, empty ones among them: rounded, so that it seldom changes."""
        return _round_up(len(self._blocks))

    @property
    def num_bytes(self) -> int:
        """Bytes of memory in use."""
        return self._memory.num_bytes

    def __len__(self) -> int:
        """Number of blocks that rows hold."""
        return len(self._blocks) - 1 - len(self._holes)

    def sizes(self) -> list[int]:
        """Tokens in each of the blocks that are read; 0 in empty ones."""
        held = [0 if block is None else block.num_tokens for block in self._blocks]
        return held + [0] * (self.num_read - len(held))

    def add(self) -> Block:
        """A block for one row."""
        if self._holes:
            index = heapq.heappop(self._holes)
        else:
            index = len(self._blocks)
            num_read = self.num_read
            self._blocks.append(None)
            self._memory.resize(len(self._blocks))
            if self.num_read != num_read:
                self._spans = None
        block = self._blocks[index] = Block(self, index)
        return block

    def drop(self, block: Block) -> None:
        """Frees a block; the next one that is added may take its place."""
        self._blocks[block.index] = None
        heapq.heappush(self._holes, block.index)

    def take_over(self, blocks: Sequence[Block]) -> None:
        """Moves blocks of another pool here."""
        if not blocks:
            return
        before = blocks[0].pool
        sources = [block.index for block in blocks]
        for block in blocks:
            before.drop(block)
            place = self.add()
            self._blocks[place.index] = block
            block.pool, block.index = self, place.index
        _copy(before, sources, self, [block.index for block in blocks])

    def compact(self, wanted: Container[Block] | None = None, attic: "BlockPool | None" = None) -> None:
        """Closes the holes, once they are many, with blocks from the end.

        Args:
            wanted: the blocks that have to stay in this pool; by default all.
            attic: the pool that takes the others.
        """
        idle = [] if wanted is None else [b for b in self._blocks if b is not None and b not in wanted]
        size = len(self._blocks) - len(self._holes) - len(idle)
        if (len(self._blocks) - size) * _MAX_HOLES <= len(self._blocks):
            return
        if attic is not None:
            attic.take_over(idle)
        targets = sorted(hole for hole in self._holes if hole < size)
        movers = [block for block in self._blocks[size:] if block is not None]
        _copy(self, [block.index for block in movers], self, targets)
        for block, index in zip(movers, targets, strict=True):
            self._blocks[index], block.index = block, index
        del self._blocks[size:]
        self._holes, self._spans = [], None
        self._memory.resize(size)

    def spans(self) -> Sequence[tuple[Tensor, Tensor]]:
        """The keys `[P * K, D, B]` and values `[P * K, B, D]` of each layer, of the blocks that are read.

        Made anew only when they change, since a decode step of few rows is as slow as its many small calls.
        """
        if self._spans is None:
            parts = (layer[:, : self.num_read].flatten(1, 2) for layer in self.layers)
            self._spans = [(keys.transpose(1, 2), values) for keys, values in parts]
        return self._spans

    def copy_head(self, block: Block, num_tokens: int) -> Block:
        """A block of the first tokens of another, which stays: what a row writes behind them is its own."""
        head = self.add()
        head.num_tokens = num_tokens
        for layer, origin in zip(self.layers, block.pool.layers, strict=True):
            layer[:, head.index, :, :num_tokens] = origin[:, block.index, :, :num_tokens]
        return head


def _round_up(size: int) -> int:
    """The number of blocks that are read where `size` are in use."""
    return size + -size % (4 if size <= 32 else 8 if size <= 128 else 32)


def _copy(origin: BlockPool, sources: list[int], pool: BlockPool, targets: list[int]) -> None:
    if sources:
        device = pool.layers[0].device
        to, where = (torch.tensor(indices, device=device) for indices in (targets, sources))
        for layer, other in zip(pool.layers, origin.layers, strict=True):
            layer[:, to] = other[:, where]


class _GrownMemory:
    """Memory of a pool that is copied to another size: quick where memory is, on a GPU."""

    def __init__(self, num_layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.layers = [torch.empty(2, 0, *shape, dtype=dtype, device=device)] * num_layers

    @property
    def num_bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def resize(self, num_blocks: int) -> None:
        """Makes room for so many blocks; new ones are zero."""
        capacity, needed = self.layers[0].shape[1], _round_up(num_blocks)
        if needed <= capacity <= needed + needed // 4:
            return
        # Some more, so that a growing pool is seldom copied.
        wanted, held = needed + needed // 8, min(capacity, needed)
        for index, layer in enumerate(self.layers):  # one by one, so that no second pool is held meanwhile
            grown = layer.new_zeros(2, wanted, *layer.shape[2:])
            grown[:, :held] = layer[:, :held]
            self.layers[index] = grown


class _MappedMemory:
    """Addresses for all blocks that can ever be needed: a page of memory comes when it is first written, as zeros.

    So a pool grows without a copy, and what lies behind its end goes back at once.
    """

    def __init__(self, num_layers: int, shape: tuple[int, ...], dtype: torch.dtype, max_blocks: int) -> None:
        self._half = max_blocks * dtype.itemsize * shape[0] * shape[1] * shape[2]
        self._block_bytes = self._half // max_blocks
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, 2 * num_layers * self._half, flags=flags)
        self._num_halves, self._num_blocks = 2 * num_layers, 0
        every = torch.frombuffer(self._map, dtype=dtype).view(num_layers, 2, max_blocks, *shape)
        self.layers = list(every.unbind())

    @property
    def num_bytes(self) -> int:
        return self._num_blocks * self._block_bytes * self._num_halves

    def resize(self, num_blocks: int) -> None:
        """Uses so many blocks from now on; new ones hold numbers."""
        if num_blocks < self._num_blocks:
            for start in range(0, self._num_halves * self._half, self._half):
                first = start + num_blocks * self._block_bytes
                last = start + self._num_blocks * self._block_bytes
                # Whole pages only: the one at an end may hold what stays.
                first, last = first + -first % mmap.PAGESIZE, last - last % mmap.PAGESIZE
                if first < last:
                    self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._num_blocks = num_blocks


def _memory(
    num_layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, max_blocks: int
) -> _GrownMemory | _MappedMemory:
    if device.type == "cpu" and sys.platform == "linux":
        # Where the administrator has bounded addresses, there may not be enough: then memory is copied as it grows.
        with contextlib.suppress(OSError, OverflowError):
            return _MappedMemory(num_layers, shape, dtype, max_blocks)
    return _GrownMemory(num_layers, shape, dtype, device)
