"""Tiny classifier checkpoints with random but telling heads, and the prompts and completions to judge."""

from pathlib import Path

import torch

from llamarl.core.records import Completion, Prompt, text_completion
from llamarl.models.checkpoint import load_classifier, load_tokenizer, save_model
from llamarl.models.classifier import ensure_padding
from llamarl.models.tiny import build_tiny


def classifier(directory: Path, labels: int = 1, seed: int = 0, family: str = "llama", **config: object) -> str:
    """Its head is large enough that short texts differ by tenths; `config` overrides fields of its config."""
    path = build_tiny(family, directory / f"lm-{family}", initializer_range=0.2)
    model, tokenizer = load_classifier(path, new_labels=labels), load_tokenizer(path)
    ensure_padding(model, tokenizer)
    for name, value in config.items():
        setattr(model.config, name, value)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return str(save_model(model, tokenizer, directory / f"classifier-{family}-{labels}-{seed}"))


def prompt(text: str = "hi", **info: object) -> Prompt:
    return Prompt(f"id of {text}", ({"role": "user", "content": text},), info=info)


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return text_completion(text, finish_reason)
