"""Supervised fine-tuning: teach a model completions, on the same packed forward pass as reinforcement learning."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from llamarl.core.errors import CollapseError, ConfigError, DataError
from llamarl.core.records import Message
from llamarl.core.seeds import derive_seed
from llamarl.models.tokenizer import Tokenizer
from llamarl.training.config import SFTConfig
from llamarl.training.memory import micro_batch_tokens
from llamarl.training.optimizer import Optimizer
from llamarl.training.scoring import build_scorer
from llamarl.training.sft_lora import Adapters


@dataclass(frozen=True, slots=True)
class SFTRow:
    """A prompt and the completion to learn, the end token included. The loss is on `token_ids` only."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]

    @classmethod
    def of_chat(cls, messages: Sequence[Message], tokenizer: Tokenizer) -> "SFTRow":
        """Encodes a conversation: learn its last turn, the assistant's, given all before it.

        The answer is encoded on its own and closed with the tokenizer's end token, just as a generator would meet it.

        Raises:
            DataError: the last turn is not the assistant's, or is empty.
        """
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            roles = [message["role"] for message in messages]
            raise DataError(f"messages: the last of at least two turns must be the assistant's, got roles {roles}")
        return cls(tokenizer.encode_chat(messages[:-1]), _ended(tokenizer, messages[-1]["content"]))

    @classmethod
    def of_pair(cls, prompt: str, completion: str, tokenizer: Tokenizer) -> "SFTRow":
        """Encodes one user turn and its answer; without a chat template the prompt is continued as plain text.

        Raises:
            DataError: the completion is empty.
        """
        return cls(tokenizer.encode_chat([{"role": "user", "content": prompt}]), _ended(tokenizer, completion))


class SFTTrainer:
    """Fine-tunes a model in place.

    Args:
        model: a Hugging Face causal language model; dropout is switched off.
        config: the settings.

    Raises:
        ConfigError: a schedule that never ends, or adapters for layers that the model hasn't.
        MissingDependencyError: adapters without the extra `lora`.
    """

    def __init__(self, model: nn.Module, config: SFTConfig) -> None:
        self.model, self.config = model, config
        self.num_steps_done = 0
        self._adapters = None if config.lora is None else Adapters(model, config.lora, config.seed)
        self._score = build_scorer(model) if self._adapters is None else self._adapters.scorer()
        self._optimizer = Optimizer(model, config, config.num_steps)
        self.num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        """Numbers that are trained: the model's parameters, or those of the adapters."""

    def step(self, rows: Sequence[SFTRow]) -> dict[str, float]:
        """One optimizer step on `rows`: `train/loss` (nats per token), `train/grad_norm`, `train/lr`, `train/tokens`.

        Raises:
            CollapseError: the gradient is not finite; the weights stay as they were.
            ConfigError: the adapters have been merged.
        """
        if self.config.lora is not None and self._adapters is None:
            raise ConfigError("lora: the adapters are merged, and so no step may follow; make another SFTTrainer")
        tokens = sum(len(row.token_ids) for row in rows)
        divisor = tokens if self.config.reduction == "token_mean" else len(rows)
        total = 0.0
        for part in self._score.split(rows, micro_batch_tokens(self.model, self.config)):
            logprob_sum = self._score([rows[index] for index in part]).logprobs.sum()
            (-logprob_sum / divisor).backward()  # type: ignore[no-untyped-call]
            total -= float(logprob_sum.detach())
        norm = self._optimizer.grad_norm()
        if not math.isfinite(norm):
            self._optimizer.clear()
            raise CollapseError(f"SFT step {self.num_steps_done}: gradient norm is {norm}; lower learning_rate")
        rate = self._optimizer.step(self.num_steps_done, norm)
        self.num_steps_done += 1
        return {"train/loss": total / tokens, "train/grad_norm": norm, "train/lr": rate, "train/tokens": float(tokens)}

    @torch.no_grad()
    def evaluate(self, rows: Sequence[SFTRow]) -> float:
        """Mean loss over the completion tokens of held-out rows, nats per token."""
        parts = self._score.split(rows, micro_batch_tokens(self.model, self.config))
        total = sum(float(self._score([rows[index] for index in part]).logprobs.sum()) for part in parts)
        return -total / sum(len(row.token_ids) for row in rows)

    def fit(self, rows: Sequence[SFTRow], on_step: Callable[[int, dict[str, float]], None] | None = None) -> float:
        """Runs all `num_steps` over shuffled epochs of `rows`, then `merge`; returns the last step's loss.

        Args:
            rows: the training set, any size from 1.
            on_step: called after each step with its number, from 1, and its metrics.
        """
        metrics = {"train/loss": math.nan}
        for number, batch in zip(range(1, self.config.num_steps + 1), self.batches(rows), strict=False):
            metrics = self.step(batch)
            if on_step is not None:
                on_step(number, metrics)
        self.merge()
        return metrics["train/loss"]

    def merge(self) -> None:
        """Adds the adapters, where there are any, to the weights: the model is then an ordinary one, to be saved."""
        if self._adapters is not None:
            self._adapters.merge()
            self._adapters, self._score = None, build_scorer(self.model)

    def batches(self, rows: Sequence[SFTRow]) -> Iterator[list[SFTRow]]:
        """Endless batches; every row once per epoch, in an order that depends on seed and epoch only."""
        if not rows:
            raise DataError("sft: no rows to train on")
        batch: list[SFTRow] = []
        epoch = 0
        while True:
            order = list(range(len(rows)))
            random.Random(derive_seed("sft", self.config.seed, epoch)).shuffle(order)
            for index in order:
                batch.append(rows[index])
                if len(batch) == self.config.batch_size:
                    yield batch
                    batch = []
            epoch += 1


def sft(
    model: nn.Module,
    rows: Sequence[SFTRow],
    config: SFTConfig,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> float:
    """Fine-tunes `model` in place on `rows`; returns the last step's loss in nats per token.

    Save the result with `models.checkpoint.save_model`.
    """
    return SFTTrainer(model, config).fit(rows, on_step)


def _ended(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    if not text.strip():
        raise DataError(f"the answer to learn is empty: {text!r:.40}; give it a text or drop the row")
    return (*tokenizer.encode(text), *tokenizer.eos_ids[:1])
