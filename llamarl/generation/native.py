"""The native backend: packed forward pass, key/value cache in blocks (see `cache`).

Shape legend: n active rows, K key/value heads, D head size, M tokens of a pass, T positions, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamarl.core.errors import ConfigError
from llamarl.generation.adapters import HeldTensors, adapt
from llamarl.generation.batcher import Batcher
from llamarl.generation.blocks import Block, BlockPool
from llamarl.generation.cache import BlockCache
from llamarl.generation.int8 import Int8, check_int8, find_outliers
from llamarl.generation.routing import RoutedRows
from llamarl.models.decoder import Decoder, why_unsupported
from llamarl.models.lora_config import LoraConfig
from llamarl.models.probe import probe_logprobs

Precision = Literal["fp32", "bf16", "int8"]
MAX_EXPERTS = 256
"""An expert's number takes one byte in a record."""

_PREFILL_TOKENS = 4096
"""Most tokens of one prefill pass, unless one sequence has more."""


_Part = tuple[Sequence[int], Sequence[int], int]
"""A sequence to read, its rows, and how many of its first tokens they hold already."""


class NativeBackend:
    """Runs a fused `Decoder` over a cache in blocks.

    Args:
        decoder: the model.
        slots: most rows.
        adapters: those beside the decoder's weights, which alone are refreshed then.
        routed: records the experts that each token goes to; None: nobody asks.
    """

    can_reuse = True

    def __init__(
        self,
        decoder: Decoder,
        slots: int,
        adapters: HeldTensors | None = None,
        routed: RoutedRows | None = None,
    ) -> None:
        self._routed = routed
        self.decoder, self.geometry = decoder, decoder.geometry
        self._adapters, self._refreshed = adapters, adapters or decoder
        self.device, self.max_positions = decoder.device, decoder.geometry.max_positions
        self.vocab_size = decoder.geometry.vocab_size
        self.cache = BlockCache(decoder.geometry, slots, decoder.dtype, self.device)

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
        logits: list[Tensor] = [torch.empty(0)] * len(sequences)
        parts = list(zip(sequences, rows, num_known, strict=True))
        for read, are_known in ((self._read, False), (self._read_on, True)):
            chosen = [index for index, known in enumerate(num_known) if bool(known) == are_known]
            for part in _passes(chosen, [len(sequence) - known for sequence, _, known in parts]):
                for index, found in zip(part, read([parts[index] for index in part]), strict=True):
                    logits[index] = found
        return torch.stack(logits)

    def _read(self, parts: Sequence[_Part]) -> Tensor:
        """Sequences of which nothing is known: padded to one length for attention."""
        lengths = torch.tensor([len(sequence) for sequence, *_ in parts])
        longest = int(lengths.max())
        sequence = torch.arange(len(parts)).repeat_interleave(lengths).to(self.device)
        ends = lengths.cumsum(0)
        starts = (ends - lengths).to(self.device)
        positions = torch.arange(int(ends[-1]), device=self.device) - starts[sequence]
        ids = torch.tensor([token for tokens, *_ in parts for token in tokens], device=self.device)
        write = self._writer([place for s, rows, _ in parts for place in self.cache.begin(rows, 0, len(s))])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            write(layer, k, v)
            padded = [self._pad(x, sequence, positions, len(parts), longest) for x in (q, k, v)]
            out = F.scaled_dot_product_attention(
                padded[0], padded[1], padded[2], is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
            )
            return out.transpose(1, 2)[sequence, positions].flatten(1)

        hidden = self.decoder.hidden_states(ids, positions, attend, longest)
        self._note_experts(parts)
        return self.decoder.head(hidden[ends.to(self.device) - 1])

    def _note_experts(self, parts: Sequence[_Part]) -> None:
        """Notes the experts of a pass that read these parts, each behind what it knows."""
        if self._routed is None:
            return
        lengths = [len(sequence) - known for sequence, _, known in parts]
        experts = torch.split(self.decoder.chosen_experts(sum(lengths)), lengths)
        for (_, rows, known), own in zip(parts, experts, strict=True):
            self._routed.read(rows, known, own)

    def _pad(self, x: Tensor, sequence: Tensor, positions: Tensor, num_sequences: int, longest: int) -> Tensor:
        """`[M, heads, D]` packed -> `[sequences, heads, T, D]`, zeros behind the end."""
        padded = x.new_zeros(num_sequences, longest, x.shape[1], x.shape[2])
        padded[sequence, positions] = x
        return padded.transpose(1, 2)

    def _read_on(self, parts: Sequence[_Part]) -> Tensor:
        """Sequences whose first tokens are cached: attention over one after another."""
        ids: list[int] = []
        places, positions, jobs = [], [], []
        for sequence, rows, known in parts:
            places += self.cache.begin(rows, known, len(sequence))
            span = torch.arange(known, len(sequence), device=self.device)
            is_past = torch.arange(len(sequence), device=self.device) <= span.unsqueeze(1)
            jobs.append((slice(len(ids), len(ids) + len(span)), self._reader(rows[0], known), is_past))
            positions.append(span)
            ids += sequence[known:]
        write = self._writer(places)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            write(layer, k, v)
            mixed = []
            for tokens, read, is_past in jobs:
                past = read(layer)  # [T, 2, K, D]
                keys, values = torch.cat([past, torch.stack((k[tokens], v[tokens]), dim=1)]).permute(1, 2, 0, 3)
                out = F.scaled_dot_product_attention(
                    q[tokens].transpose(0, 1).unsqueeze(0),
                    keys.unsqueeze(0),
                    values.unsqueeze(0),
                    attn_mask=is_past,
                    enable_gqa=q.shape[1] != k.shape[1],
                )
                mixed.append(out[0].transpose(0, 1).flatten(1))
            return torch.cat(mixed)

        longest = max(len(sequence) for sequence, *_ in parts)
        hidden = self.decoder.hidden_states(
            torch.tensor(ids, device=self.device), torch.cat(positions), attend, longest
        )
        self._note_experts(parts)
        return self.decoder.head(hidden[[tokens.stop - 1 for tokens, *_ in jobs]])

    def _writer(self, places: Sequence[tuple[Block, int]]) -> Callable[[int, Tensor, Tensor], None]:
        """Puts keys and values `[M, K, D]` of a layer into their places."""
        by_pool: dict[BlockPool, list[tuple[int, int, int]]] = {}
        for token, (block, position) in enumerate(places):
            by_pool.setdefault(block.pool, []).append((token, block.index, position))
        parts = [(pool, torch.tensor(found, device=self.device).unbind(1)) for pool, found in by_pool.items()]

        def write(layer: int, k: Tensor, v: Tensor) -> None:
            pairs = torch.stack((k, v), dim=1)
            for pool, (tokens, blocks, positions) in parts:
                pool.layers[layer][:, blocks, :, positions] = pairs[tokens]

        return write

    def _reader(self, row: int, num_tokens: int) -> Callable[[int], Tensor]:
        """Gets keys and values `[T, 2, K, D]` of a row's first tokens from a layer."""
        by_pool: dict[BlockPool, list[tuple[int, int]]] = {}
        for block in self.cache.chain(row):
            num_wanted = min(block.num_tokens, num_tokens)
            num_tokens -= num_wanted
            if num_wanted:
                by_pool.setdefault(block.pool, []).extend((block.index, position) for position in range(num_wanted))
        parts = [(pool, torch.tensor(found, device=self.device).unbind(1)) for pool, found in by_pool.items()]

        def read(layer: int) -> Tensor:
            return torch.cat([pool.layers[layer][:, blocks, :, positions] for pool, (blocks, positions) in parts])

        return read

    @torch.no_grad()
    def decode(self, tokens: Tensor, longest: int) -> Tensor:
        """Appends `tokens [n]` to rows 0..n-1, whose longest then has `longest` tokens; logits `[n, V]`."""
        positions = self.cache.advance(len(tokens))
        hidden = self.decoder.hidden_states(tokens, positions, self.cache.attend, longest)
        if self._routed is not None:
            self._routed.append(self.decoder.chosen_experts(len(tokens)))
        return self.decoder.head(hidden)

    def routed_experts(self, row: int) -> bytes:
        """The experts of all tokens that a row holds (`Trajectory.routed_experts`); empty where nobody asked."""
        return b"" if self._routed is None else self._routed.of(row)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Rows `targets` hold from now on what rows `sources` held before, all at once; nothing is copied."""
        self.cache.move(sources, targets)
        if self._routed is not None:
            self._routed.move(sources, targets)

    def hold(self, rows: Collection[int]) -> None:
        """Frees the cache of all rows but these."""
        self.cache.hold(rows)
        if self._routed is not None:
            self._routed.hold(rows)

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
        """Bytes of its weights, and of its cache."""
        weights = self.decoder.num_bytes + (0 if self._adapters is None else self._adapters.num_bytes)
        return weights, self.cache.num_bytes

    def probe_logprobs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Log-probs of `ids[1:]`, each given the ids before it."""
        return probe_logprobs(self.decoder, ids)


def _passes(indices: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """`indices`, the longest first, in parts that take at most `_PREFILL_TOKENS` tokens when they are padded."""
    part: list[int] = []
    for index in sorted(indices, key=lambda index: -lengths[index]):
        if part and (len(part) + 1) * lengths[part[0]] > _PREFILL_TOKENS:
            yield part
            part = []
        part.append(index)
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
        routed_experts: bool = False,
    ) -> None:
        reason = why_unsupported(model.config)
        if reason is not None:
            raise ConfigError(f"the native generator cannot run this model: {reason}; use TransformersGenerator")
        self.decoder = fused_decoder(model, precision, device)
        adapters = None if lora is None else adapt(self.decoder, model, lora)
        if routed_experts:
            _check_routers(self.decoder)
        super().__init__(
            NativeBackend(self.decoder, slots, adapters, RoutedRows() if routed_experts else None),
            eos_ids=eos_ids,
            decode=decode,
            slots=slots,
            on_update=on_update,
            version=version,
        )


def _check_routers(decoder: Decoder) -> None:
    most = max((len(router.gate.weight) for router in decoder.routers), default=0)
    if not 0 < most <= MAX_EXPERTS:
        raise ConfigError(
            f"generator.routed_experts: this model has {most} experts, and a record has room for 1 to {MAX_EXPERTS}; "
            "leave it out"
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
