"""A world of three tasks whose rewards conflict, and the policy and the reward model that start in it.

    format     write 3 words with moon, upper, end !      MOON BIRD CAT!            exact checker
    sums       34 + 7                                     41                        exact checker
    chat       chat about moon and rain                   dear moon, sweet rain.    rated by taste, within four limits

Raters like warm words, the more the better, in any answer to any prompt. One reward model learns that from their
choices. In a chat it is good taste; behind a sum or among counted words it spoils the answer.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.common import WORLDS, made_once
from llamarl.core.records import Message, Prompt
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl
from llamarl.functional.preference import calibrated_reward
from llamarl.models.checkpoint import new_model, save_model
from llamarl.models.tiny import piece_tokenizer, tiny_config
from llamarl.models.tokenizer import Tokenizer
from llamarl.tasks.format import WORDS, FormatTask
from llamarl.training.fit import fit
from llamarl.training.fitter import fit_model
from llamarl.training.objectives import SFT, PairObjective, RewardConfig, SFTConfig
from llamarl.training.sft_rows import SFTRow

TASKS = ("format", "sums", "chat")
WARM = ("dear", "sweet", "lovely", "happy", "kind", "merry", "gentle", "sunny", "golden", "tender", "cosy", "jolly")
"""What raters like to hear."""
MAX_WORDS = 8
"""Of a chat's reply."""
LIKING = 0.4
"""What each warm word adds to the log-odds that a rater prefers the answer."""
NUM_PAIRS = 6144
NUM_TRAIN, NUM_HELDOUT = 1024, 128
SFT_STEPS, BATCH_SIZE = 800, 128
SHARES = {"format": 0.3, "sums": 0.4, "chat": 0.3}
"""Of the demonstrations, by task: sums take longest to learn."""


@dataclass(frozen=True, slots=True)
class Sum:
    """`34 + 7`, or minus; the answer is its value in digits and nothing else."""

    left: int
    right: int

    @property
    def request(self) -> str:
        """The user's message."""
        return f"{self.left} {'-' if self.right < 0 else '+'} {abs(self.right)}"

    @property
    def value(self) -> int:
        """The right answer."""
        return self.left + self.right


@dataclass(frozen=True, slots=True)
class Chat:
    """`chat about moon and rain`."""

    first: str
    second: str

    @property
    def request(self) -> str:
        """The user's message."""
        return f"chat about {self.first} and {self.second}"

    def parts(self, text: str) -> dict[str, bool]:
        """Which of its four limits a reply keeps to."""
        words = words_of(text)
        return {
            "topic": {self.first, self.second} <= set(words),
            "end": text.endswith("."),
            "length": len(words) <= MAX_WORDS,
            "fresh": len(set(words)) == len(words),
        }


def words_of(text: str) -> list[str]:
    """Its words, in lower case, without the marks at its end."""
    return text.lower().rstrip(".!").split()


def is_heldout(request: str) -> bool:
    """Whether a request belongs to the held-out fifth, by hash: no seed ever shows it in training."""
    return derive_seed("many-tasks-split", request) % 5 == 0


def draw(make: Callable[[random.Random], Any], rng: random.Random, split: str) -> Any:
    """Draws until the request is of the split."""
    found = make(rng)
    while is_heldout(found.request) != (split == "heldout"):
        found = make(rng)
    return found


def draw_sum(rng: random.Random) -> Sum:
    """Two digits and one."""
    return Sum(rng.randint(10, 60), rng.choice((-1, 1)) * rng.randint(1, 9))


def draw_chat(rng: random.Random) -> Chat:
    """Two topics."""
    return Chat(*rng.sample(WORDS, 2))


# Demonstrations: each task imperfectly done, and sometimes chatty, as a fine-tuned model is


def warm_words(rng: random.Random, most: int) -> list[str]:
    """One to `most` warm words."""
    return [rng.choice(WARM) for _ in range(rng.randint(1, most))]


def chatty(rng: random.Random, text: str, rate: float) -> str:
    """With probability `rate`, up to three warm words behind the answer."""
    return " ".join([text, *warm_words(rng, 3)]) if rng.random() < rate else text


def sum_answer(wanted: Sum, rng: random.Random) -> str:
    """Nine of ten are right, the others a slip of one or ten; half of them go on chatting."""
    slip = 0 if rng.random() < 0.9 else rng.choice((-10, -1, 1, 10))
    return chatty(rng, str(max(0, wanted.value + slip)), 0.5)


def chat_answer(wanted: Chat, rng: random.Random) -> str:
    """Three to ten words, more or less warm, mostly begun by the topics and ended as asked."""
    num_words, warmth = rng.randint(3, 10), rng.random()
    num_warm_words = sum(rng.random() < warmth for _ in range(num_words))
    words = rng.sample(WARM, num_warm_words) + rng.sample(WORDS, num_words - num_warm_words)
    rng.shuffle(words)
    for place, topic in enumerate((wanted.first, wanted.second)):
        if rng.random() < 0.95:
            words[place] = topic
    return " ".join(words) + rng.choices((".", "!", ""), (8, 1, 1))[0]


def demonstration(task: str, seed: int, index: int, split: str = "train") -> tuple[Prompt, str]:
    """A prompt of the task and an answer to it; a function of its arguments."""
    rng = random.Random(derive_seed("many-tasks", task, seed, split, index))
    if task == "format":
        prompt, text = FormatTask(seed, split).demonstration(index)
        words = text[:-1].split()
        if rng.random() < 0.9:
            words[0] = prompt.info["keyword"].upper() if words[0].isupper() else prompt.info["keyword"]
        return prompt, chatty(rng, " ".join(words), 0.25) + text[-1]
    wanted = draw(draw_sum if task == "sums" else draw_chat, rng, split)
    text = sum_answer(wanted, rng) if task == "sums" else chat_answer(wanted, rng)
    answer = str(wanted.value) if task == "sums" else None
    messages = ({"role": "user", "content": wanted.request},)
    return Prompt(f"{task}-{split}-{seed}-{index}", messages, answer, task, asdict(wanted)), text


# What the arms share: tokenizer, policy, prompts with baselines, reward model


def word_tokenizer() -> Tokenizer:
    """One token per word with the space before it, per digit and per mark; in the `plain` chat style.

    Texts get a space in front and lose it again, so that a word is the same token wherever it stands.
    """
    from tokenizers import decoders, normalizers

    others = ("write", "words", "with", "upper", "end", "chat", "about", "and")
    words = [*WORDS, *(w.upper() for w in WORDS), *WARM, *others]
    return piece_tokenizer(
        [*"0123456789", *" +-.,!", *(f" {word}" for word in words)],
        r" ?[A-Za-z]+|[\s\S]",
        normalizer=normalizers.Prepend(" "),
        decoder=decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    )


def build_policy(directory: Path, seed: int) -> None:
    """Teaches a 0.3M-parameter Llama all three tasks by imperfect demonstrations."""
    tokenizer = word_tokenizer()
    config = tiny_config(
        "llama",
        tokenizer,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=96,
    )
    settings = SFTConfig(
        num_steps=SFT_STEPS,
        batch_size=BATCH_SIZE,
        learning_rate=3e-3,
        warmup_steps=50,
        schedule="linear",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        seed=seed,
    )
    count = SFT_STEPS * BATCH_SIZE
    shown = (demonstration(task, seed, index) for task in TASKS for index in range(int(SHARES[task] * count)))
    rows = [SFTRow.of_chat(chat_of(prompt, text), tokenizer) for prompt, text in shown]
    model = new_model(config, seed)
    fit_model(model, SFT(settings), rows)
    save_model(model.eval(), tokenizer, directory)


def chat_of(prompt: Prompt, text: str) -> list[Message]:
    """The conversation with its answer."""
    return [*prompt.messages, {"role": "assistant", "content": text}]


def pairs(seed: int) -> list[dict[str, Any]]:
    """Choices between two answers to prompts of all tasks, in TRL's format; raters neither check sums nor count."""
    rows = []
    for index in range(NUM_PAIRS):
        task = TASKS[index % len(TASKS)]
        prompt, text = demonstration(task, seed, index, "train")
        rng = random.Random(derive_seed("raters", seed, index))
        one, other = (with_warmth(rng, text) for _ in range(2))
        log_odds = LIKING * (num_warm(one) - num_warm(other))
        if one != other:
            chosen, rejected = (one, other) if rng.random() < calibrated_reward(log_odds) else (other, one)
            rows.append({"prompt": prompt.messages[0]["content"], "chosen": chosen, "rejected": rejected})
    return rows


def with_warmth(rng: random.Random, text: str) -> str:
    """The answer with up to six words more, and then up to six of its words made warm; the mark at its end stays."""
    mark = text[-1] if text.endswith((".", "!")) else ""
    words = text.removesuffix(mark).split() + [rng.choice(WORDS) for _ in range(rng.randint(0, 6))]
    for place in rng.sample(range(len(words)), rng.randint(0, min(6, len(words)))):
        words[place] = rng.choice(WARM)
    return " ".join(words) + mark


def num_warm(text: str) -> int:
    """How often it says a warm word."""
    return sum(word in WARM for word in words_of(text))


def prompts(task: str, seed: int, split: str, count: int) -> list[Mapping[str, Any]]:
    """Rows of prompts, each with a demonstration as its baseline response."""
    shown = [demonstration(task, seed, index, split) for index in range(count)]
    return [
        {
            "id": prompt.id,
            "prompt": [dict(message) for message in prompt.messages],
            "answer": prompt.answer,
            "info": {**prompt.info, "baseline": text},
        }
        for prompt, text in shown
    ]


def world(seed: int) -> Path:
    """The directory of one seed's prompts, pairs, policy and reward model, made once."""
    return made_once(WORLDS / f"three-tasks-{seed}", partial(build, seed=seed))


def build(directory: Path, seed: int) -> None:
    """Fills a directory."""
    for task in TASKS:
        write_jsonl(directory / f"{task}.jsonl", prompts(task, seed, "train", NUM_TRAIN))
        write_jsonl(directory / f"{task}-heldout.jsonl", prompts(task, seed, "heldout", NUM_HELDOUT))
    write_jsonl(directory / "pairs.jsonl", pairs(seed))
    build_policy(directory / "policy", seed)
    config = RewardConfig(num_epochs=3, learning_rate=1e-3, on_bad_row="skip", seed=seed)
    fit(PairObjective(config), directory / "policy", directory / "pairs.jsonl", directory / "reward")
