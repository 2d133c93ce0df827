"""Tiny checkpoints built from nothing: for tests, demos and experiments without a download."""

import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError
from llamarl.models import checkpoint
from llamarl.models.templates import STYLES
from llamarl.models.tokenizer import Tokenizer

ALPHABET = "".join(sorted(string.ascii_letters + string.digits + " \n.,:;!?+-*/=%<>()[]{}'\"_|#&@"))
"""The characters `char_tokenizer` knows; any other becomes `<unk>`."""

FAMILIES = {
    "llama": "llama3",
    "qwen2": "chatml",
    "qwen3": "chatml",
    "qwen3_moe": "chatml",
    "mistral": "mistral",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gpt_neox": "plain",
    "phi3": "phi",
}
"""Model types `build_tiny` can make, each with the chat style it gets."""


def char_tokenizer(style: str = "plain", alphabet: str = ALPHABET) -> Tokenizer:
    """A tokenizer with one token per character, `<pad>` = 0 and `<unk>` = 1, in one of `templates.STYLES`."""
    return piece_tokenizer(alphabet, r"[\s\S]", style)


def piece_tokenizer(
    pieces: Iterable[str], pattern: str, style: str = "plain", normalizer: Any = None, decoder: Any = None
) -> Tokenizer:
    """A tokenizer whose tokens are given: text is split where `pattern` matches, and unknown pieces are `<unk>`.

    Args:
        pieces: the tokens after the special ones.
        pattern: regular expression of a piece.
        style: one of `templates.STYLES`.
        normalizer: of the `tokenizers` library; None: text stays as it is.
        decoder: of the `tokenizers` library; None: pieces are joined.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Rules

    rules = Rules(models.WordLevel(_number_tokens([*_specials(style), *pieces]), unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    rules.decoder = decoder or decoders.Fuse()
    if normalizer is not None:
        rules.normalizer = normalizer
    return _with_style(rules, style)


def bpe_tokenizer(texts: Iterable[str], vocab_size: int = 512, style: str = "plain") -> Tokenizer:
    """A byte-level BPE tokenizer trained on `texts`: any text round-trips. `vocab_size` counts special tokens too."""
    from tokenizers import Tokenizer as Rules
    from tokenizers import decoders, models, pre_tokenizers, trainers

    rules = Rules(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_specials(style),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rules.train_from_iterator(texts, trainer)
    return _with_style(rules, style)


def tiny_config(family: str, tokenizer: Tokenizer, **sizes: Any) -> Any:
    """A transformers config of `family` with two narrow layers; `sizes` override its fields.

    Raises:
        ConfigError: `family` is not one of `FAMILIES`.
    """
    if family not in FAMILIES:
        raise ConfigError(f"family: unknown model family {family!r}; choose one of: {', '.join(FAMILIES)}")
    fields: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": family != "gpt_neox",
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_ids[0],
    }
    if family != "gpt_neox":
        fields["num_key_value_heads"] = 2
    if family == "qwen3_moe":
        fields |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
    if family in ("qwen3", "qwen3_moe", "gemma2", "gemma3_text"):
        fields["head_dim"] = 8
    if family == "mistral":
        fields["sliding_window"] = None
    return checkpoint.new_config(family, **{**fields, **sizes})


def build_tiny(family: str, directory: str | Path, seed: int = 0, **sizes: Any) -> Path:
    """Writes a random checkpoint of `family` with a character tokenizer, and returns its directory.

    Equal arguments give equal bytes of weights.
    """
    if family not in FAMILIES:
        raise ConfigError(f"family: unknown model family {family!r}; choose one of: {', '.join(FAMILIES)}")
    tokenizer = char_tokenizer(FAMILIES[family])
    model = checkpoint.new_model(tiny_config(family, tokenizer, **sizes), seed)
    return checkpoint.save_model(model, tokenizer, directory)


def _specials(style: str) -> list[str]:
    if style not in STYLES:
        raise ConfigError(f"style: unknown chat style {style!r}; choose one of: {', '.join(STYLES)}")
    chosen = STYLES[style]
    return ["<pad>", "<unk>", *([chosen.bos] if chosen.bos else []), chosen.eos, *chosen.specials]


def _number_tokens(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _with_style(rules: Any, style: str) -> Tokenizer:
    chosen = STYLES[style]
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": chosen.eos}
    if chosen.bos:
        names["bos_token"] = chosen.bos
    return checkpoint.new_tokenizer(
        rules, chosen.template, extra_special_tokens=list(chosen.specials), padding_side="left", **names
    )
