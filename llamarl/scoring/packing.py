"""Any number of prompts with completions as one flat sequence of tokens, each prompt computed once.

    bucket 1: [prompt | prompt | ..][completion | completion | ..][completion | ..]   bucket 2: ...
               one block, causal     one block per similar length: sees its prompt and, causally, itself

All linear layers run on the `[M]` tokens without padding. Only attention pads, block by block, and blocks hold rows of
similar length. A completion's last token predicts nothing, so it is never an input; a prompt's last token predicts the
first token of each of its completions.

Only the tokens of a row's turns are scored; what was given between them is an input like any other.

Shape legend: M packed tokens, S scored tokens, F of them the first behind a prompt, N completions, B rows and L width
of a block, P width of its prompts, H query heads, K key/value heads, D head size.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llamarl.core.errors import DataError
from llamarl.core.records import Support
from llamarl.models.decoder import Decoder


class TokenRow(Protocol):
    """A prompt and what follows it; `core.records.Trajectory` is one."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The tokens that come first, at least one; equal prompts are computed once."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens behind the prompt."""

    @property
    def turns(self) -> Sequence[tuple[int, int]]:
        """Stretches `(start, stop)` of `token_ids` that are scored, the last up to the end; the rest is only read."""

    @property
    def support(self) -> Support | None:
        """The tokens among which each scored one is; None: all."""

    @property
    def routed_experts(self) -> bytes:
        """Uint8 experts that each token but the last goes to; empty: those that the model chooses."""


def num_scored(row: TokenRow) -> int:
    """Counts the tokens of a row that are scored."""
    return sum(stop - start for start, stop in row.turns)


def routed_width(row: TokenRow) -> int:
    """Experts of a row that each token goes to, in all layers; 0 where the model chooses."""
    return len(row.routed_experts) // max(1, len(row.prompt_ids) + len(row.token_ids) - 1)


PromptRows = tuple[tuple[int, ...], list[int]]
"""A prompt and the indices of the rows that continue it."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of similar length, consecutive among the packed tokens, that attention pads to one width."""

    num_tokens: int
    num_rows: int
    width: int
    cells: Tensor
    """`[num_tokens]` where each token lies in the padded `[B * L]` grid."""
    prompt_of_row: Tensor | None = None
    """`[B]` row of each completion's prompt in its bucket's prompt block; None for a prompt block."""
    visible: Tensor | None = None
    """`[B, 1, L, P + L]` bool: which keys (prompt, then own) a query sees; None for causal."""

    def pad(self, x: Tensor) -> Tensor:
        """`[num_tokens, heads, D] -> [B, L, heads, D]`, zeros in the empty cells."""
        padded: Tensor = _Scatter.apply(x, self.cells, self.num_rows * self.width)  # type: ignore[no-untyped-call]
        return padded.view(self.num_rows, self.width, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """`[B, L, H, D] -> [num_tokens, H * D]`."""
        rows: Tensor = gather_rows(x.reshape(self.num_rows * self.width, -1), self.cells)
        return rows


class Packed:
    """One micro-batch of rows, packed. Results come back in the order of the rows given.

    Args:
        rows: prompts with completions; rows with equal prompts share the prompt's computation.
        device: where the tensors go.

    Raises:
        DataError: a row without prompt or completion tokens.
    """

    def __init__(self, rows: Sequence[TokenRow], device: torch.device | str = "cpu") -> None:
        for index, row in enumerate(rows):
            if not row.prompt_ids or not row.token_ids:
                raise DataError(f"row {index}: needs at least one prompt token and one completion token to train on")
        layout = _Layout(rows)
        self.num_tokens = len(layout.ids)
        """Tokens that mean something: each prompt once, each completion without its last."""
        tail = _tail(self.num_tokens)
        self.lengths = [num_scored(row) for row in rows]
        """Scored tokens of each row."""
        self._target_tail = _tail(sum(self.lengths))
        self.buckets = layout.buckets(device)
        self.ids = torch.tensor(layout.ids + [0] * tail, dtype=torch.int64, device=device)
        """`[M]` input tokens, the tail included."""
        self.positions = torch.tensor(layout.positions + [0] * tail, dtype=torch.int64, device=device)
        """`[M]` position of each token in its own sequence."""
        self._first = torch.tensor(
            layout.first, dtype=torch.int64, device=device
        )  # [F] the last prompt token of each row whose first token is scored
        self._inner = torch.tensor(
            layout.inner, dtype=torch.int64, device=device
        )  # [S - F] inputs of the completions' own that predict
        self._routed, self._tail = layout.routed, tail
        self.targets = torch.tensor(
            [*layout.first_targets, *layout.inner_targets, *[0] * self._target_tail],
            dtype=torch.int64,
            device=device,
        )
        """`[S + tail]` the token that each of `predicting` predicts; the tail's are of no meaning."""
        self.order = torch.tensor(layout.order(), dtype=torch.int64, device=device)
        """`[S]` where each scored token lies in `targets`, row after row in the order given."""
        self._sizes = [block.num_tokens for prompts, blocks in self.buckets for block in (prompts, *blocks)] + [tail]

    def predicting(self, hidden: Tensor) -> Tensor:
        """Hidden states predicting `targets`: `[M, d] -> [S + tail, d]`. A prompt's last is repeated per completion."""
        parts = [hidden.index_select(0, self._first), gather_rows(hidden, self._inner)]
        return torch.cat([*parts, hidden[: self._target_tail].detach()])  # the tail is filling, and has no gradient

    def experts(self, decoder: Decoder) -> Tensor | None:
        """The experts that the rows say, `[M, layers with experts, k]` int64, -1 where they say none; None: nowhere.

        Raises:
            DataError: they are of another model.
        """
        if not any(self._routed):
            return None
        routers = decoder.routers
        width = sum(router.num_active for router in routers)
        wrong = {len(each) for each in self._routed if each} - {width}
        if wrong:
            raise DataError(
                f"routed_experts: {wrong.pop()} experts a token, but this model sends each to {width}; they were "
                "recorded with another model"
            )
        free = [-1] * width
        told = [list(each) or free for each in self._routed] + [free] * self._tail
        known = torch.tensor(told, dtype=torch.int64, device=self.ids.device).view(len(told), len(routers), -1)
        if int(known.max()) >= (most := len(routers[0].gate.weight)):
            raise DataError(f"routed_experts: expert {int(known.max())}, but this model has {most}")
        return known

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention for `models.decoder.Decoder.hidden_states`: `[M, H, D], [M, K, D] x 2 -> [M, H * D]`."""
        parts = iter(zip(*(torch.split(x, self._sizes) for x in (q, k, v)), strict=True))
        outputs = []
        for prompts, blocks in self.buckets:
            prompt_q, prompt_k, prompt_v = (prompts.pad(x) for x in next(parts))
            outputs.append(prompts.unpad(_attention(prompt_q, prompt_k, prompt_v, None)))
            for block in blocks:
                own_q, own_k, own_v = (block.pad(x) for x in next(parts))
                assert block.prompt_of_row is not None
                keys = torch.cat([prompt_k.index_select(0, block.prompt_of_row), own_k], dim=1)
                values = torch.cat([prompt_v.index_select(0, block.prompt_of_row), own_v], dim=1)
                outputs.append(block.unpad(_attention(own_q, keys, values, block.visible)))
        outputs.append(next(parts)[0].flatten(1).detach())  # the tail attends to nothing
        return torch.cat(outputs)


_RECURRING = 256
"""Lengths up to this recur anyway."""


def _tail(length: int) -> int:
    """Meaningless tokens to add, at most a sixteenth, so that lengths recur.

    A CPU's matrix library builds and keeps a kernel for every shape it meets: without recurring lengths each step
    would be slower and memory would grow for as long as the run lasts.
    """
    if length <= _RECURRING:
        return 0
    unit = 1 << ((length // 16).bit_length() - 1)
    return -length % unit


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]` for rows that are all different: its gradient is a copy, not a sum."""
    return _Gather.apply(x, rows)  # type: ignore[no-any-return, no-untyped-call]


def split_packed(rows: Sequence[TokenRow], max_tokens: int) -> list[list[int]]:
    """Micro-batches: row indices whose packed tokens stay within `max_tokens`, rows of one prompt together.

    Prompts whose completions have similar length share a micro-batch. A row longer than the budget stands alone; a
    group larger than it is split, and each part computes the prompt again. Every index appears exactly once.
    """
    batches: list[list[int]] = []
    used = 0
    for prompt, members in _by_completion_length(rows):
        is_open = False  # whether the current micro-batch holds this prompt
        for index in members:
            cost = len(rows[index].token_ids) - 1 + (0 if is_open else len(prompt))
            if not batches or used + cost > max_tokens:
                batches.append([])
                used, cost = 0, len(rows[index].token_ids) - 1 + len(prompt)
            batches[-1].append(index)
            used, is_open = used + cost, True
    return batches


def split_padded(rows: Sequence[TokenRow], max_tokens: int) -> list[list[int]]:
    """Micro-batches for padded rows: sorted by length, rows x longest within `max_tokens`. Every index exactly once."""
    lengths = [len(row.prompt_ids) + len(row.token_ids) for row in rows]
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[index] > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def split_groups(rows: Sequence[TokenRow], groups: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Micro-batches that never part rows of one group: as `split_padded`, group by group. Every index exactly once.

    A group larger than `max_tokens` stands alone.
    """
    lengths = [len(row.prompt_ids) + len(row.token_ids) for row in rows]
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    batches: list[list[int]] = []
    for group_rows in sorted(members.values(), key=lambda indices: max(lengths[i] for i in indices)):
        longest = max(lengths[i] for i in group_rows)
        if not batches or (len(batches[-1]) + len(group_rows)) * longest > max_tokens:
            batches.append([])
        batches[-1] += group_rows
    return batches


def _by_completion_length(rows: Sequence[TokenRow]) -> list[PromptRows]:
    """Prompts with their row indices, the longest completion of a prompt deciding its place, shortest first."""
    groups = [(prompt, sorted(members, key=lambda i: len(rows[i].token_ids))) for prompt, members in _prompts(rows)]
    return sorted(groups, key=lambda group: len(rows[group[1][-1]].token_ids))


def _prompts(rows: Sequence[TokenRow]) -> list[PromptRows]:
    """Different prompts, in order of first appearance, with the indices of their rows."""
    found: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
    for index, row in enumerate(rows):
        # Read before and after an update, the same prompt may have gone to other experts.
        routed = row.routed_experts[: len(row.prompt_ids) * routed_width(row)]
        found.setdefault((tuple(row.prompt_ids), routed), []).append(index)
    return [(prompt, members) for (prompt, _), members in found.items()]


class _Layout:
    """Decides the order of the packed tokens and keeps the books while it lays them down."""

    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self._rows = rows
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.routed: list[bytes] = []
        """The experts of each token, as its row says."""
        self._prompt_end = [0] * len(rows)
        self.inner: list[int] = []
        self.inner_targets: list[int] = []
        self._inner_start = [0] * len(rows)
        prompts = sorted(_prompts(rows), key=lambda group: -len(group[0]))
        self._plan = [self._lay_bucket(prompts[part]) for part in _similar([len(p) for p, _ in prompts], slack=64)]
        opening = [index for index, row in enumerate(rows) if row.turns[0][0] == 0]
        self.first = [self._prompt_end[index] for index in opening]
        self.first_targets = [rows[index].token_ids[0] for index in opening]

    def order(self) -> list[int]:
        """Place of each scored token among [first tokens of rows | inner tokens as laid down]."""
        places, num_first = [], 0
        for row, inner_start in zip(self._rows, self._inner_start, strict=True):
            num_inner = num_scored(row)
            if row.turns[0][0] == 0:
                places.append(num_first)
                num_first, num_inner = num_first + 1, num_inner - 1
            start = len(self.first) + inner_start
            places += range(start, start + num_inner)
        return places

    def buckets(self, device: torch.device | str) -> list[tuple[Block, list[Block]]]:
        """The prompt block and the completion blocks of each bucket."""
        return [
            (
                _prompt_block(prompt_lengths, device),
                [_completion_block(*block, prompt_lengths, device) for block in plan],
            )
            for prompt_lengths, plan in self._plan
        ]

    def _lay_bucket(self, prompts: Sequence[PromptRows]) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
        owner: dict[int, int] = {}  # row index -> place of its prompt in the bucket
        for place, (prompt, members) in enumerate(prompts):
            self._lay(prompt, 0, self._rows[members[0]])
            for index in members:
                owner[index] = place
                self._prompt_end[index] = len(self.ids) - 1
        num_tokens = {index: len(self._rows[index].token_ids) for index in owner}
        longer = sorted((index for index in owner if num_tokens[index] > 1), key=lambda index: -num_tokens[index])
        lengths = [num_tokens[index] - 1 for index in longer]
        blocks = []
        for part in _similar(lengths, slack=16):
            for index in longer[part]:
                self._lay_completion(index)
            blocks.append((lengths[part], [owner[index] for index in longer[part]]))
        return [len(prompt) for prompt, _ in prompts], blocks

    def _lay_completion(self, index: int) -> None:
        row = self._rows[index]
        self._inner_start[index] = len(self.inner)
        for start, stop in row.turns:
            first = max(start, 1)  # the very first token is predicted by the prompt's last
            self.inner.extend(range(len(self.ids) + first - 1, len(self.ids) + stop - 1))
            self.inner_targets.extend(row.token_ids[first:stop])
        self._lay(row.token_ids[:-1], len(row.prompt_ids), row)

    def _lay(self, tokens: Sequence[int], start: int, row: TokenRow) -> None:
        """Lays tokens down that begin at `start` in a row."""
        self.ids.extend(tokens)
        self.positions.extend(range(start, start + len(tokens)))
        width = routed_width(row)
        self.routed += [row.routed_experts[i * width : (i + 1) * width] for i in range(start, start + len(tokens))]


def _similar(lengths: Sequence[int], slack: int) -> list[slice]:
    """Cuts descending lengths where one falls under 3/4 of the longest and by more than `slack` tokens."""
    cuts = [0]
    for place, length in enumerate(lengths):
        longest = lengths[cuts[-1]]
        if longest - length > max(slack, longest // 4):
            cuts.append(place)
    return [slice(start, stop) for start, stop in pairwise([*cuts, len(lengths)]) if start < stop]


def _cells(lengths: Sequence[int], width: int) -> list[int]:
    return [row * width + column for row, length in enumerate(lengths) for column in range(length)]


def _prompt_block(lengths: Sequence[int], device: torch.device | str) -> Block:
    width = max(lengths)
    return Block(
        sum(lengths), len(lengths), width, torch.tensor(_cells(lengths, width), dtype=torch.int64, device=device)
    )


def _completion_block(
    lengths: Sequence[int], owners: Sequence[int], prompt_lengths: Sequence[int], device: torch.device | str
) -> Block:
    width, prompt_width = max(lengths), max(prompt_lengths)
    own = torch.ones(width, width, dtype=torch.bool).tril().expand(len(lengths), -1, -1)
    ends = torch.tensor([prompt_lengths[owner] for owner in owners])
    prompt = (torch.arange(prompt_width) < ends[:, None])[:, None].expand(-1, width, -1)
    return Block(
        num_tokens=sum(lengths),
        num_rows=len(lengths),
        width=width,
        cells=torch.tensor(_cells(lengths, width), dtype=torch.int64, device=device),
        prompt_of_row=torch.tensor(owners, dtype=torch.int64, device=device),
        visible=torch.cat([prompt, own], dim=-1).unsqueeze(1).to(device),
    )


def _attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Scaled dot-product attention, `[B, L, H, D], [B, S, K, D] x 2 -> [B, L, H, D]`; causal without `visible`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    is_half = q.is_cpu and torch.is_autocast_enabled("cpu")
    if is_half:  # of attention, the backward pass of a CPU takes ten times as long in bf16 as in fp32
        q, k, v = (x.float() for x in (q, k, v))
    with torch.autocast(q.device.type, enabled=False) if is_half else nullcontext():
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=visible is None, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out.transpose(1, 2)


class _Scatter(torch.autograd.Function):
    """Rows of `x` into the given cells of a zero grid; the gradient is the gather of the same cells."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Tensor, num_cells: int) -> Tensor:
        ctx.save_for_backward(cells)
        return x.new_zeros(num_cells, *x.shape[1:]).index_copy_(0, cells, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (cells,) = ctx.saved_tensors
        return grads[0].index_select(0, cells), None, None


class _Gather(torch.autograd.Function):
    """The inverse of `_Scatter`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        grad = grads[0]
        return grad.new_zeros(ctx.num_rows, *grad.shape[1:]).index_copy_(0, rows, grad), None
