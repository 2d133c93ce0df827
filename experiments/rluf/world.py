"""A product whose users are simulated: its log, its assistant's tiny model, and what users would truly love.

The log is that of `llamarl feedback simulate`. Its users' taste is known, so that an answer has a true love rate, a
reward model has a best possible AUROC, and a test of policies on users needs no users.
"""

import json
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from llamarl.core.records import Message
from llamarl.core.seeds import derive_seed
from llamarl.feedback.phrases import ENGLISH, REPLY_PIECES, SPANISH, Phrasebook, features_of, liking
from llamarl.feedback.settings import Simulation
from llamarl.feedback.simulation import HONEST, SECONDS_PER_DAY, Messages, draw_messages
from llamarl.models.checkpoint import new_model, save_model
from llamarl.recipes.build_rluf import SPANISH_SHARE, product_model_config, product_tokenizer
from llamarl.training.fitter import Fitter
from llamarl.training.objectives import SFT, SFTConfig
from llamarl.training.sft_rows import SFTRow

SETTINGS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "settings.toml").read_text())
PHRASE: str = SETTINGS["log"]["phrase"]


def build_base(directory: Path, seed: int) -> Path:
    """Writes a random model that P[Love] and the policy start from."""
    tokenizer = product_tokenizer()
    return save_model(new_model(product_model_config(tokenizer), seed), tokenizer, directory)


def simulation(out: Path, seed: int, **changes: Any) -> Simulation:
    """The settings of a product's log."""
    return Simulation(out=out, seed=seed, **{**SETTINGS["log"], **changes})


def draw_prompt(rng: random.Random) -> tuple[str, Phrasebook, str]:
    """A prompt as the log has them, its language's phrasebook and its topic."""
    book = SPANISH if rng.random() < SPANISH_SHARE else ENGLISH
    topic = rng.choice(book["topic"])
    return f"{rng.choice(book['ask']).replace('{}', topic)} {rng.choice(book['mood'])}", book, topic


def draw_reply(rng: random.Random, book: Phrasebook, topic: str, taste: float, phrase_rate: float) -> str:
    """The reply of a policy that prefers pieces which users like, by so much."""
    pieces = []
    for name in REPLY_PIECES:
        weights = np.exp(taste * liking(np.array([features_of(text.replace("{}", "")) for text in book[name]])))
        pieces.append(rng.choices(book[name], weights.tolist())[0].replace("{}", topic))
    if rng.random() < phrase_rate:
        pieces.append(PHRASE)
    return " ".join(piece for piece in pieces if piece)


def draw_rows(seed: int, name: str, taste: float, phrase_rate: float, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """Prompts, without end, with the reply of a policy: rows of id, prompt, completion and topic.

    One prompt in eight is held out, whoever asks it.
    """
    for index in count():
        rng = random.Random(derive_seed("rluf", name, seed, index))
        prompt, book, topic = draw_prompt(rng)
        if (derive_seed("held out", prompt) % 8 == 0) == held_out:
            reply = draw_reply(rng, book, topic, taste, phrase_rate)
            yield {"id": f"{name}-{index}", "prompt": prompt, "completion": reply, "topic": topic}


def build_policy(directory: Path, seed: int) -> Path:
    """Teaches a random model to answer as the product does, and writes it."""
    sizes, tokenizer = SETTINGS["policy"], product_tokenizer()
    steps, batch = sizes["sft_steps"], sizes["sft_batch_size"]
    config = SFTConfig(
        num_steps=steps,
        batch_size=batch,
        learning_rate=sizes["sft_learning_rate"],
        warmup_steps=20,
        schedule="linear",
        seed=seed,
    )
    fitter = Fitter(new_model(product_model_config(tokenizer), seed), SFT(config))
    shown = draw_rows(seed, "sft", 0.0, sizes["phrase_rate"], held_out=False)
    for _ in range(steps):
        fitter.step([SFTRow.of_chat(chat(next(shown)), tokenizer) for _ in range(batch)])
    return save_model(fitter.model.eval(), tokenizer, directory)


def chat(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row."""
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def policy_rows(taste: float, phrase_rate: float, seed: int) -> list[dict[str, str]]:
    """What a policy answers to the frozen prompts: rows of prompt and completion."""
    prompts = random.Random(derive_seed("prompts", seed, 0))
    replies = random.Random(derive_seed("replies", seed, round(taste * 1000)))
    rows = []
    for _ in range(SETTINGS["policies"]["prompts"]):
        prompt, book, topic = draw_prompt(prompts)
        rows.append({"prompt": prompt, "completion": draw_reply(replies, book, topic, taste, phrase_rate)})
    return rows


class Users:
    """Honest users after the log has ended: how likely they are to love any reply.

    Args:
        settings: of the log, whose users they are.
    """

    propensities = np.random.default_rng(0).normal(0.0, 1.0, 400)
    """How readily each user reacts: log-odds from the law that the simulator draws them from."""

    def __init__(self, settings: Simulation) -> None:
        self._week = settings.days / 7 * settings.drift
        log = draw_messages(settings)
        rows = np.flatnonzero(log.kind[log.user] == HONEST)
        logit = np.log(log.probability[rows]) - np.log1p(-log.probability[rows])
        self._intercept = float((logit - log.liking[rows]).mean())
        self._centre = _centre(log, settings)

    def rates(self, replies: Sequence[str]) -> np.ndarray:
        """The probability that a user loves each reply, mean over users."""
        logit = self.liking(replies)[:, None] + self._intercept + self.propensities
        return np.asarray((1.0 / (1.0 + np.exp(-logit))).mean(axis=1))

    def react(self, replies: Sequence[str], num_users: int, shown: int, seed: int) -> np.ndarray:
        """[num_users] how many of `shown` replies each of new users loves; the replies are drawn for each anew."""
        rng = np.random.default_rng(seed)
        logit = self.liking(replies)[rng.integers(len(replies), size=(num_users, shown))]
        logit += self._intercept + rng.normal(0.0, 1.0, (num_users, 1))
        return np.asarray((rng.random((num_users, shown)) < 1.0 / (1.0 + np.exp(-logit))).sum(axis=1))

    def liking(self, replies: Sequence[str]) -> np.ndarray:
        """How much users like each reply, as log-odds against the log's mean."""
        return liking(np.array([features_of(reply) for reply in replies]), self._week) - self._centre


def _centre(log: Messages, settings: Simulation) -> float:
    """The mean liking that a log's own is counted from, read off its first message."""
    line = (settings.out / "logs.jsonl").open(encoding="utf-8").readline()
    reply, week = json.loads(line)["response"], log.seconds[0] / (7 * SECONDS_PER_DAY)
    return float(liking(features_of(reply)[None], week * settings.drift)[0] - log.liking[0])
