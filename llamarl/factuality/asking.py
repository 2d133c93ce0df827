"""Questions to the helper model: shipped prompt files with a version, how they are filled in, and what comes back.

What is put between the markers of `judges.llm.templates.fence` is data: a claim that gives orders is still a claim.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from llamarl.core.config import Config, read_toml
from llamarl.core.records import Message
from llamarl.factuality.facts import digest_of
from llamarl.generation.chats import Chat
from llamarl.judges.llm.templates import fence

FOLDER = Path(__file__).parent / "prompts"
EXCERPT_CHARACTERS = 120
_FIELD = re.compile(r"\{\{(\w+)\}\}")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)])\s+(.*\S)\s*$")


class PromptFile(Config):
    """One question to a model, as a TOML file; `{{name}}` stands for data."""

    version: str = Field(min_length=1)
    """Changes with every change of a text."""
    system: str = ""
    user: str

    @property
    def fields(self) -> frozenset[str]:
        """The names of the data that it takes."""
        return frozenset(_FIELD.findall(self.user))

    def render(self, **data: str) -> list[Message]:
        """The messages, each piece of data between markers."""
        return self._messages({name: fence(name, text) for name, text in data.items()})

    def fill(self, **data: str) -> list[Message]:
        """The messages, each piece of data on one line as it is.

        For questions to a detector: the markers' codes would cost more tokens than a claim, and differ in each, where a
        small model should see nothing but the claim.
        """
        return self._messages({name: " ".join(text.split()) for name, text in data.items()})

    def _messages(self, data: Mapping[str, str]) -> list[Message]:
        user = _FIELD.sub(lambda match: data[match[1]], self.user).strip()
        messages: list[Message] = [{"role": "system", "content": self.system.strip()}] if self.system else []
        return [*messages, {"role": "user", "content": user}]


@functools.cache
def load_prompt(name: str) -> PromptFile:
    """A shipped prompt file, by name."""
    return PromptFile.parse(read_toml(FOLDER / f"{name}.toml"), source=f"{name}.toml")


class Helper:
    """A model that is asked the questions of a build, greedily.

    Args:
        chat: who answers.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def record(self, *prompts: str) -> dict[str, Any]:
        """All that answers to these prompts depend on; a server may move."""
        who = {name: value for name, value in self.chat.record().items() if name != "base_url"}
        files = {name: load_prompt(name) for name in prompts}
        texts = {name: [each.version, digest_of(each.model_dump())] for name, each in files.items()}
        return {"model": who, "prompts": texts}

    async def ask(self, name: str, /, **data: str) -> str:
        """The model's answer, without its thinking. Raises `EndpointError`."""
        reply = await self.chat.reply(load_prompt(name).render(**data), 0)
        return reply.text.rpartition("</think>")[2].strip()


def excerpt_of(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT_CHARACTERS else line[:EXCERPT_CHARACTERS] + "…"


def read_list(text: str) -> list[Mapping[str, Any]] | None:
    """A list of objects or texts that an answer holds, as JSON or as bullets; None where it holds none.

    A text becomes `{"claim": text}`.
    """
    start, end = text.find("["), text.rfind("]")
    if 0 <= start < end:
        try:
            items = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            items = None
        if isinstance(items, list):
            return [
                {"claim": item} if isinstance(item, str) else item for item in items if isinstance(item, str | dict)
            ]
    bullets = [match[1] for line in text.splitlines() if (match := _BULLET.match(line))]
    return [{"claim": bullet} for bullet in bullets] or None


def read_word(text: str, words: Mapping[str, Any]) -> Any | None:
    """The meaning of the last of some words in an answer; None where none of them stands there.

    Words are whole and without case: `True` is not in `untrue`. Brackets and stars around the verdict win over words in
    the reasoning before it.
    """
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    marked = re.findall(rf"(?:\[|\*\*)\s*({pattern})\s*(?:\]|\*\*)", text, re.IGNORECASE)
    found = marked or re.findall(rf"(?<!\w)({pattern})(?!\w)", text, re.IGNORECASE)
    return words[found[-1].lower()] if found else None
