"""Supervised fine-tuning: teach a model completions, on the same packed forward pass as reinforcement learning."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llamarl.core.errors import CollapseError, ConfigError, DataError
from llamarl.core.records import Message
from llamarl.core.seeds import derive_seed
from llamarl.models.template_check import THINKING_TAGS
from llamarl.models.tokenizer import Tokenizer
from llamarl.training.config import SFTConfig
from llamarl.training.memory import micro_batch_tokens
from llamarl.training.optimizer import Optimizer
from llamarl.training.scoring import build_scorer
from llamarl.training.sft_lora import Adapters

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Where messages keep thoughts apart from their content."""


@dataclass(frozen=True, slots=True)
class SFTRow:
    """A prompt and the completion to learn, the end token included. The loss is on `token_ids` only."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]

    @classmethod
    def of_chat(
        cls, messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> "SFTRow":
        """Encodes a conversation: learn its last turn, the assistant's, given all before it.

        The answer is encoded on its own and closed with the tokenizer's end token, just as a generator would meet it.
        One with `tool_calls`, or with its thoughts in a field of their own, is what the chat template writes behind the
        prompt, up to its end token.

        Raises:
            DataError: the last turn is not the assistant's, is empty, or doesn't go on from the prompt: a thinking
                block opened twice, never closed, or closed before it begins.
            ConfigError: the chat template refuses the messages, or leaves out what they call.
        """
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            roles = [message["role"] for message in messages]
            raise DataError(f"messages: the last of at least two turns must be the assistant's, got roles {roles}")
        prompt, answer = messages[:-1], messages[-1]
        has_more = any(answer.get(field) for field in ("tool_calls", *THOUGHT_FIELDS))
        if not tokenizer.has_chat_template and not has_more:
            return cls(tokenizer.encode_chat(prompt, tools), _ended(tokenizer, answer.get("content") or ""))
        text = tokenizer.render(prompt, tools)
        if has_more:
            return cls(tokenizer.encode(text), _rendered(tokenizer, messages, tools, text))
        content = answer.get("content") or ""
        _refuse_broken_thinking(text, content)
        return cls(tokenizer.encode(text), _ended(tokenizer, content))

    @classmethod
    def of_pair(cls, prompt: str, completion: str, tokenizer: Tokenizer) -> "SFTRow":
        """Encodes one user turn and its answer; without a chat template the prompt is continued as plain text.

        Raises:
            DataError: as `of_chat`.
        """
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return cls.of_chat(chat, tokenizer)


class SFTTrainer:
    """Fine-tunes a model in place.

    Args:
        model: a Hugging Face causal language model; dropout is switched off.
        config: the settings.
        total_steps: where a falling schedule reaches 0; None: `config.num_steps`. With `config.num_epochs` it is
            `config.total_steps(number of rows)`.

    Raises:
        ConfigError: a schedule that never ends, or adapters for layers that the model hasn't.
        MissingDependencyError: adapters without the extra `lora`.
    """

    def __init__(self, model: nn.Module, config: SFTConfig, total_steps: int | None = None) -> None:
        self.model, self.config = model, config
        self.num_steps_done = 0
        self._adapters = None if config.lora is None else Adapters(model, config.lora, config.seed)
        self._score = build_scorer(model) if self._adapters is None else self._adapters.scorer()
        self._optimizer = Optimizer(model, config, total_steps or config.num_steps)
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
        """Runs all steps over shuffled epochs of `rows`, then `merge`; returns the last step's loss.

        Args:
            rows: the training set, any size from 1.
            on_step: called after each step with its number, from 1, and its metrics.
        """
        metrics = {"train/loss": math.nan}
        for number, batch in enumerate(itertools.islice(self.batches(rows), self.config.num_steps), 1):
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
        """Batches; every row once per epoch, in an order that depends on seed and epoch only.

        Endless, or with `num_epochs` until each row was seen so often; the last batch may then be smaller.
        """
        if not rows:
            raise DataError("sft: no rows to train on")
        batch: list[SFTRow] = []
        for epoch in itertools.count() if self.config.num_epochs is None else range(self.config.num_epochs):
            order = list(range(len(rows)))
            random.Random(derive_seed("sft", self.config.seed, epoch)).shuffle(order)
            for index in order:
                batch.append(rows[index])
                if len(batch) == self.config.batch_size:
                    yield batch
                    batch = []
        if batch:
            yield batch


def sft(
    model: nn.Module,
    rows: Sequence[SFTRow],
    config: SFTConfig,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> float:
    """Fine-tunes `model` in place on `rows`; returns the last step's loss in nats per token.

    Save the result with `models.checkpoint.save_model`.
    """
    return SFTTrainer(model, config, config.total_steps(len(rows))).fit(rows, on_step)


def _ended(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    if not text.strip():
        raise DataError(f"the answer to learn is empty: {text!r:.40}; give it a text or drop the row")
    return (*tokenizer.encode(text), *tokenizer.eos_ids[:1])


def _rendered(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, prompt: str
) -> tuple[int, ...]:
    """What the chat template writes behind the prompt for the last turn, up to its first end token."""
    text = tokenizer.render(messages, tools, add_generation_prompt=False)
    if not text.startswith(prompt):
        raise DataError(
            "the chat template's text of the answered prompt doesn't start with the prompt, so what to learn can't be "
            f"told; the prompt ends with {prompt[-60:]!r}; write all of the answer into its content"
        )
    answer = text[len(prompt) :]
    for field in THOUGHT_FIELDS:
        if str(messages[-1].get(field) or "").strip() not in answer:
            raise DataError(f"{field}: the chat template leaves it out; write the thoughts into the content, in tags")
    ids = tokenizer.encode(answer)
    end = next((index for index, token in enumerate(ids) if token in tokenizer.eos_ids), len(ids))
    return (*ids[:end], *(ids[end : end + 1] or tokenizer.eos_ids[:1]))


def _refuse_broken_thinking(prompt: str, answer: str) -> None:
    """Raises `DataError` for an answer that a model could not have given behind this prompt, by its thinking tags."""
    for opening, closing in THINKING_TAGS:
        is_open, begins = prompt.rstrip().endswith(opening), answer.lstrip().startswith(opening)
        if is_open and begins:
            raise DataError(f"the answer begins with {opening!r}, which the prompt ends with already; leave it out")
        if is_open and closing not in answer:
            raise DataError(
                f"the prompt ends with {opening!r}, but the answer never closes it: {answer!r:.60}; write the thoughts "
                f"and {closing!r} before it, or choose a prompt without thinking (chat_template_args)"
            )
        if begins and prompt.rstrip().endswith(closing):
            raise DataError(
                f"the answer begins with {opening!r}, but the prompt ends with a closed block of thoughts; switch "
                "thinking on (chat_template_args), or leave the thoughts out"
            )
