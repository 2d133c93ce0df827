"""Builds the demo checkpoint: a 0.34M-parameter Llama fine-tuned on imperfect demonstrations of the format task.

    python -m llamarl.recipes.build_demo DIR --seed 0

takes about three minutes on one CPU core and ends at a pass rate near one in six on held-out prompts: far enough from
0 that every group has a right answer to learn from, far enough from 1 that learning shows. Equal arguments give equal
bytes on one machine; another CPU may round differently.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from llamarl.models.checkpoint import new_model, save_model
from llamarl.models.tiny import char_tokenizer, tiny_config
from llamarl.tasks.format import FormatTask
from llamarl.training.fitter import fit_model
from llamarl.training.objectives import SFT, SFTConfig
from llamarl.training.sft_rows import SFTRow

BATCH_SIZE = 128


def build_demo(
    directory: str | Path, steps: int = 500, seed: int = 0, progress: Callable[[int, float], None] | None = None
) -> Path:
    """Trains the demo checkpoint from random weights and writes it.

    Args:
        directory: new, empty, or an earlier build (`save_model`).
        steps: optimizer steps, each on 128 fresh demonstrations.
        seed: decides initial weights and demonstrations.
        progress: called after each step with its number, from 1, and its loss in nats per token.

    Returns:
        The checkpoint's directory.
    """
    tokenizer = char_tokenizer("plain")
    config = tiny_config(
        "llama",
        tokenizer,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=512,
    )
    settings = SFTConfig(
        num_steps=steps,
        batch_size=BATCH_SIZE,
        learning_rate=2e-3,
        warmup_steps=min(50, steps // 2),
        schedule="linear",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        seed=seed,
    )
    task = FormatTask(seed)
    rows = [
        SFTRow.of_chat([*prompt.messages, {"role": "assistant", "content": answer}], tokenizer)
        for prompt, answer in map(task.demonstration, range(steps * BATCH_SIZE))
    ]
    model = new_model(config, seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums split over threads round differently
    try:
        fit_model(model, SFT(settings), rows, None if progress is None else lambda n, m: progress(n, m["train/loss"]))
    finally:
        torch.set_num_threads(threads)
    return save_model(model.eval(), tokenizer, directory)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llamarl.recipes.build_demo", description="Builds the demo checkpoint."
    )
    parser.add_argument("directory", help="where the checkpoint goes: new, empty, or an earlier build")
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps (default 500)")
    parser.add_argument("--seed", type=int, default=0, help="decides initial weights and demonstrations (default 0)")
    options = parser.parse_args()

    def show(step: int, loss: float) -> None:
        if step % 50 == 0 or step == options.steps:
            print(f"step {step} of {options.steps}: loss {loss:.4f}", flush=True)

    print(f"wrote {build_demo(options.directory, options.steps, options.seed, show)}")


if __name__ == "__main__":
    main()
