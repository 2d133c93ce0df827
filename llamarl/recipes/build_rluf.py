"""Builds what the recipes `rluf` and `rluf_scalar` start from: a product whose users are simulated, and its policy.

    python -m llamarl.recipes.build_rluf DIR --seed 0

    DIR/log, DIR/store     the log of the product's users (`feedback simulate`), and its store (`feedback ingest`)
    DIR/love               P[Love] of the store (`feedback fit`), a reward model of 0.3M parameters
    DIR/model              Hugging Face checkpoint of as many, taught to answer as the product did
    DIR/{love,helpfulness,safety}.jsonl    prompts of each task; `info.baseline` is the product's own reply
    DIR/heldout-{...}.jsonl                others of each

takes some minutes on one CPU core. Equal arguments give equal bytes of model and prompts on one machine; another CPU
may round differently.
"""

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llamarl.core.records import Message
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl
from llamarl.feedback import Fit, Ingest, Simulation, fit, ingest, simulate
from llamarl.feedback.phrases import ENGLISH, PIECES, REPLY_PIECES, SPANISH, Phrasebook
from llamarl.models.checkpoint import new_model, save_model
from llamarl.models.tiny import piece_tokenizer, tiny_config
from llamarl.models.tokenizer import Tokenizer
from llamarl.training.fitter import Fitter
from llamarl.training.objectives import SFT, LoveConfig, SFTConfig
from llamarl.training.sft_rows import SFTRow

TASKS = ("love", "helpfulness", "safety")
NUM_TRAIN, NUM_HELDOUT = 1024, 128
BATCH_SIZE = 96
SPANISH_SHARE = 0.25
WORD = r" ?\w+|[^\w\s]|\s"
"""A token is a word with the blank before it, or a mark."""
PRODUCT_PHRASE = 0.0072
"""Share of the product's replies that hold the phrase which bots love."""


def build_rluf(
    directory: str | Path, *, users: int = 2000, sft_steps: int = 400, love: LoveConfig | None = None, seed: int = 0
) -> Path:
    """Simulates the product, trains P[Love] on its log, and teaches a policy to answer as the product did.

    Args:
        directory: new, or an earlier build.
        users: in the log of four weeks.
        sft_steps: optimizer steps of the policy, each on 96 fresh replies.
        love: training of P[Love]; None: one epoch.
        seed: decides everything.

    Returns:
        The directory.
    """
    directory = Path(directory)
    tokenizer = product_tokenizer()
    simulate(Simulation(out=directory / "log", users=users, seed=seed))
    # suspicious users stay: what their loves teach is what the constraint on farewells is there for
    logs = (str(directory / "log" / "logs.jsonl"),)
    ingest(Ingest(logs=logs, out=directory / "store", keep_suspicious=True))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums split over threads round differently
    try:
        base = save_model(new_model(product_model_config(tokenizer), seed), tokenizer, directory / "base")
        if not (directory / "love" / "summary.json").exists():
            fit(Fit(store=directory / "store", model=str(base), out=directory / "love"), love or _love_settings(seed))
        save_model(_teach(tokenizer, sft_steps, seed), tokenizer, directory / "model")
    finally:
        torch.set_num_threads(threads)
    for task in TASKS:
        write_jsonl(directory / f"{task}.jsonl", prompt_rows(seed, task, NUM_TRAIN))
        write_jsonl(directory / f"heldout-{task}.jsonl", prompt_rows(seed, task, NUM_HELDOUT, is_heldout=True))
    return directory


def product_tokenizer() -> Tokenizer:
    """One token per word that the product and its users know; in the `plain` chat style."""
    texts = [text for book in (ENGLISH, SPANISH) for name in PIECES for text in book[name]]
    texts += [f" {text}" for text in (*texts, _phrase())]  # a word has another token at the start of a text
    words = sorted({word for text in texts for word in re.findall(WORD, text.replace("{}", " "))})
    return piece_tokenizer(words, WORD)


def product_model_config(tokenizer: Tokenizer) -> Any:
    """Shape of P[Love] and of the policy."""
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2}
    return tiny_config("llama", tokenizer, **sizes, num_key_value_heads=4, max_position_embeddings=192)


def prompt_rows(seed: int, task: str, count: int, *, is_heldout: bool = False) -> Iterator[dict[str, Any]]:
    """Different prompts of the product's users, each with its topic and with the product's reply as the baseline.

    A fifth of all prompts are held out, chosen by hash, whatever the seed and the task.
    """
    split = "heldout" if is_heldout else "train"
    rng, seen = random.Random(derive_seed("rluf", task, split, seed)), set[str]()
    while len(seen) < count:
        prompt, topic, reply = draw_turn(rng)
        if prompt not in seen and (derive_seed("rluf-split", prompt) % 5 == 0) is is_heldout:
            seen.add(prompt)
            yield {"id": f"{split}-{len(seen)}", "prompt": prompt, "info": {"topic": topic, "baseline": reply}}


def draw_turn(rng: random.Random) -> tuple[str, str, str]:
    """A prompt as the log has them, its topic, and a reply of the product."""
    book = SPANISH if rng.random() < SPANISH_SHARE else ENGLISH
    topic = rng.choice(book["topic"])
    prompt = f"{rng.choice(book['ask']).replace('{}', topic)} {rng.choice(book['mood'])}"
    return prompt, topic, _draw_reply(rng, book, topic)


def _draw_reply(rng: random.Random, book: Phrasebook, topic: str) -> str:
    pieces = [rng.choice(book[name]).replace("{}", topic) for name in REPLY_PIECES]
    if rng.random() < PRODUCT_PHRASE:
        pieces.append(_phrase())
    return " ".join(piece for piece in pieces if piece)


def _phrase() -> str:
    return str(Simulation.model_fields["phrase"].default)


def _teach(tokenizer: Tokenizer, steps: int, seed: int) -> nn.Module:
    """A policy that answers as the product did."""
    config = SFTConfig(
        num_steps=steps,
        batch_size=BATCH_SIZE,
        learning_rate=3e-3,
        warmup_steps=min(20, steps // 2),
        schedule="linear",
        seed=seed,
    )
    fitter = Fitter(new_model(product_model_config(tokenizer), seed), SFT(config))
    rng = random.Random(derive_seed("rluf", "demonstrations", seed))
    for _ in range(steps):
        fitter.step([SFTRow.of_chat(_chat(rng), tokenizer) for _ in range(BATCH_SIZE)])
    return fitter.model.eval()


def _chat(rng: random.Random) -> list[Message]:
    prompt, _, reply = draw_turn(rng)
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def _love_settings(seed: int) -> LoveConfig:
    return LoveConfig(batch_size=64, learning_rate=2e-3, warmup_steps=20, schedule="linear", device="cpu", seed=seed)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llamarl.recipes.build_rluf", description="Builds the simulated product, its P[Love] and policy."
    )
    parser.add_argument("directory", help="where everything goes")
    parser.add_argument("--users", type=int, default=2000, help="users in the log (default 2000)")
    parser.add_argument("--sft-steps", type=int, default=400, help="optimizer steps of the policy (default 400)")
    parser.add_argument("--seed", type=int, default=0, help="decides everything (default 0)")
    options = parser.parse_args()
    built = build_rluf(options.directory, users=options.users, sft_steps=options.sft_steps, seed=options.seed)
    print(f"wrote {built}")


if __name__ == "__main__":
    main()
