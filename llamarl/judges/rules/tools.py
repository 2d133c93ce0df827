"""Tools that the rules of one grader share: its language detector, its sentence splitter, its tokenizer."""

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Literal

from llamarl.core.errors import ConfigError
from llamarl.judges.rules.base import Mode
from llamarl.judges.rules.languages import Langdetect, Lingua
from llamarl.judges.rules.sentences import count_by_rules, load_punkt
from llamarl.judges.rules.words import count_runs, emoji_characters, word_tokens

SentenceSplitter = Literal["punkt", "rules"]

PACKAGES = ("langdetect", "lingua-language-detector", "emoji", "nltk", "pythainlp", "python-crfsuite")
"""Packages on which verdicts may depend."""


class RuleTools:
    """The tools of one mode. Fixed mode loads lingua for the rules that need it; the others load all at once."""

    def __init__(self, mode: Mode, sentence_splitter: SentenceSplitter, seed: int | None) -> None:
        """See `Grader`."""
        if sentence_splitter not in ("punkt", "rules"):
            raise ConfigError(f"sentence_splitter={sentence_splitter!r}; choose 'punkt' or 'rules'")
        self.mode, self.sentence_splitter, self.seed = mode, sentence_splitter, seed
        self.count_sentences: Callable[[str], int]
        self.tokens: Callable[[str], list[str]]
        if sentence_splitter == "punkt":
            self.count_sentences, self.tokens = load_punkt()
        else:
            self.count_sentences = functools.partial(count_by_rules, is_any_script=mode == "fixed")
            self.tokens = word_tokens
        if mode != "fixed":
            emoji_characters()
            self.load_language()
        self.has_thai_words = mode == "official" and importlib.util.find_spec("pythainlp") is not None
        self.has_thai_sentences = self.has_thai_words and importlib.util.find_spec("pycrfsuite") is not None

    @functools.cached_property
    def _detector(self) -> Langdetect | Lingua:
        return Lingua() if self.mode == "fixed" else Langdetect(self.seed)

    def load_language(self) -> None:
        """Loads the language detector. Raises `MissingDependencyError` where its package is missing."""
        _ = self._detector

    def detect(self, text: str) -> str | None:
        """The language's code, or None where nothing tells it."""
        return self._detector.detect(text)

    def thai_words(self, text: str) -> int:
        """Counts words by pythainlp where it is installed, as the released grader does; else runs (`count_runs`)."""
        if not self.has_thai_words:
            return count_runs(text)
        return len(_pythainlp().word_tokenize(text))

    def thai_sentences(self, text: str) -> int:
        """Counts sentences by pythainlp, line by line, where it and python-crfsuite are there; else filled lines."""
        if not self.has_thai_sentences:
            return sum(bool(line.strip()) for line in text.splitlines())
        return sum(len(_pythainlp().sent_tokenize(line)) for line in text.splitlines())

    def record(self) -> dict[str, str]:
        """Versions that a verdict depends on, for the record of a result."""
        return {
            "mode": self.mode,
            "language_detector": "lingua" if self.mode == "fixed" else "langdetect",
            "language_seed": "" if self.mode == "fixed" else str(self.seed),
            "sentence_splitter": self.sentence_splitter,
            "thai_words": "pythainlp" if self.has_thai_words else "rules",
            "thai_sentences": "pythainlp" if self.has_thai_sentences else "rules",
            **_versions(),
        }


def _pythainlp() -> Any:
    return importlib.import_module("pythainlp.tokenize")


def _versions() -> Mapping[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    return versions
