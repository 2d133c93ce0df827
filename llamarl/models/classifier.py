"""Reward models and sequence classifiers: a conversation in, one score per label out.

    prompt + answer --chat template--> token ids --body--> hidden state of the last token --head--> [labels]

A reward model is a classifier with one label. Both are ordinary `*ForSequenceClassification` checkpoints. Families of
causal models pool at the rightmost token that is not the padding token, so trailing padding tokens never count
(`without_padding`), and a model under training needs a padding token that cannot end an answer (`ensure_padding`).

Shape legend: N sequences, L labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llamarl.core.errors import ConfigError
from llamarl.core.records import Message
from llamarl.models.decoder import Decoder
from llamarl.models.rope import rope_threshold, split_by_side
from llamarl.models.tokenizer import Tokenizer

TokenIds = tuple[int, ...]


def conversation_ids(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
    answer: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> TokenIds:
    """Ids of a prompt with its answer, rendered by the chat template and ended as the template ends a turn.

    Without a chat template the texts of one user message and one answer are joined as they are (`text_ids`).

    Raises:
        ConfigError: the template refuses these messages, or there is none and these are more than two.
    """
    messages = [*prompt, *answer]
    if tokenizer.has_chat_template:
        return tokenizer.encode(tokenizer.render(messages, tools, add_generation_prompt=False))
    roles = [message["role"] for message in messages]
    if tools or roles != ["user", "assistant"] or any("content" not in message for message in messages):
        raise ConfigError(
            f"this tokenizer has no chat template, so a conversation must be one user message and one answer without "
            f"tools, got roles {roles}; put a chat_template.jinja beside its tokenizer.json"
        )
    return text_ids(tokenizer, messages[0]["content"] + messages[1]["content"])


def text_ids(tokenizer: Tokenizer, text: str) -> TokenIds:
    """Ids of plain text with the special tokens the tokenizer adds, closed by its end token where it has one."""
    ids = tuple(tokenizer.backend.encode(text, add_special_tokens=True))
    is_open = bool(tokenizer.eos_ids) and ids[-1:] != tokenizer.eos_ids[:1]
    return (*ids, tokenizer.eos_ids[0]) if is_open else ids


def without_padding(ids: TokenIds, pad_id: int | None) -> TokenIds:
    """The ids up to the token whose hidden state is scored; at least one."""
    end = len(ids)
    while end > 1 and ids[end - 1] == pad_id:
        end -= 1
    return ids[:end]


def ensure_padding(model: nn.Module, tokenizer: Tokenizer) -> None:
    """Gives model and tokenizer a padding token that ends no answer, so that the end token itself is scored.

    Taken is the first that fits of: the model's own, the tokenizer's, a special token with `pad` in its name, the
    unknown token, a reserved special token.

    Raises:
        ConfigError: none fits.
    """
    config: Any = model.config
    backend = tokenizer.backend
    for candidate in (config.pad_token_id, backend.pad_token_id, *_spare_ids(backend)):
        if candidate is not None and candidate not in tokenizer.eos_ids and candidate != tokenizer.bos_id:
            config.pad_token_id = candidate
            backend.pad_token = backend.convert_ids_to_tokens(candidate)
            return
    raise ConfigError(
        "this tokenizer has no padding token besides its end token, and a classifier cannot tell them apart; add one "
        "(tokenizer.add_special_tokens({'pad_token': '<pad>'}), model.resize_token_embeddings) and save both"
    )


def _spare_ids(backend: Any) -> Iterator[int | None]:
    special = {token.content: index for index, token in backend.added_tokens_decoder.items() if token.special}
    yield from (index for name, index in special.items() if "pad" in name.lower())
    yield backend.unk_token_id
    yield from (index for name, index in special.items() if "reserved" in name.lower())


def live_decoder(model: nn.Module) -> Decoder:
    """The packed decoder over a `*ForSequenceClassification` of a supported family; its `head` is the scoring head."""
    return Decoder.live(model, "score")


class PaddedClassifier:
    """Scores through the module's own forward pass, on right-padded rows: any Hugging Face classifier.

    Args:
        model: `checkpoint.load_classifier` gives it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model.eval()

    def __call__(self, sequences: Sequence[TokenIds]) -> Tensor:
        """Logits `[N, L]` in float32 of each sequence; gradients flow."""
        pad = self._model.config.get_text_config().pad_token_id
        rows = [without_padding(ids, pad) for ids in sequences]
        if pad is None and len(rows) > 1:  # such a module takes one row at a time
            return torch.cat([self([row]) for row in rows])
        sides = split_by_side([len(row) for row in rows], rope_threshold(self._model.config))
        if len(sides) > 1:
            order = torch.tensor([index for side in sides for index in side], device=self._model.device).argsort()
            return torch.cat([self([rows[index] for index in side]) for side in sides])[order]
        width = max(len(row) for row in rows)
        device = self._model.device
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.int64, device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        is_token = torch.arange(width, device=device) < lengths[:, None]
        logits: Tensor = self._model(input_ids=ids, attention_mask=is_token.long()).logits
        return logits.float()
