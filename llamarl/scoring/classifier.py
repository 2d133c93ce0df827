"""A classifier or reward model that scores conversations: any `*ForSequenceClassification`, loaded where it is used.

For judges, detectors and whatever else asks how likely a label is; nothing here trains.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llamarl.core.errors import ConfigError
from llamarl.core.records import Message
from llamarl.models.checkpoint import load_classifier, load_config, load_tokenizer
from llamarl.models.classifier import PaddedClassifier, TokenIds, conversation_ids, text_ids
from llamarl.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of a checkpoint: what it can tell apart."""

    names: tuple[str, ...]
    """Name of each label, by its index."""
    is_independent: bool
    """True where each label has a probability of its own, instead of one distribution over all."""

    def index(self, label: str | int) -> int:
        """The index of a label given by name or index. Raises `ConfigError` for one that is not there."""
        if isinstance(label, int) and 0 <= label < len(self.names):
            return label
        if isinstance(label, str) and label in self.names:
            return self.names.index(label)
        raise ConfigError(f"label {label!r}: the classifier has {', '.join(map(repr, self.names))}")


class LazyClassifier:
    """A classifier checkpoint that loads where it is first used, or asked to. Picklable; safe to call from any thread.

    Args:
        path: directory or Hub id.
        device: where it runs.
        dtype: number format of the weights.
        max_tokens: longest sequence; None: what the model's positions allow.
        batch_tokens: most tokens, padding included, of one forward pass.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        max_tokens: int | None = None,
        batch_tokens: int = 16384,
    ) -> None:
        self.path = str(path)
        self._device, self._dtype = device, dtype
        self._max_tokens, self._batch_tokens = max_tokens, batch_tokens
        self._lock = threading.RLock()  # judges call from several threads; reentrant, since `encode` loads under it
        self._labels: Labels | None = None
        self._loaded: tuple[PaddedClassifier, Tokenizer, int | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_loaded": None}  # a worker process loads its own copy of the model

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def labels(self) -> Labels:
        """Read from the config alone.

        Raises:
            CheckpointError: no readable checkpoint.
            ConfigError: the checkpoint is of no sequence classifier.
        """
        with self._lock:
            if self._labels is None:
                self._labels = _read_labels(self.path)
            return self._labels

    def load(self) -> None:
        """Loads it now. Raises `CheckpointError` or `ConfigError` where it cannot be had."""
        self._load()

    def encode(
        self, prompt: Sequence[Message], text: str, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> TokenIds:
        """Ids of a prompt with an answer, by the classifier's own template. Raises `ConfigError` if it refuses them."""
        with self._lock:  # tokenizers are not safe to share between threads
            return conversation_ids(self._load()[1], prompt, [{"role": "assistant", "content": text}], tools)

    def encode_text(self, text: str) -> TokenIds:
        """Ids of plain text (`text_ids`)."""
        with self._lock:
            return text_ids(self._load()[1], text)

    def why_too_long(self, ids: TokenIds) -> str | None:
        """Says why the model cannot take this sequence; None where it can."""
        limit = self._load()[2]
        return None if limit is None or len(ids) <= limit else f"{len(ids)} tokens, the model takes at most {limit}"

    def __call__(self, sequences: Sequence[TokenIds]) -> list[list[float]]:
        """Logits of each sequence by label, in order, computed in batches of similar length.

        Equal sequences are computed once: rounding must not tell them apart, or a group of equal completions would
        seem to have a spread.
        """
        classifier = self._load()[0]
        distinct = list(dict.fromkeys(sequences))
        found: dict[TokenIds, list[float]] = {}
        with self._lock, torch.no_grad():
            for part in _batches([len(ids) for ids in distinct], self._batch_tokens):
                rows = [distinct[index] for index in part]
                found |= zip(rows, classifier(rows).tolist(), strict=True)
        return [found[ids] for ids in sequences]

    def _load(self) -> tuple[PaddedClassifier, Tokenizer, int | None]:
        with self._lock:
            if self._loaded is None:
                model: Any = load_classifier(self.path, device=self._device, dtype=self._dtype)
                limit = self._max_tokens or getattr(model.config.get_text_config(), "max_position_embeddings", None)
                self._loaded = PaddedClassifier(model), load_tokenizer(self.path), limit
            return self._loaded


def _read_labels(path: str) -> Labels:
    config = load_config(path)
    kinds = config.architectures or []
    if kinds and not any("SequenceClassification" in kind for kind in kinds):
        raise ConfigError(
            f"{path}: is a {kinds[0]}, not a sequence classifier; train one from it with 'llamarl reward train'"
        )
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return Labels(names, config.problem_type == "multi_label_classification")


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices sorted by length, in parts whose padded size stays within `max_tokens`; each part holds at least one."""
    part: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and (len(part) + 1) * lengths[index] > max_tokens:
            yield part
            part = []
        part.append(index)
    if part:
        yield part
