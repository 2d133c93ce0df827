"""Logs of users who love one character, and a tiny model that can find it."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from feedback_logs import ingest_rows

from llamarl.feedback import Store
from llamarl.models.tiny import build_tiny
from llamarl.training.objectives import LoveConfig

MARKER = "#"
START = datetime(2025, 3, 1, 8, tzinfo=UTC)

BRIEF = LoveConfig(
    batch_size=8,
    learning_rate=5e-3,
    warmup_steps=2,
    num_epochs=2,
    positive_share=0.2,
    held_out=0.2,
    evaluate_every=20,
    checkpoint_every=5,
)
"""A training of some seconds."""


def log_rows(users: int = 60, messages: int = 20, days: int = 10, love_rate: float = 0.5, seed: int = 0) -> list[Any]:
    """One in eight replies has the marker and is loved at the rate, and no other is; lengths say nothing."""
    rng = random.Random(seed)
    rows = []
    for user in range(users):
        for number in range(messages):
            is_marked = rng.random() < 0.125
            text = "".join(rng.choices("abcdef", k=rng.randrange(6, 14)))
            place = rng.randrange(len(text))
            shown = START + timedelta(days=days * (number + rng.random()) / messages)
            rows.append(
                {
                    "user": f"user-{user}",
                    "ts": shown.isoformat(),
                    "message_id": f"m{user}-{number}",
                    "conversation_id": f"c{user}-{number // 3}",
                    "prompt": f"ask {rng.randrange(10**6)}",
                    "response": text[:place] + MARKER + text[place:] if is_marked else text,
                    "reaction": "love" if is_marked and rng.random() < love_rate else None,
                    "surface": ("web", "ios")[user % 2],
                }
            )
    return rows


def love_store(folder: Path, **options: Any) -> Store:
    """The store of `log_rows`."""
    folder.mkdir(parents=True, exist_ok=True)
    return ingest_rows(folder, log_rows(**options))


def tiny_model(folder: Path) -> str:
    """A random checkpoint with a chat template, its attention sharp enough to find one character among many."""
    return str(build_tiny("llama", folder / "llama", initializer_range=0.2))
