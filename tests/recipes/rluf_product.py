"""What `build_rluf` makes in some minutes, with untrained models."""

from pathlib import Path

import torch

from llamarl.data.jsonl import write_jsonl
from llamarl.models.checkpoint import load_classifier, new_model, save_model
from llamarl.models.classifier import ensure_padding
from llamarl.recipes.build_rluf import TASKS, product_model_config, product_tokenizer, prompt_rows


def write_rluf(directory: Path, count: int = 16) -> Path:
    """Writes policy, P[Love] and prompts."""
    tokenizer = product_tokenizer()
    config = product_model_config(tokenizer)
    save_model(new_model(config, 0), tokenizer, directory / "model")
    love = load_classifier(directory / "model", new_labels=1)
    ensure_padding(love, tokenizer)
    with torch.no_grad():
        love.score.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(3))
    save_model(love, tokenizer, directory / "love" / "model")
    for task in TASKS:
        write_jsonl(directory / f"{task}.jsonl", prompt_rows(0, task, count))
        write_jsonl(directory / f"heldout-{task}.jsonl", prompt_rows(0, task, count, is_heldout=True))
    return directory
