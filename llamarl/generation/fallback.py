"""The backend for architectures that our own forward pass doesn't cover: the module's own forward.

Every decode step reads each row's whole sequence again, left-aligned and padded on the right, without a cache: right
for any causal language model, whatever its cache looks like, and slow. Slots, seeds, filters, log-probs, stop rules
and versions are the batcher's, so they are the same as those of the native generator.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llamarl.core.errors import WeightSyncError
from llamarl.generation.batcher import Batcher
from llamarl.models.decoder import named_tensors


class TransformersBackend:
    """Rows are plain token sequences; each step is one full forward."""

    def __init__(
        self, model: nn.Module, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        own: Any = copy.deepcopy(model)
        self.model: Any = own.to(device=self.device, dtype=dtype).eval()
        config: Any = self.model.config.get_text_config()
        self.max_positions: int = getattr(config, "max_position_embeddings", 1 << 30)
        self.vocab_size: int = config.vocab_size
        self._tokens = torch.zeros(0, 0, dtype=torch.int64, device=self.device)
        self._lengths = torch.zeros(0, dtype=torch.int64, device=self.device)

    def prefill(self, sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> Tensor:
        """Notes each sequence for its rows; logits `[sequences, V]` after the last tokens."""
        self._reserve(1 + max(row for targets in rows for row in targets), max(map(len, sequences)) + 1)
        for sequence, targets in zip(sequences, rows, strict=True):
            self._tokens[list(targets), : len(sequence)] = torch.tensor(sequence, device=self.device)
            self._lengths[list(targets)] = len(sequence)
        firsts = torch.tensor([targets[0] for targets in rows], device=self.device)
        return self._logits(self._tokens[firsts], self._lengths[firsts])

    def decode(self, tokens: Tensor, longest: int) -> Tensor:
        """Appends `tokens [n]` to rows 0..n-1, whose longest then has `longest` tokens; logits `[n, V]`."""
        n = len(tokens)
        self._reserve(n, longest)
        self._tokens[torch.arange(n, device=self.device), self._lengths[:n]] = tokens
        self._lengths[:n] += 1
        return self._logits(self._tokens[:n, :longest], self._lengths[:n])

    def move(self, sources: Tensor, targets: Tensor, longest: int) -> None:
        """Rows `sources` take the places `targets`."""
        self._tokens[targets], self._lengths[targets] = self._tokens[sources], self._lengths[sources]

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes new weights.

        Raises:
            WeightSyncError: names are missing or unknown, or a shape differs; nothing has been copied then.
        """
        views = self.named_views()
        wrong = sorted(views.keys() ^ tensors.keys())
        wrong += sorted(n for n in views.keys() & tensors.keys() if views[n].shape != tensors[n].shape)
        if wrong:
            raise WeightSyncError(f"weights: {len(wrong)} names missing, unknown or of another shape: {wrong[0]}, ...")
        for name, view in views.items():
            view.copy_(tensors[name])

    def named_views(self) -> Mapping[str, Tensor]:
        """The weights it holds, by parameter name."""
        return dict(named_tensors(self.model))

    def mismatches(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names whose held value is not that of `tensors`, up to the rounding to this dtype."""
        return [name for name, view in self.named_views().items() if not torch.equal(view, tensors[name].to(view))]

    def probe_logprobs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Log-probs of `ids[1:]`, each given the ids before it."""
        tokens = torch.tensor([ids], device=self.device)
        with torch.no_grad():
            logprobs = torch.log_softmax(self.model(input_ids=tokens, use_cache=False).logits[0, :-1].float(), dim=-1)
        return tuple(logprobs.gather(1, tokens[0, 1:, None])[:, 0].tolist())

    @torch.no_grad()
    def _logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        longest = int(lengths.max())
        tokens = tokens[:, :longest]
        mask = torch.arange(longest, device=self.device) < lengths.unsqueeze(1)
        logits = self.model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits
        last: Tensor = logits[torch.arange(len(tokens), device=self.device), lengths - 1]
        return last

    def _reserve(self, num_rows: int, length: int) -> None:
        rows, width = self._tokens.shape
        if num_rows <= rows and length <= width:
            return
        grown = self._tokens.new_zeros(max(num_rows, rows), max(length, 2 * width))
        grown[:rows, :width] = self._tokens
        lengths = self._lengths.new_zeros(len(grown))
        lengths[:rows] = self._lengths
        self._tokens, self._lengths = grown, lengths


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
    ) -> None:
        backend = TransformersBackend(model, dtype, device)
        super().__init__(backend, eos_ids=eos_ids, decode=decode, slots=slots, on_update=on_update, version=version)
