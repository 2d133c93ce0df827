"""The model behind a detector: prompts about claims in, probabilities of the labels out, one forward pass for many."""

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llamarl.core.errors import ConfigError
from llamarl.factuality.asking import PromptFile
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.detectors.labels import Labels, score_labels
from llamarl.functional.checksum import checksum
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.models.classifier import TokenIds
from llamarl.models.decoder import named_tensors
from llamarl.models.lora import load_adapter
from llamarl.models.tokenizer import Tokenizer
from llamarl.scoring.next_tokens import build_next_tokens, common_length

BATCH_TOKENS = 4096
"""Most tokens of one forward pass, unless the user says otherwise."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt's token ids, up to where the answer begins."""

    ids: TokenIds
    problem: str = ""
    """The reason why the model cannot be asked this."""


class Backbone:
    """A causal language model that detectors ask. Safe to call from several threads, one forward pass at a time.

    Load it with `load`.

    Args:
        model: in evaluation mode, with or without an adapter.
        tokenizer: of the model.
        path: where the model is from.
        fingerprint: of the model's weights, without an adapter.
        precision: `fp32` or `bf16`, of the forward pass.
        max_tokens: longest prompt; None: the model's positions.
        batch_tokens: most tokens of one forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        path: str,
        fingerprint: str,
        precision: str = "fp32",
        max_tokens: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self.model, self.tokenizer, self.path, self.fingerprint = model, tokenizer, path, fingerprint
        self.precision = precision
        config: Any = model.config
        limits = (max_tokens, getattr(config.get_text_config(), "max_position_embeddings", None))
        self.max_tokens: int | None = min((limit for limit in limits if limit is not None), default=None)
        """Longest prompt that it takes."""
        self.batch_tokens = batch_tokens
        self.lock = threading.RLock()  # tokenizers are not safe to share, and two passes at once gain nothing
        self._prefixes: dict[PromptFile, TokenIds] = {}
        self._score_next = build_next_tokens(model, precision)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        adapter: Path | None = None,
        device: str = "auto",
        precision: str = "fp32",
        max_tokens: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        chat_template_args: dict[str, Any] | None = None,
    ) -> "Backbone":
        """Loads a checkpoint, and an adapter on top of it.

        Args:
            path: checkpoint directory, GGUF file or Hub id.
            adapter: directory of an adapter in PEFT layout.
            device: as torch names it, or `auto`.
            precision: `fp32` or `bf16`, of the forward pass.
            max_tokens: longest prompt; None: the model's positions.
            batch_tokens: most tokens of one forward pass.
            chat_template_args: arguments of the chat template.

        Raises:
            CheckpointError: model or adapter cannot be loaded, or they do not belong together.
            ConfigError: a device that is not there, arguments that the chat template does not read.
            MissingDependencyError: an adapter without the extra `lora`.
        """
        tokenizer, model = load_tokenizer(path, chat_template_args), load_model(path, device=device)
        fingerprint = fingerprint_of(model)
        if adapter is not None:
            load_adapter(model, adapter)
        return cls(
            model.requires_grad_(False),
            tokenizer,
            path=str(path),
            fingerprint=fingerprint,
            precision=precision,
            max_tokens=max_tokens,
            batch_tokens=batch_tokens,
        )

    @cached_property
    def labels(self) -> Labels:
        """The tokens of the labels. Raises `ConfigError` where the tokenizer cannot tell them apart."""
        with self.lock:
            return Labels.of(self.tokenizer)

    def encode(self, prompt: PromptFile, **data: str) -> Encoded:
        """The ids of a prompt with its data filled in, rendered by the chat template up to where the answer begins."""
        with self.lock:
            if problem := self._why_forged(data):
                return Encoded((), problem)
            try:
                ids = self.tokenizer.encode_chat(prompt.fill(**data))
            except ConfigError as error:
                return Encoded((), f"the chat template refuses it: {error}")
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            return Encoded(ids, f"too long: {len(ids)} tokens with the question; the most is {self.max_tokens}")
        return Encoded(ids)

    @torch.no_grad()
    def score_labels(self, prompt: PromptFile, prompts: Sequence[Encoded]) -> list[Score]:
        """P_factual and mass at the position behind each prompt; a problem is handed on.

        Equal prompts are computed once: rounding must not tell them apart.

        Args:
            prompt: the file that the prompts are from.
            prompts: encoded.
        """
        with self.lock:
            prefix = self.prefix_of(prompt)
            distinct = list(dict.fromkeys(each.ids for each in prompts if not each.problem))
            found: dict[TokenIds, Score] = {}
            for part in self._score_next.split(distinct, self.batch_tokens, prefix):
                sequences = [distinct[index] for index in part]
                logprobs = self.labels.sum_up(self._score_next(sequences, self.labels.ids, prefix))
                found |= zip(sequences, (score_labels(*pair) for pair in logprobs.tolist()), strict=True)
        return [Score(None, problem=each.problem) if each.problem else found[each.ids] for each in prompts]

    def prefix_of(self, prompt: PromptFile) -> TokenIds:
        """The ids that all texts of a prompt begin with, for a file whose only data is the claim."""
        if prompt not in self._prefixes:
            first, second = (self.tokenizer.encode_chat(prompt.fill(claim=text)) for text in ("Paris", "42"))
            self._prefixes[prompt] = first[: common_length(first, second)]
        return self._prefixes[prompt]

    def _why_forged(self, data: dict[str, str]) -> str:
        """Names a special token that stands in the data: it would end the question and begin the answer."""
        for name, text in data.items():
            for token in self.tokenizer.backend.all_special_tokens:
                if token in text:
                    return f"the {name} holds {token}, a special token of the model"
        return ""


def fingerprint_of(model: nn.Module) -> str:
    """A hash of a model's weights, sampled, without adapters."""
    sums = checksum(dict(named_tensors(model)))
    return hashlib.blake2b(json.dumps(sorted(sums.items())).encode(), digest_size=8).hexdigest()
