"""The native backend: packed forward pass, preallocated key/value cache, dense rows.

Keys are stored transposed, `[rows, K, D, T]`, values as `[rows, K, T, D]`: then both products of a decode step are
batched matrix products that read memory in order. Reads stop at the longest active row, rounded up to a block.

Shape legend: L layers, S slots, n active rows, K key/value heads, G query heads per key/value head, D head size,
T cached positions, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamarl.core.errors import ConfigError
from llamarl.generation.batcher import Batcher
from llamarl.generation.int8 import Int8, check_int8
from llamarl.models.decoder import Decoder, Geometry, probe_logprobs, why_unsupported

Precision = Literal["fp32", "bf16", "int8"]

_BLOCK = 16
"""Cache reads are rounded up to this many positions."""
_PREFILL_TOKENS = 4096
"""Most tokens of one packed prefill pass."""


class KVCache:
    """Keys and values of the active rows, grown when rows get longer."""

    def __init__(self, geometry: Geometry, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry, self.slots = geometry, slots
        self.keys = torch.empty(0, dtype=dtype, device=device)
        self.values = torch.empty(0, dtype=dtype, device=device)
        self.capacity = 0

    def reserve(self, length: int) -> None:
        """Makes room for `length` positions in every row; what is cached stays."""
        if length <= self.capacity:
            return
        g, old = self.geometry, self.capacity
        self.capacity = min(max(length, 2 * old, 64), max(g.max_positions, length))
        self.capacity += -self.capacity % _BLOCK
        keys = self.keys.new_zeros(g.num_layers, self.slots, g.num_kv_heads, g.head_dim, self.capacity)
        values = self.values.new_zeros(g.num_layers, self.slots, g.num_kv_heads, self.capacity, g.head_dim)
        if old:
            keys[..., :old], values[..., :old, :] = self.keys, self.values
        self.keys, self.values = keys, values

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copies the first `length` positions of rows `sources` over rows `targets`."""
        self.keys[:, targets, :, :, :length] = self.keys[:, sources, :, :, :length]
        self.values[:, targets, :, :length] = self.values[:, sources, :, :length]


class NativeBackend:
    """Runs a fused `Decoder` over dense cache rows."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        self.decoder, self.geometry = decoder, decoder.geometry
        self.device, self.max_positions = decoder.device, decoder.geometry.max_positions
        self.vocab_size = decoder.geometry.vocab_size
        self.cache = KVCache(decoder.geometry, slots, decoder.dtype, self.device)
        self._lengths = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self._row_index = torch.arange(slots * decoder.geometry.num_kv_heads, device=self.device)
        self._zero, self._minus_infinity = decoder.norm.new_tensor([0.0, -torch.inf])
        self._position_index = self._row_index[:0]

    @torch.no_grad()
    def prefill(self, sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> Tensor:
        """Reads each sequence once into its cache rows; logits `[sequences, V]` after the last tokens."""
        self.cache.reserve(max(map(len, sequences)) + 1)
        logits, start = [], 0
        while start < len(sequences):
            end, num_tokens = start + 1, len(sequences[start])
            while end < len(sequences) and num_tokens + len(sequences[end]) <= _PREFILL_TOKENS:
                num_tokens += len(sequences[end])
                end += 1
            logits.append(self._prefill(sequences[start:end], rows[start:end]))
            start = end
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def _prefill(self, sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(s) for s in sequences])
        longest = int(lengths.max())
        sequence = torch.arange(len(sequences)).repeat_interleave(lengths).to(self.device)
        ends = lengths.cumsum(0)
        starts = (ends - lengths).to(self.device)
        positions = torch.arange(int(ends[-1]), device=self.device) - starts[sequence]
        ids = torch.tensor([token for s in sequences for token in s], device=self.device)
        owner = torch.tensor([i for i, targets in enumerate(rows) for _ in targets], device=self.device)
        targets = torch.tensor([row for targets in rows for row in targets], device=self.device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            padded = [self._pad(x, sequence, positions, len(sequences), longest) for x in (q, k, v)]
            self.cache.keys[layer, targets, :, :, :longest] = padded[1][owner].transpose(2, 3)
            self.cache.values[layer, targets, :, :longest] = padded[2][owner]
            out = F.scaled_dot_product_attention(
                padded[0], padded[1], padded[2], is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
            )
            return out.transpose(1, 2)[sequence, positions].flatten(1)

        hidden = self.decoder.hidden(ids, positions, attend, longest)
        self._lengths[targets] = lengths.to(self.device)[owner]
        return self.decoder.head(hidden[ends.to(self.device) - 1])

    def _pad(self, x: Tensor, sequence: Tensor, positions: Tensor, num_sequences: int, longest: int) -> Tensor:
        """`[M, heads, D]` packed -> `[sequences, heads, T, D]`, zeros behind the end."""
        padded = x.new_zeros(num_sequences, longest, x.shape[1], x.shape[2])
        padded[sequence, positions] = x
        return padded.transpose(1, 2)

    @torch.no_grad()
    def decode(self, tokens: Tensor, longest: int) -> Tensor:
        """Appends `tokens [n]` to rows 0..n-1, whose longest then has `longest` tokens; logits `[n, V]`."""
        self.cache.reserve(longest)
        n, g = len(tokens), self.geometry
        num_read = min(longest + -longest % _BLOCK, self.cache.capacity)
        positions = self._lengths[:n].clone()
        is_past = self._positions(num_read) > positions.unsqueeze(1)
        mask = torch.where(is_past, self._minus_infinity, self._zero).view(n, 1, 1, num_read)
        mask = mask.expand(n, g.num_kv_heads, 1, num_read).reshape(-1, 1, num_read)
        batch, per_kv, scale = n * g.num_kv_heads, g.num_heads // g.num_kv_heads, g.head_dim**-0.5
        head_row, head_position = self._row_index[:batch], positions.repeat_interleave(g.num_kv_heads)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys = self.cache.keys[layer].view(-1, g.head_dim, self.cache.capacity)
            values = self.cache.values[layer].view(-1, self.cache.capacity, g.head_dim)
            keys[head_row, :, head_position] = k.reshape(batch, g.head_dim)
            values[head_row, head_position] = v.reshape(batch, g.head_dim)
            queries = q.reshape(batch, per_kv, g.head_dim)
            scores = torch.baddbmm(mask, queries, keys[:batch, :, :num_read], alpha=scale)
            return torch.bmm(torch.softmax(scores, dim=-1), values[:batch, :num_read]).view(n, -1)

        hidden = self.decoder.hidden(tokens, positions, attend, longest)
        self._lengths[:n] += 1
        return self.decoder.head(hidden)

    def _positions(self, length: int) -> Tensor:
        if length > len(self._position_index):
            self._position_index = torch.arange(self.cache.capacity, device=self.device)
        return self._position_index[:length]

    def move(self, sources: Tensor, targets: Tensor, longest: int) -> None:
        """Rows `sources` take the places `targets`."""
        self.cache.move(sources, targets, longest)
        self._lengths[targets] = self._lengths[sources]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes new weights; the cache is left as it is."""
        self.decoder.copy_from(tensors)

    def named_views(self) -> Mapping[str, Tensor]:
        """The weights it holds, by parameter name; quantised ones are left out."""
        return self.decoder.named_views()

    def mismatches(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names whose held value is not that of `tensors`, up to the rounding of the precision."""
        return self.decoder.mismatches(tensors)

    def probe_logprobs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Log-probs of `ids[1:]`, each given the ids before it."""
        return probe_logprobs(self.decoder, ids)


class NativeGenerator(Batcher):
    """Continuous batching over our own forward pass. Synchronous: call `step`, or `generate` for everything at once.

    Example:
        >>> generator = NativeGenerator(model, eos_ids=(2,), decode=tokenizer.decode)       # doctest: +SKIP
        >>> generator.generate([GenerationRequest(0, (1, 5, 9), seeds=(7, 8), sampling=Sampling())])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eos_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        precision: Precision = "fp32",
        slots: int = 64,
        on_update: Literal["recompute", "keep"] = "recompute",
        device: torch.device | str = "cpu",
        version: int = 0,
    ) -> None:
        reason = why_unsupported(model.config)
        if reason is not None:
            raise ConfigError(f"the native generator cannot run this model: {reason}; use TransformersGenerator")
        self.decoder = fused_decoder(model, precision, device)
        super().__init__(
            NativeBackend(self.decoder, slots),
            eos_ids=eos_ids,
            decode=decode,
            slots=slots,
            on_update=on_update,
            version=version,
        )


def fused_decoder(model: nn.Module, precision: Precision, device: torch.device | str = "cpu") -> Decoder:
    """The decoder of a generator at `precision`. Raises `ConfigError` where this machine cannot run it."""
    if precision == "fp32":
        return Decoder.fused(model, torch.float32, device)
    if precision == "bf16":
        return Decoder.fused(model, torch.bfloat16, device)
    if precision == "int8":
        check_int8(device)
        return Decoder.fused(model, torch.float32, device, make=Int8)
    raise ConfigError(f"precision {precision!r} is unknown; choose fp32, bf16 or int8")
