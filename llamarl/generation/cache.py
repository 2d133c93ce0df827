"""Which blocks hold the tokens of a row, and how one query a row attends to them.

    row 0    [p0 p1]  [a0 a1]  [a2 .]           p: the prompt of a group, held once
    row 1    [p0 p1]  [b0 b1]
    row 2    [c0 c1]  [c2 .]

A decode step multiplies the queries with all blocks of a pool at once, brings the scores of a row together for its
softmax, and adds up what its blocks give: all small beside the keys and values, which are read once and where they lie.

Shape legend: n active rows, H query heads, K key/value heads, G = H / K, D head size, B positions of a block,
P blocks of the pool `own`, S blocks of the pool `shared`, M most readers of a shared block, W most blocks of a row,
Z = S * K * M * G + P * H: pairs of a block and a query.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llamarl.generation.blocks import BLOCK_BYTES, Block, BlockPool
from llamarl.models.decoder import Geometry


class BlockCache:
    """Keys and values of rows, active and kept.

    Args:
        geometry: sizes of the model.
        slots: most rows.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(self, geometry: Geometry, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry, self.dtype, self.device = geometry, dtype, device
        # A row ends in a block that is part empty, and so does a prompt that it shares.
        most = slots * (-(-geometry.max_positions * dtype.itemsize // BLOCK_BYTES) + 2)
        self.own, self.shared, self.kept = (BlockPool(geometry, dtype, device, most) for _ in range(3))
        self.block_size = self.own.block_size
        self._chains: dict[int, list[Block]] = {}
        self._steps: _Steps | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of memory in use."""
        return sum(pool.num_bytes for pool in (self.own, self.shared, self.kept))

    @property
    def num_blocks(self) -> int:
        """Blocks that rows hold."""
        return sum(len(pool) for pool in (self.own, self.shared, self.kept))

    @property
    def num_tokens(self) -> int:
        """Tokens that rows hold; one that several rows hold in common counts once."""
        return sum(block.num_tokens for block in {block for chain in self._chains.values() for block in chain})

    def chain(self, row: int) -> Sequence[Block]:
        """The blocks of a row, in the order of its tokens."""
        return self._chains.get(row, ())

    # Which row holds what

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Rows `targets` hold from now on what rows `sources` held before, all at once; nothing is copied."""
        chains = [list(self._chains[source]) for source in sources]
        for block in (block for chain in chains for block in chain):
            block.num_rows += 1
        for target, chain in zip(targets, chains, strict=True):
            _drop(self._chains.get(target, ()))
            self._chains[target] = chain
        self._steps = None

    def hold(self, rows: Collection[int]) -> None:
        """Lets go of all rows but these."""
        self._steps = None
        for row in self._chains.keys() - set(rows):
            _drop(self._chains.pop(row))
        for pool in (self.own, self.shared, self.kept):
            pool.compact()

    def begin(self, rows: Sequence[int], num_known: int, num_tokens: int) -> list[tuple[Block, int]]:
        """Makes room for a sequence that is the same in all of `rows`.

        Args:
            rows: the rows.
            num_known: number of its first tokens that the first of the rows holds already.
            num_tokens: of the sequence.

        Returns:
            Block, and position in it, of each further token.
        """
        for row in rows[1:]:
            _drop(self._chains.pop(row, ()))
        chain = self._cut(rows[0], num_known)
        pool = self.shared if len(rows) > 1 else self.own
        places = []
        for _ in range(num_tokens - num_known):
            if not chain or not self._has_room(chain[-1]):
                chain.append(pool.add())
            places.append((chain[-1], chain[-1].num_tokens))
            chain[-1].num_tokens += 1
        for block in chain:
            block.num_rows += len(rows) - 1
        self._chains |= {row: list(chain) for row in rows}
        self._steps = None
        return places

    def _cut(self, row: int, num_known: int) -> list[Block]:
        """Takes from a row what it holds; returns the blocks of its first tokens."""
        chain: list[Block] = []
        for block in self._chains.pop(row, ()):
            num_wanted = min(num_known, block.num_tokens)
            num_known -= num_wanted
            if not num_wanted:
                _drop([block])
            elif num_wanted == block.num_tokens:
                chain.append(block)
            elif block.num_rows == 1:
                block.num_tokens = num_wanted
                chain.append(block)
            else:
                chain.append(self.own.copy_head(block, num_wanted))
                _drop([block])
        return chain

    def _has_room(self, block: Block) -> bool:
        """True if its row may write on: what several rows hold stays as it is."""
        return block.num_rows == 1 and block.num_tokens < self.block_size

    # Decoding

    def advance(self, num_rows: int) -> Tensor:
        """Makes room for one more token in rows 0 to `num_rows - 1`; returns their positions `[n]`."""
        if self._steps is None or self._steps.num_rows != num_rows:
            self._steps = self._arrange(num_rows)
        return self._steps.advance()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Takes in the newest key and value of each row; attention of the row's query to all its tokens."""
        assert self._steps is not None, "advance() comes first"
        return self._steps.attend(layer, q, k, v)

    def _arrange(self, num_rows: int) -> "_Steps":
        """Brings each block into the pool of its use."""
        chains = [self._chains[row] for row in range(num_rows)]
        readers = Counter(block for chain in chains for block in chain)
        for origin in (self.own, self.kept):
            _bring([b for b, count in readers.items() if count > 1 and b.pool is origin], self.shared)
        _bring([b for b, count in readers.items() if count == 1 and b.pool is self.kept], self.own)
        for pool in (self.own, self.shared):
            pool.compact(readers, self.kept)
        return _Steps(self, chains, readers)


def _bring(blocks: Sequence[Block], pool: BlockPool) -> None:
    """Moves blocks of one pool into another, in parts, so that few of them ever take memory in both."""
    size = max(1, len(blocks) // 16)
    for start in range(0, len(blocks), size):
        origin = blocks[start].pool
        pool.take_over(blocks[start : start + size])
        origin.compact()


def _drop(blocks: Collection[Block]) -> None:
    for block in blocks:
        block.num_rows -= 1
        if not block.num_rows:
            block.pool.drop(block)


class _Steps:
    """Decode steps of the same rows.

    Args:
        cache: whose rows.
        chains: the blocks of each row.
        readers: the number of these rows that hold each block.
    """

    def __init__(self, cache: BlockCache, chains: Sequence[list[Block]], readers: Mapping[Block, int]) -> None:
        self.num_rows, self._cache, self._chains = len(chains), cache, chains
        g, self._own, self._shared = cache.geometry, cache.own, cache.shared
        self._num_heads, self._kv_heads, self._head_dim = g.num_heads, g.num_kv_heads, g.head_dim
        device = cache.device
        group = g.num_heads // g.num_kv_heads
        self._num_readers = max((count for block, count in readers.items() if block.pool is cache.shared), default=0)
        self._num_shared = cache.shared.num_read if self._num_readers else 0
        self._base = self._num_shared * g.num_heads * self._num_readers
        """Scores of the shared blocks come first, `[S, K, M, G]`; then those of the own ones, `[P, K, G]`."""
        heads = torch.arange(g.num_heads, device=device).view(1, -1, 1)
        self._own_heads = heads
        self._shared_heads = heads // group * group * self._num_readers + heads % group
        seen: dict[Block, int] = {}
        lines = []
        for chain in chains:
            line = []
            for block in chain:
                if block.pool is self._own:
                    line.append(self._base + block.index * g.num_heads)
                else:
                    reader = seen[block] = seen.get(block, -1) + 1
                    line.append((block.index * g.num_kv_heads * self._num_readers + reader) * group)
            lines.append(line)
        self._widths = [len(line) for line in lines]
        width = max(self._widths)
        self._table = torch.tensor([line + [self._base] * (width - len(line)) for line in lines], device=device)
        self._tails = [chain[-1] if self._is_open(chain[-1]) else None for chain in chains]
        places = [(0, 0) if block is None else (block.index, block.num_tokens) for block in self._tails]
        lengths = [sum(block.num_tokens for block in chain) for chain in chains]
        self._tail_index, self._offsets, self._positions = torch.tensor(
            [[*place, length] for place, length in zip(places, lengths, strict=True)], device=device
        ).unbind(1)
        self._shared_mask, self._own_mask = self._mask(self._shared), self._mask(self._own)
        self._is_current = False

    def _is_open(self, block: Block) -> bool:
        return block.pool is self._own and block.num_rows == 1 and block.num_tokens < self._cache.block_size

    def _mask(self, pool: BlockPool) -> Tensor:
        """0 for positions that are filled, minus infinity for the others: `[C, K, B]`."""
        cache = self._cache
        sizes = torch.tensor(pool.sizes(), device=cache.device).view(-1, 1, 1)
        is_empty = torch.arange(cache.block_size, device=cache.device) >= sizes
        mask = torch.zeros(is_empty.shape, dtype=cache.dtype, device=cache.device).masked_fill_(is_empty, -torch.inf)
        return mask.expand(-1, self._kv_heads, -1).contiguous()

    def advance(self) -> Tensor:
        """Makes room for one more token in each row; returns their positions `[n]`."""
        if self._is_current:
            self._offsets, self._positions = self._offsets + 1, self._positions + 1
        full = []
        for row, block in enumerate(self._tails):
            if block is None or block.num_tokens == self._cache.block_size:
                block = self._tails[row] = self._own.add()
                self._chains[row].append(block)
                full.append(row)
            block.num_tokens += 1
        if full:
            self._lengthen(full)
        if full or not self._is_current:
            self._index()
        self._own_mask[self._tail_index, :, self._offsets] = 0
        self._is_current = True
        return self._positions

    def _lengthen(self, rows: Sequence[int]) -> None:
        """Takes in the new last blocks of some rows."""
        tails = [block.index for row in rows if (block := self._tails[row])]
        where, index = (torch.tensor(values, device=self._table.device) for values in (rows, tails))
        columns = torch.tensor([self._widths[row] for row in rows], device=self._table.device)
        for row in rows:
            self._widths[row] += 1
        if (missing := max(self._widths) - self._table.shape[1]) > 0:
            self._table = F.pad(self._table, (0, missing), value=self._base)
        self._table[where, columns] = self._base + index * self._num_heads
        self._tail_index[where], self._offsets[where] = index, 0
        if (missing := self._own.num_read - len(self._own_mask)) > 0:
            self._own_mask = F.pad(self._own_mask, (0, 0, 0, 0, 0, missing), value=-torch.inf)
        self._own_mask[index] = -torch.inf

    def _index(self) -> None:
        """Says which score belongs where: from blocks to rows `[n * H * W]`, and back `[Z]`."""
        table = self._table.unsqueeze(1)
        entries = table + torch.where(table >= self._base, self._own_heads, self._shared_heads)
        self._width = entries.shape[2]
        self._to_rows = entries.view(-1)
        num_pairs = self._base + len(self._own_mask) * self._num_heads
        self._to_blocks = self._to_rows.new_zeros(num_pairs)
        self._to_blocks[self._to_rows] = torch.arange(len(self._to_rows), device=table.device)
        self._asking = self._to_blocks // self._width
        self._bags = torch.arange(0, len(self._to_rows), self._width, device=table.device)
        like = self._own.layers[0]
        self._queries, self._mixed = (like.new_empty(num_pairs, self._head_dim) for _ in range(2))
        self._scores, self._weights = (like.new_empty(num_pairs, self._cache.block_size) for _ in range(2))
        self._passes = [self._pass(self._own, self._own_mask, slice(self._base, None))]
        if self._base:
            self._passes.append(self._pass(self._shared, self._shared_mask, slice(0, self._base)))

    def _pass(self, pool: BlockPool, mask: Tensor, part: slice) -> "_Pass":
        batch = pool.num_read * self._kv_heads
        buffers = (self._queries, self._scores, self._weights, self._mixed)
        queries, scores, weights, mixed = (x[part].view(batch, -1, x.shape[1]) for x in buffers)
        return _Pass(pool.spans(), mask.view(batch, 1, -1), queries, scores, weights, mixed)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Takes in key and value `[n, K, D]` of each row's newest token; attention of `q [n, H, D]`: `[n, H * D]`."""
        self._own.layers[layer][:, self._tail_index, :, self._offsets] = torch.stack((k, v), dim=1)
        torch.index_select(q.reshape(-1, self._head_dim), 0, self._asking, out=self._queries)
        for each in self._passes:
            torch.baddbmm(each.mask, each.queries, each.spans[layer][0], alpha=self._head_dim**-0.5, out=each.scores)
        scores = self._scores.index_select(0, self._to_rows).view(-1, self._width * self._cache.block_size)
        weights = torch.softmax(scores, dim=-1).view(-1, self._cache.block_size)
        torch.index_select(weights, 0, self._to_blocks, out=self._weights)
        for each in self._passes:
            torch.bmm(each.weights, each.spans[layer][1], out=each.mixed)
        return self._add_up().view(self.num_rows, -1)

    def _add_up(self) -> Tensor:
        """What the blocks of each row and head give together: `[n * H, D]`."""
        if self._mixed.is_cpu:  # a kernel that other devices lack, or have only for some types
            return torch.embedding_bag(self._mixed, self._to_rows, self._bags)[0]
        parts = self._mixed.index_select(0, self._to_rows)
        return parts.view(-1, self._width, self._head_dim).sum(dim=1)


@dataclass(frozen=True, slots=True)
class _Pass:
    """Attention over the blocks of one pool: its tensors in the shapes of batched products."""

    spans: Sequence[tuple[Tensor, Tensor]]
    mask: Tensor
    queries: Tensor
    scores: Tensor
    weights: Tensor
    mixed: Tensor
