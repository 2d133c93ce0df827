"""Frozen hidden states of the Prompt-TF prompt about each claim, in the forms that probes read.

    last               the last token, behind the last layer                     (1)
    tokens             mean over all tokens of the prompt, behind the last layer  (2)
    layers             the last token, mean over all layers                      (3)
    last_and_tokens    mean of (1) and (2)                                       (4)
    layer              the last token, behind one layer of your choice

Numbers as in Qin et al., https://arxiv.org/abs/2505.12265, section 3. The embedding layer is none of the layers; the
states behind the last layer are normalised, as the output head reads them.

With a folder for them, features are computed once: a chunk of claims is a file under a hash of the model's weights and
the chunk's token ids, so that what a killed run had finished is read again.

Shape legend: N claims, d hidden size.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamarl.core.errors import ConfigError
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.models.classifier import TokenIds
from llamarl.scoring.next_tokens import split_sequences
from llamarl.scoring.states import StateReader, build_states

CHUNK = 256
"""Claims of one file."""


class Features(NamedTuple):
    """The forms, each `[N, d]` float32 on the CPU."""

    last: Tensor
    tokens: Tensor
    layers: Tensor
    layer: Tensor
    """Behind the chosen layer; `[N, 0]` where none is chosen."""

    def pick(self, variant: str) -> Tensor:
        """The features of a variant, by its name."""
        return (self.last + self.tokens) / 2 if variant == "last_and_tokens" else self._asdict()[variant]


class FeatureReader:
    """Reads the features of prompts.

    Args:
        backbone: the model.
        layer: the chosen layer, from 1 to the number of layers; None: none.
        cache: a folder for what was computed; None: nothing is kept.

    Raises:
        ConfigError: the model has no such layer.
    """

    def __init__(self, backbone: Backbone, layer: int | None = None, cache: Path | None = None) -> None:
        num_layers = backbone.model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
        if layer is not None and not 1 <= layer <= num_layers:
            raise ConfigError(f"layer={layer}: {backbone.path} has {num_layers} layers; choose one from 1")
        self._backbone, self._layer, self._cache = backbone, layer, cache
        self._read_states: StateReader = build_states(backbone.model, backbone.precision)

    def read(self, sequences: Sequence[TokenIds], prefix: TokenIds) -> Features:
        """The features of some prompts, in their order.

        Args:
            sequences: token ids of each, at least one.
            prefix: what they begin with alike.
        """
        starts = range(0, len(sequences), CHUNK)
        parts = [self._read_chunk(sequences[start : start + CHUNK], prefix) for start in starts]
        return Features(*map(torch.cat, zip(*parts, strict=True)))

    def _read_chunk(self, sequences: Sequence[TokenIds], prefix: TokenIds) -> Features:
        if self._cache is None:
            return self._compute(sequences, prefix)
        file = self._cache / f"{self._hash(sequences)}.safetensors"
        try:
            return Features(**load_file(file))
        except (FileNotFoundError, SafetensorError, TypeError):  # not there, or torn: computed again
            features = self._compute(sequences, prefix)
        self._cache.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        save_file({name: tensor.contiguous() for name, tensor in features._asdict().items()}, draft)
        draft.replace(file)
        return features

    def _compute(self, sequences: Sequence[TokenIds], prefix: TokenIds) -> Features:
        distinct = list(dict.fromkeys(sequences))
        found: dict[TokenIds, tuple[Tensor, ...]] = {}
        for part in split_sequences(distinct, self._backbone.batch_tokens, prefix):
            rows = [distinct[index] for index in part]
            with self._backbone.lock:
                last, mean = self._read_states(rows, prefix)
            chosen = last.new_empty(len(rows), 0) if self._layer is None else last[:, self._layer - 1]
            columns = (last[:, -1], mean, last.mean(dim=1), chosen)
            found |= zip(rows, zip(*(column.cpu() for column in columns), strict=True), strict=True)
        return Features(*(torch.stack(column) for column in zip(*(found[ids] for ids in sequences), strict=True)))

    def _hash(self, sequences: Sequence[TokenIds]) -> str:
        made_of = (1, self._backbone.fingerprint, self._backbone.precision, self._layer, list(sequences))
        return hashlib.blake2b(repr(made_of).encode(), digest_size=16).hexdigest()
