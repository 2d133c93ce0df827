"""Builds what experiments on the permutation chain start from: a 0.45M-parameter checkpoint, its data, prompt files.

    python -m llamarl.recipes.build_chain DIR --seed 0

    DIR/model              Hugging Face checkpoint: long answers right at every level, short ones up to three operations
    DIR/sft.jsonl          demonstrations, for `llamarl sft`
    DIR/train.jsonl        prompts of mode A, three quarters of them hard
    DIR/conditioned.jsonl  the same problems, each under a stated budget of 0.25, 0.5 or 0.75, in turn
    DIR/heldout.jsonl      other prompts of mode A, all levels alike

takes some minutes on one CPU core. Equal arguments give equal bytes on one machine; another CPU may round differently.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llamarl.core.records import Message, Prompt
from llamarl.data.jsonl import write_jsonl
from llamarl.models.checkpoint import new_model, save_model
from llamarl.models.tiny import piece_tokenizer, tiny_config
from llamarl.models.tokenizer import Tokenizer
from llamarl.tasks.chain import OPERATIONS, UNIFORM, ChainTask, write_prompts
from llamarl.training.fitter import Fitter
from llamarl.training.objectives import SFT, SFTConfig
from llamarl.training.sft_rows import SFTRow

BATCH_SIZE = 128
NUM_TRAIN, NUM_HELDOUT, NUM_SFT = 4096, 1024, 20_000
BUDGETS = (0.25, 0.5, 0.75)
"""Stated in the conditioned prompts."""


def build_chain(
    directory: str | Path, steps: int = 2000, seed: int = 0, progress: Callable[[int, float], None] | None = None
) -> Path:
    """Trains the checkpoint from random weights and writes it beside its data.

    Args:
        directory: `directory/model` is new, empty, or an earlier build (`save_model`).
        steps: optimizer steps, each on 128 fresh demonstrations.
        seed: decides initial weights, demonstrations and prompts.
        progress: called after each step with its number, from 1, and its loss in nats per token.

    Returns:
        The directory.
    """
    directory = Path(directory)
    task, tokenizer = ChainTask(seed), chain_tokenizer()
    fitter = Fitter(new_model(chain_model_config(tokenizer), seed), SFT(_settings(steps, seed)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums split over threads round differently
    try:
        for step in range(steps):
            shown = (task.demonstration(step * BATCH_SIZE + i, step / steps) for i in range(BATCH_SIZE))
            metrics = fitter.step([SFTRow.of_chat(_chat(*pair), tokenizer) for pair in shown])
            if progress is not None:
                progress(step + 1, metrics["train/loss"])
    finally:
        torch.set_num_threads(threads)
    save_model(fitter.model.eval(), tokenizer, directory / "model")
    rows = (task.demonstration(index, index / NUM_SFT) for index in range(NUM_SFT))
    write_jsonl(directory / "sft.jsonl", ({"messages": _chat(*pair)} for pair in rows))
    write_prompts(directory / "train.jsonl", NUM_TRAIN, seed)
    write_prompts(directory / "conditioned.jsonl", NUM_TRAIN, seed, budgets=BUDGETS)
    write_prompts(directory / "heldout.jsonl", NUM_HELDOUT, seed, "heldout", level_weights=UNIFORM)
    return directory


def chain_tokenizer() -> Tokenizer:
    """One token per character of the task, `<think>` and `</think>` among them; in the `plain` chat style."""
    return piece_tokenizer(["<think>", "</think>", *"0123456789", *OPERATIONS, *".SLA"], r"</?think>|[\s\S]")


def chain_model_config(tokenizer: Tokenizer) -> Any:
    """Shape of the checkpoint."""
    return tiny_config(
        "llama",
        tokenizer,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )


def _settings(steps: int, seed: int) -> SFTConfig:
    return SFTConfig(
        num_steps=steps,
        batch_size=BATCH_SIZE,
        learning_rate=2e-3,
        warmup_steps=min(50, steps // 2),
        schedule="linear",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        seed=seed,
    )


def _chat(prompt: Prompt, answer: str) -> list[Message]:
    return [*prompt.messages, {"role": "assistant", "content": answer}]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llamarl.recipes.build_chain", description="Builds the permutation chain's checkpoint and data."
    )
    parser.add_argument("directory", help="where everything goes")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="decides weights, demonstrations and prompts (default 0)")
    options = parser.parse_args()

    def show(step: int, loss: float) -> None:
        if step % 100 == 0 or step == options.steps:
            print(f"step {step} of {options.steps}: loss {loss:.4f}", flush=True)

    print(f"wrote {build_chain(options.directory, options.steps, options.seed, show)}")


if __name__ == "__main__":
    main()
