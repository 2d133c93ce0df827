"""Draws conversations: a task, and instructions that add up over the turns and can be followed together."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llamarl.core.errors import ConfigError
from llamarl.core.seeds import derive_seed
from llamarl.tasks.instructions.arguments import Draw, draw_kwargs
from llamarl.tasks.instructions.catalog import IDS, Instruction
from llamarl.tasks.instructions.conflicts import FIRST_TURN_ONLY, are_compatible
from llamarl.tasks.instructions.room import have_room
from llamarl.tasks.instructions.wordings import Texts, load_texts

MAX_TURNS = 3
MAX_FIRST = 3
"""Most instructions of the first turn; each later turn adds one."""
TRIES = 4
"""Draws of arguments for an instruction before another instruction is taken."""

_ANSWER = "detectable_format:constrained_response"


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversation before it is put into one of its forms."""

    key: str
    language: str
    messages: tuple[str, ...]
    """The first request with its instructions; then, for each later turn, its instruction alone, as a sentence."""
    instructions: tuple[tuple[Instruction, ...], ...]
    """Instructions by turn; each begins with those of the turn before."""
    variant: int
    """Chooses among equivalent phrases."""

    @property
    def texts(self) -> Texts:
        """The language's texts."""
        return load_texts(self.language)


def draw_draft(language: str, *, seed: int, index: int, turns: int = 1) -> Draft:
    """Draws the conversation of a number, the same whatever else is drawn. Fewer turns give a prefix of more.

    Args:
        language: one of `LANGUAGES`.
        seed: another one gives other conversations.
        index: number of the conversation, from 0.
        turns: 1 to 3.

    Raises:
        ConfigError: an argument is out of range.
    """
    if not 1 <= turns <= MAX_TURNS:
        raise ConfigError(f"turns={turns}; give 1 to {MAX_TURNS}")
    texts = load_texts(language)
    rng = random.Random(derive_seed("instructions", language, seed, index))
    topic = rng.choice(texts.topics)
    task = rng.choice(texts.tasks).format(topic=topic.topic)
    question = rng.choice(texts.questions)
    num_first = rng.randint(1, MAX_FIRST)
    instructions: list[Instruction] = []
    for position in range(num_first + turns - 1):
        instructions.append(_next(Draw(texts, topic, task, tuple(instructions), rng), is_first=position < num_first))
    if any(instruction["id"] == _ANSWER for instruction in instructions):
        task = question
    phrasing = random.Random(derive_seed("phrasing", language, seed, index))
    said = [_phrase(texts, instruction, phrasing) for instruction in instructions]
    return Draft(
        key=f"{language}-{seed}-{index}",
        language=language,
        messages=(texts.joiner.join([task, *said[:num_first]]), *said[num_first:]),
        instructions=tuple(tuple(instructions[: num_first + turn]) for turn in range(turns)),
        variant=derive_seed("variant", language, seed, index),
    )


def draw_drafts(languages: Sequence[str], count: int, *, seed: int, turns: int = 1) -> Iterator[Draft]:
    """Draws `count` conversations in each language."""
    if count < 1:
        raise ConfigError(f"count={count}; give at least 1")
    for language in languages:
        for index in range(count):
            yield draw_draft(language, seed=seed, index=index, turns=turns)


def _next(draw: Draw, *, is_first: bool) -> Instruction:
    """Draws one more instruction that fits those before it."""
    ids = [id for id in IDS if (is_first or id not in FIRST_TURN_ONLY) and _fits(id, draw)]
    for id in draw.rng.sample(ids, len(ids)):
        for _ in range(TRIES):
            instruction: dict[str, Any] = {"id": id, "kwargs": draw_kwargs(id, draw)}
            if have_room([*draw.earlier, instruction], draw.texts.language):
                return instruction
    raise AssertionError(f"nothing fits {list(draw.earlier)}")  # pragma: no cover


def _fits(id: str, draw: Draw) -> bool:
    return all(are_compatible(id, instruction["id"], draw.texts.language) for instruction in draw.earlier)


def _phrase(texts: Texts, instruction: Instruction, rng: random.Random) -> str:
    """Says the instruction in a sentence of the language."""
    kwargs = instruction["kwargs"]
    relation = next((value for name, value in kwargs.items() if name.endswith("relation")), "")
    return texts.say(rng.choice(texts.wordings[f"{instruction['id']} {relation}".strip()]), kwargs)
