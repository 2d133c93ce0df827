"""The native backend: packed forward pass, preallocated key/value cache, dense rows.

Keys and values of a layer are one tensor, `[2, rows, K, T, D]`: a decode step writes both at once, and both of its
products are batched matrix products over contiguous positions. Reads stop at the longest active row, rounded up to a
block.

Shape legend: L layers, S slots, n active rows, K key/value heads, G query heads per key/value head, D head size,
T cached positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamarl.core.errors import ConfigError
from llamarl.generation.adapters import HeldTensors, adapt
from llamarl.generation.batcher import Batcher
from llamarl.generation.int8 import Int8, check_int8, find_outliers
from llamarl.models.decoder import Decoder, Geometry, why_unsupported
from llamarl.models.lora_config import LoraConfig
from llamarl.models.probe import probe_logprobs

Precision = Literal["fp32", "bf16", "int8"]

_BLOCK = 16
"""Cache reads are rounded up to this many positions, so that the views of `_spans_of` last so many steps."""
_PREFILL_TOKENS = 4096
"""Most tokens of one packed prefill pass."""


class KVCache:
    """Keys and values, one tensor `[2, rows, K, T, D]` a layer, grown when there are more rows or longer ones."""

    def __init__(self, geometry: Geometry, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry, self.slots = geometry, slots
        self.num_rows = self.capacity = 0
        """Rows there are, and positions that each has room for."""
        self.layers = [torch.empty(0, dtype=dtype, device=device)] * geometry.num_layers

    def reserve(self, length: int, num_rows: int = 0) -> None:
        """Makes room for `length` positions in each of `num_rows` rows; what is cached stays."""
        g, old_rows, old_capacity = self.geometry, self.num_rows, self.capacity
        if length > self.capacity:
            self.capacity = min(max(length, old_capacity + old_capacity // 2, 64), max(g.max_positions, length))
            self.capacity += -self.capacity % _BLOCK
        if num_rows > self.num_rows:
            self.num_rows = min(max(num_rows, old_rows + old_rows // 2), self.slots)
        if (self.num_rows, self.capacity) == (old_rows, old_capacity):
            return
        for index, layer in enumerate(self.layers):  # one by one, so that no second cache is held meanwhile
            # A position that was never written is masked, but must be a number.
            grown = layer.new_zeros(2, self.num_rows, g.num_kv_heads, self.capacity, g.head_dim)
            if old_rows and old_capacity:
                grown[:, :old_rows, :, :old_capacity] = layer
            self.layers[index] = grown

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copies the first `length` positions of rows `sources` over rows `targets`, all at once: rows may swap."""
        self.reserve(length, 1 + max(targets))
        to, origin = (torch.tensor(rows, device=self.layers[0].device) for rows in (targets, sources))
        for layer in self.layers:
            layer[:, to, :, :length] = layer[:, origin, :, :length]


class NativeBackend:
    """Runs a fused `Decoder` over dense cache rows.

    Args:
        decoder: the model.
        slots: most rows.
        adapters: those beside the decoder's weights, which alone are refreshed then.
    """

    can_reuse = True

    def __init__(self, decoder: Decoder, slots: int, adapters: HeldTensors | None = None) -> None:
        self.decoder, self.geometry = decoder, decoder.geometry
        self._adapters, self._refreshed = adapters, adapters or decoder
        self.device, self.max_positions = decoder.device, decoder.geometry.max_positions
        self.vocab_size = decoder.geometry.vocab_size
        self.cache = KVCache(decoder.geometry, slots, decoder.dtype, self.device)
        self._lengths = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self._row_index = torch.arange(slots, device=self.device)
        self._zero, self._minus_infinity = decoder.norm.new_tensor([0.0, -torch.inf])
        self._position_index = self._row_index[:0]
        self._spans: list[tuple[Tensor, Tensor, Tensor]] = []
        self._spans_key: tuple[int, ...] = ()

    @torch.no_grad()
    def prefill(
        self, sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], num_known: Sequence[int]
    ) -> Tensor:
        """Reads each sequence once into its cache rows; logits `[sequences, V]` after the last tokens.

        Args:
            sequences: token ids.
            rows: the cache rows of each sequence.
            num_known: how many of its first tokens these rows hold already; fewer than it has.
        """
        self.cache.reserve(max(map(len, sequences)) + 1, 1 + max(map(max, rows)))
        logits: list[Tensor] = [torch.empty(0)] * len(sequences)
        num_new = [len(sequence) - known for sequence, known in zip(sequences, num_known, strict=True)]
        fresh = [index for index, known in enumerate(num_known) if not known]
        begun = [index for index, known in enumerate(num_known) if known]
        for part in _passes(fresh, num_new):
            for index, row in zip(part, self._read([sequences[i] for i in part], [rows[i] for i in part]), strict=True):
                logits[index] = row
        for part in _passes(begun, num_new):
            jobs = [(sequences[index], rows[index], num_known[index]) for index in part]
            for index, row in zip(part, self._read_on(jobs), strict=True):
                logits[index] = row
        return torch.stack(logits)

    def _read(self, sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> Tensor:
        """Sequences of which nothing is known: padded to one length for attention."""
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
            keys, values = self.cache.layers[layer]
            keys[targets, :, :longest], values[targets, :, :longest] = padded[1][owner], padded[2][owner]
            out = F.scaled_dot_product_attention(
                padded[0], padded[1], padded[2], is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
            )
            return out.transpose(1, 2)[sequence, positions].flatten(1)

        hidden = self.decoder.hidden_states(ids, positions, attend, longest)
        self._lengths[targets] = lengths.to(self.device)[owner]
        return self.decoder.head(hidden[ends.to(self.device) - 1])

    def _pad(self, x: Tensor, sequence: Tensor, positions: Tensor, num_sequences: int, longest: int) -> Tensor:
        """`[M, heads, D]` packed -> `[sequences, heads, T, D]`, zeros behind the end."""
        padded = x.new_zeros(num_sequences, longest, x.shape[1], x.shape[2])
        padded[sequence, positions] = x
        return padded.transpose(1, 2)

    def _read_on(self, jobs: Sequence[tuple[Sequence[int], Sequence[int], int]]) -> Tensor:
        """Sequences whose first tokens are cached (sequence, rows, how many): attention over one row after another."""
        ids: list[int] = []
        positions, parts = [], []
        for sequence, targets, known in jobs:
            span = torch.arange(known, len(sequence), device=self.device)
            is_past = torch.arange(len(sequence), device=self.device) <= span.unsqueeze(1)
            parts.append((slice(len(ids), len(ids) + len(span)), list(targets), slice(known, len(sequence)), is_past))
            positions.append(span)
            ids += sequence[known:]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cached, mixed = self.cache.layers[layer], []
            for tokens, targets, span, is_past in parts:
                cached[:, targets, :, span] = torch.stack((k[tokens], v[tokens])).transpose(1, 2).unsqueeze(1)
                keys, values = cached[:, targets[:1], :, : span.stop]
                queries = q[tokens].transpose(0, 1).unsqueeze(0)
                out = F.scaled_dot_product_attention(
                    queries, keys, values, attn_mask=is_past, enable_gqa=q.shape[1] != k.shape[1]
                )
                mixed.append(out[0].transpose(0, 1).flatten(1))
            return torch.cat(mixed)

        longest = max(len(sequence) for sequence, _, _ in jobs)
        tokens = torch.tensor(ids, device=self.device)
        hidden = self.decoder.hidden_states(tokens, torch.cat(positions), attend, longest)
        for sequence, targets, _ in jobs:
            self._lengths[list(targets)] = len(sequence)
        return self.decoder.head(hidden[[tokens.stop - 1 for tokens, *_ in parts]])

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
        rows, spans = self._row_index[:n], self._spans_of(n, num_read)
        mixed = mask.new_zeros(self.decoder.num_computed(n), g.num_heads * g.head_dim)  # serves all layers
        into = mixed[:n].view(batch, per_kv, g.head_dim)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cached, keys, values = spans[layer]
            cached[:, rows, :, positions] = torch.stack((k, v), dim=1)
            scores = torch.baddbmm(mask, q.reshape(batch, per_kv, g.head_dim), keys, alpha=scale)
            torch.bmm(torch.softmax(scores, dim=-1), values, out=into)
            return mixed

        hidden = self.decoder.hidden_states(tokens, positions, attend, longest)
        self._lengths[:n] += 1
        return self.decoder.head(hidden)

    def _spans_of(self, num_rows: int, length: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns the cache of each layer: keys `[n * K, D, T]` and values `[n * K, T, D]` of the first rows.

        Made anew only when they change, since a decode step of few rows is as slow as its many small calls.
        """
        key = (num_rows, length, self.cache.num_rows, self.cache.capacity)
        if key != self._spans_key:
            batch, head_dim = num_rows * self.geometry.num_kv_heads, self.geometry.head_dim
            self._spans = []
            for cached in self.cache.layers:
                keys, values = cached.view(2, -1, self.cache.capacity, head_dim)[:, :batch, :length]
                self._spans.append((cached, keys.transpose(1, 2), values))
            self._spans_key = key
        return self._spans

    def _positions(self, length: int) -> Tensor:
        if length > len(self._position_index):
            self._position_index = torch.arange(self.cache.capacity, device=self.device)
        return self._position_index[:length]

    def move(self, sources: Sequence[int], targets: Sequence[int], longest: int) -> None:
        """Rows `sources` are copied over rows `targets`, all at once; none has more than `longest` tokens."""
        self.cache.move(sources, targets, longest)
        self._lengths[list(targets)] = self._lengths[list(sources)]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes new weights; the cache is left as it is."""
        self._refreshed.copy_from(tensors)

    def named_views(self) -> Mapping[str, Tensor]:
        """The weights that updates reach, by parameter name; quantised ones are left out."""
        return self._refreshed.named_views()

    def mismatches(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names whose held value is not that of `tensors`, up to the rounding of the precision."""
        return self._refreshed.mismatches(tensors)

    def memory(self) -> tuple[int, int]:
        """Bytes of its weights, and of the rows of cache that hold or held anything."""
        weights = self.decoder.num_bytes + (0 if self._adapters is None else self._adapters.num_bytes)
        return weights, sum(layer.nbytes for layer in self.cache.layers)

    def probe_logprobs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Log-probs of `ids[1:]`, each given the ids before it."""
        return probe_logprobs(self.decoder, ids)


def _passes(indices: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """`indices` in order, in parts of at most `_PREFILL_TOKENS` tokens, or of one sequence that has more."""
    part: list[int] = []
    num_tokens = 0
    for index in indices:
        if part and num_tokens + lengths[index] > _PREFILL_TOKENS:
            yield part
            part, num_tokens = [], 0
        part.append(index)
        num_tokens += lengths[index]
    if part:
        yield part


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
        lora: LoraConfig | None = None,
    ) -> None:
        reason = why_unsupported(model.config)
        if reason is not None:
            raise ConfigError(f"the native generator cannot run this model: {reason}; use TransformersGenerator")
        self.decoder = fused_decoder(model, precision, device)
        adapters = None if lora is None else adapt(self.decoder, model, lora)
        super().__init__(
            NativeBackend(self.decoder, slots, adapters),
            eos_ids=eos_ids,
            decode=decode,
            slots=slots,
            on_update=on_update,
            version=version,
        )


def fused_decoder(model: nn.Module, precision: Precision, device: torch.device | str = "cpu") -> Decoder:
    """The decoder of a generator at `precision`. Raises `ConfigError` where this machine cannot run it."""
    if precision == "fp32":
        return Decoder.fuse(model, torch.float32, device)
    if precision == "bf16":
        return Decoder.fuse(model, torch.bfloat16, device)
    if precision == "int8":
        check_int8(device)
        outliers = find_outliers(model)
        return Decoder.fuse(
            model, torch.float32, device, make=lambda name, weight, bias: Int8(weight, bias, outliers[name])
        )
    raise ConfigError(f"precision {precision!r} is unknown; choose fp32, bf16 or int8")
