"""A tiny reward model and preference pairs for the tests of its training."""

import random
from pathlib import Path

import torch
from torch import nn

from llamarl.models.checkpoint import load_classifier, load_tokenizer
from llamarl.models.tiny import build_tiny, char_tokenizer
from llamarl.training.examples import ConversationEncoder, Example, read_examples
from llamarl.training.objectives import RewardConfig

MARKER = "#"


def language_model(directory: Path, family: str = "llama") -> str:
    """A random checkpoint, its attention sharp enough to find one character among forty."""
    return str(build_tiny(family, directory / family, initializer_range=0.2))


def reward_model(path: str, labels: int = 1, scale: float = 1.0) -> nn.Module:
    """With a head that says something."""
    model = load_classifier(path, new_labels=labels)
    model.config.pad_token_id = load_tokenizer(path).pad_id
    with torch.no_grad():
        model.score.weight.normal_(0.0, scale, generator=torch.Generator().manual_seed(3))
    return model


def marker_pairs(count: int, seed: int = 0, num_prompts: int | None = None) -> list[dict[str, str]]:
    """Pairs in which the answer with the marker is chosen; lengths say nothing."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        chosen, rejected = ("".join(rng.choices("abcde ", k=rng.randrange(3, 12))) for _ in range(2))
        place = rng.randrange(len(chosen) + 1)
        prompt = f"task {index % (num_prompts or count)}"
        rows.append({"prompt": prompt, "chosen": chosen[:place] + MARKER + chosen[place:], "rejected": rejected})
    return rows


def examples_of(rows: list[dict[str, str]], kind: str = "pairs") -> list[Example]:
    """Encoded with the character tokenizer of the llama checkpoints."""
    return list(read_examples(rows, kind, ConversationEncoder(char_tokenizer("llama3")), RewardConfig()).examples)
