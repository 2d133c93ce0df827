"""A tiny checkpoint for tests of detectors, and claims."""

from pathlib import Path

import torch

from llamarl.factuality.claims import Answer, Ask, Claim
from llamarl.models.checkpoint import load_model, load_tokenizer, save_model
from llamarl.models.tiny import build_tiny


def write_tiny(directory: Path, family: str = "llama", seed: int = 0, **sizes: object) -> Path:
    """A random checkpoint whose weights are large enough that its probabilities are far from uniform."""
    build_tiny(family, directory, seed, **{"max_position_embeddings": 512, **sizes})
    model = load_model(directory)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return save_model(model, load_tokenizer(directory), directory)


def claim_of(text: str, name: str = "p/0") -> Claim:
    return Claim(name, Answer(Ask("p", "Tell me."), text, "stop"), text, (0, len(text)))


def claims_of(*texts: str) -> list[Claim]:
    return [claim_of(text, f"p/{number}") for number, text in enumerate(texts)]
