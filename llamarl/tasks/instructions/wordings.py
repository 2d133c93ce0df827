"""The texts of one language that prompts are made of; each language is a TOML file in `texts/`."""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError

LANGUAGES = ("en", "fr", "ru", "hi", "it", "pt", "es", "zh")
"""Codes of the languages that prompts are written in."""


@dataclass(frozen=True, slots=True)
class Topic:
    """Subject of a task."""

    topic: str
    keywords: tuple[str, ...]
    """Words that a text about it may use; none is a part of another."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Everything a language contributes."""

    language: str
    joiner: str
    """Text between the sentences of a message."""
    quotes: tuple[str, str]
    list_separator: str
    tasks: tuple[str, ...]
    """Sentences with a place for `{topic}`."""
    questions: tuple[str, ...]
    """Questions to be answered with yes or no."""
    topics: tuple[Topic, ...]
    follow_ups: tuple[str, ...]
    """Phrases by which a later turn of a conversation asks for one more instruction."""
    additions: tuple[str, ...]
    """Phrases by which one message asks for more instructions."""
    end_phrases: tuple[str, ...]
    first_words: tuple[str, ...]
    sections: tuple[str, ...]
    postscripts: tuple[str, ...]
    languages: Mapping[str, str]
    """Code -> name of each other language that a reply may be asked for in."""
    wordings: Mapping[str, tuple[str, ...]]
    """Instruction id, with its relation where it has one, -> ways to say it."""

    def say(self, wording: str, kwargs: Mapping[str, Any]) -> str:
        """A wording with its arguments filled in; lists are quoted and separated as the language does it."""
        values = {name: self._list(value) if isinstance(value, list) else value for name, value in kwargs.items()}
        if "language" in values:
            values["language"] = self.languages[values["language"]]
        return wording.format(**values)

    def _list(self, words: list[str]) -> str:
        first, last = self.quotes
        return self.list_separator.join(f"{first}{word}{last}" for word in words)


@functools.cache
def load_texts(language: str) -> Texts:
    """The texts of a language. Raises `ConfigError` for a language that there are none of."""
    if language not in LANGUAGES:
        raise ConfigError(f"language={language!r}: no prompts in it.{suggest(language, list(LANGUAGES))}")
    file = resources.files("llamarl.tasks.instructions") / "texts" / f"{language}.toml"
    values = {name: _tuples(value) for name, value in tomllib.loads(file.read_text(encoding="utf-8")).items()}
    values["topics"] = tuple(Topic(topic["topic"], topic["keywords"]) for topic in values["topics"])
    return Texts(language=language, **values)


def _tuples(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return value
