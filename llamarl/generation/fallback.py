"""The backend for architectures that our own forward pass doesn't cover: the module's own forward, with its own cache.

All rows end at the same column of the cache; shorter ones begin later, behind columns that the attention mask hides:

    row 0   . . . a b c d e
    row 1   . f g h i j k l        a new token of each row is one more column
    row 2   . . . . . . m n

A prompt is read alone, so nothing in it is padding. Modules that keep another kind of state (or none), found by a try
at the start, read each row's whole sequence again in every step: right for any causal language model, and slow. Slots,
seeds, filters, log-probs, stop rules and versions are the batcher's, so they are the same as those of the native
generator.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamarl.generation.adapters import HeldTensors
from llamarl.generation.batcher import Batcher
from llamarl.models.checkpoint import new_cache
from llamarl.models.decoder import named_tensors
from llamarl.models.lora import Adapters
from llamarl.models.lora_config import LoraConfig
from llamarl.models.probe import arbitrary_ids
from llamarl.models.rope import rope_threshold, split_by_side

_log = logging.getLogger(__name__)

_TRIED_TOKENS = 10
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Largest gap between log-probs with the cache and those without, in the try at the start, by dtype."""


class TransformersBackend:
    """Rows of a module's own cache, grouped by the side of a length threshold where the module has one."""

    can_reuse = False
    """A prompt is read whole."""

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        lora: LoraConfig | None = None,
    ) -> None:
        self.device = torch.device(device)
        own: Any = copy.deepcopy(model)
        self.model: Any = own.to(device=self.device, dtype=dtype).eval()
        # Their first values don't matter: nothing is drawn before the trainer's arrive.
        adapters = None if lora is None else Adapters(self.model, lora, seed=0)
        self._refreshed = HeldTensors(dict(named_tensors(self.model)) if adapters is None else adapters.tensors())
        config: Any = self.model.config.get_text_config()
        self.max_positions: int = getattr(config, "max_position_embeddings", 1 << 30)
        self.vocab_size: int = config.vocab_size
        self._threshold = rope_threshold(self.model.config)
        self._accepts = inspect.signature(self.model.forward).parameters
        # transformers renames it
        self._cache_name = next((name for name in ("cache", "past_key_values") if name in self._accepts), None)
        self._sequences: dict[int, list[int]] = {}  # by row
        self._groups = [_Aligned(), _Aligned()]  # rows below the threshold, and beyond it
        self.has_cache = self._works_with_cache(dtype)

    @torch.no_grad()
    def prefill(
        self, sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], num_known: Sequence[int]
    ) -> Tensor:
        """Reads each sequence once for its rows; logits `[sequences, V]` after the last tokens."""
        self._forget({row for targets in rows for row in targets})
        for sequence, targets in zip(sequences, rows, strict=True):
            self._sequences |= {row: list(sequence) for row in targets}
        return self._read(rows) if self.has_cache else self._read_again(sequences)

    @torch.no_grad()
    def decode(self, tokens: Tensor, longest: int) -> Tensor:
        """Appends `tokens [n]` to rows 0..n-1, whose longest then has `longest` tokens; logits `[n, V]`."""
        n = len(tokens)
        self._forget({row for row in self._sequences if row >= n})  # those that left
        for row, token in enumerate(tokens.tolist()):
            self._sequences[row].append(token)
        if not self.has_cache:
            return self._read_again([self._sequences[row] for row in range(n)])
        logits: list[Tensor] = [torch.empty(0)] * n
        short = self._groups[False]
        crossing = [row for row in short.rows if self._is_long(self._sequences[row])]
        short.keep(set(short.rows).difference(crossing))
        for group in self._groups:
            if group.rows:
                for row, found in zip(group.rows, self._extend(group, tokens[group.rows]), strict=True):
                    logits[row] = found
        if crossing:  # all their tokens turn by other angles now
            for row, found in zip(crossing, self._read([[row] for row in crossing]), strict=True):
                logits[row] = found
        return torch.stack(logits)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Rows `sources`, which are given up, take the places `targets`."""
        self._forget(set(targets))
        names = dict(zip(sources, targets, strict=True))
        self._sequences = {names.get(row, row): tokens for row, tokens in self._sequences.items()}
        for group in self._groups:
            group.rows = [names.get(row, row) for row in group.rows]

    def hold(self, rows: Collection[int]) -> None:
        """Frees the cache of all rows but these."""
        self._forget(self._sequences.keys() - set(rows))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes new weights; the cache is left as it is.

        Raises:
            WeightSyncError: names are missing or unknown, or a shape differs; nothing has been copied then.
        """
        self._refreshed.copy_from(tensors)

    def named_views(self) -> Mapping[str, Tensor]:
        """The weights that updates reach, by parameter name."""
        return self._refreshed.named_views()

    def mismatches(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names whose held value is not that of `tensors`, up to the rounding to this dtype."""
        return self._refreshed.mismatches(tensors)

    def memory(self) -> tuple[int, int]:
        """Bytes of its weights, and of the caches that its module holds."""
        caches = [group.cache for group in self._groups if group.cache is not None]
        tensors = [t for cache in caches for layer in cache.layers for t in (layer.keys, layer.values)]
        return sum(p.nbytes for p in self.model.parameters()), sum(t.nbytes for t in tensors if t is not None)

    def probe_logprobs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Log-probs of `ids[1:]`, each given the ids before it."""
        tokens = torch.tensor([ids], device=self.device)
        with torch.no_grad():
            logprobs = torch.log_softmax(self.model(input_ids=tokens, use_cache=False).logits[0, :-1].float(), dim=-1)
        return tuple(logprobs.gather(1, tokens[0, 1:, None])[:, 0].tolist())

    def routed_experts(self, row: int) -> bytes:
        """Nothing: a module's own forward pass does not tell."""
        return b""

    def _is_long(self, sequence: Sequence[int]) -> bool:
        return self._threshold is not None and len(sequence) > self._threshold

    def _forget(self, rows: set[int]) -> None:
        for row in rows & self._sequences.keys():
            del self._sequences[row]
        for group in self._groups:
            group.keep(set(group.rows) - rows)

    def _read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Reads the sequence of each list of rows, all of which hold it, into the cache; logits `[lists, V]`."""
        logits = []
        read: tuple[list[_Part], list[_Part]] = ([], [])
        for targets in rows:
            sequence = self._sequences[targets[0]]
            cache = new_cache()
            ids = torch.tensor([sequence], device=self.device)
            positions = torch.arange(len(sequence), device=self.device).unsqueeze(0)
            logits.append(self._forward(ids, torch.ones_like(ids), positions, cache))
            read[self._is_long(sequence)].append((cache, list(targets), len(sequence)))
        for group, parts in zip(self._groups, read, strict=True):
            group.join(parts)
        return torch.cat(logits)

    def _extend(self, group: "_Aligned", tokens: Tensor) -> Tensor:
        """One more token in each row of a group; logits `[rows, V]`."""
        positions = torch.tensor(group.lengths, device=self.device).unsqueeze(1)
        group.lengths = [length + 1 for length in group.lengths]
        width = max(group.lengths)
        is_real = torch.arange(width, device=self.device) >= width - 1 - positions
        return self._forward(tokens.unsqueeze(1), is_real.long(), positions, group.cache)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits after the last column `[rows, V]`; `cache` takes in the new ones."""
        wanted: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}  # else they follow from the mask
        options = {name: value for name, value in wanted.items() if name in self._accepts}
        options[self._cache_name or "cache"] = cache
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **options)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _read_again(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits `[sequences, V]` after the last tokens, without a cache: padded on the right."""
        lengths = [len(sequence) for sequence in sequences]
        logits: list[Tensor] = [torch.empty(0)] * len(sequences)
        for side in split_by_side(lengths, self._threshold):
            rows = [torch.tensor(sequences[index]) for index in side]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
            ends = torch.tensor([lengths[index] for index in side], device=self.device)
            mask = torch.arange(ids.shape[1], device=self.device) < ends.unsqueeze(1)
            found = self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
            for place, index in enumerate(side):
                logits[index] = found[place, lengths[index] - 1]
        return torch.stack(logits)

    def _works_with_cache(self, dtype: torch.dtype) -> bool:
        """Tries two rows of different lengths with the cache and without."""
        if self.model._is_stateful or self._cache_name is None or self.max_positions < _TRIED_TOKENS:
            return False
        ids = arbitrary_ids(self.vocab_size, 24)
        sequences = [ids[: _TRIED_TOKENS - 2], ids[_TRIED_TOKENS : _TRIED_TOKENS + 3]]
        self.has_cache = True
        try:
            self.prefill(sequences, [[0], [1]], [0, 0])
            self.decode(torch.tensor([ids[-1], ids[-2]], device=self.device), _TRIED_TOKENS - 1)
            ours = self.decode(torch.tensor([ids[-3], ids[-4]], device=self.device), _TRIED_TOKENS)
        except Exception as error:  # whatever a module says to a cache that it doesn't know: it gets none
            _log.info("no key/value cache: %s: %s", type(error).__name__, error)
            return False
        finally:
            held = list(self._sequences.values())
            self._forget(set(self._sequences))
        with torch.no_grad():
            gap = torch.log_softmax(ours.float(), -1) - torch.log_softmax(self._read_again(held).float(), -1)
        return float(gap.abs().max()) <= _TOLERANCE.get(dtype, 1e-3)


_Part = tuple[Any, list[int], int]
"""The cache of one sequence, the rows that get it, its length."""


class _Aligned:
    """Rows whose newest tokens stand in the last column of one cache."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.lengths: list[int] = []
        self.cache: Any = None

    def keep(self, rows: Set[int]) -> None:
        """Lets go of all other rows, and of the columns that only they filled."""
        places = [place for place, row in enumerate(self.rows) if row in rows]
        if len(places) == len(self.rows):
            return
        self.rows, self.lengths = ([column[place] for place in places] for column in (self.rows, self.lengths))
        if not places:
            self.cache = None
            return
        width = max(self.lengths)
        for layer in _find_filled(self.cache):
            layer.keys, layer.values = (x[places, :, -width:] for x in (layer.keys, layer.values))

    def join(self, parts: Sequence[_Part]) -> None:
        """Takes new rows in."""
        if not parts:
            return
        caches = [(cache, len(rows)) for cache, rows, _ in parts]
        if self.rows:
            caches.insert(0, (self.cache, len(self.rows)))
        self.rows = self.rows + [row for _, rows, _ in parts for row in rows]
        self.lengths = self.lengths + [length for _, rows, length in parts for _ in rows]
        self.cache, width = caches[0][0], max(self.lengths)
        layers = [_find_filled(cache) for cache, _ in caches]
        for merged, *others in zip(*layers, strict=True):
            same = list(zip([merged, *others], (count for _, count in caches), strict=True))
            merged.keys = torch.cat([_widen(layer.keys, count, width) for layer, count in same])
            merged.values = torch.cat([_widen(layer.values, count, width) for layer, count in same])


def _widen(x: Tensor, num_rows: int, width: int) -> Tensor:
    """`[1 or num_rows, heads, T, D]` -> `[num_rows, heads, width, D]`, zeros in front."""
    return F.pad(x, (0, 0, width - x.shape[2], 0)).expand(num_rows, -1, -1, -1)


def _find_filled(cache: Any) -> list[Any]:
    """Layers that hold something: some models share the keys and values of others."""
    return [layer for layer in cache.layers if layer.is_initialized]


class TransformersGenerator(Batcher):
    """The native generator's interface over a module's own forward, for any causal language model."""

    def __init__(
        self,
        model: nn.Module,
        *,
        eos_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        slots: int = 64,
        on_update: Literal["recompute"] = "recompute",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        version: int = 0,
        lora: LoraConfig | None = None,
    ) -> None:
        backend = TransformersBackend(model, dtype, device, lora)
        super().__init__(backend, eos_ids=eos_ids, decode=decode, slots=slots, on_update=on_update, version=version)
