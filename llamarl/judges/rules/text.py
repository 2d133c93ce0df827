"""A text to judge, with the facts that several rules ask for; each is found out at most once."""

from functools import cached_property
from typing import Protocol

from llamarl.judges.rules.folding import fold
from llamarl.judges.rules.words import count_east_asian, count_runs, count_words, hyphenated_words


class Tools(Protocol):
    """Tools that differ between modes and settings: how a language is told and how sentences and tokens are cut."""

    def detect(self, text: str) -> str | None:
        """ISO 639-1 code of the language (`zh-cn` and `zh-tw` in official mode), None where nothing tells it."""

    def count_sentences(self, text: str) -> int:
        """Number of sentences."""

    def tokens(self, text: str) -> list[str]:
        """Words and punctuation marks."""

    def thai_words(self, text: str) -> int:
        """Number of words of a Thai text."""

    def thai_sentences(self, text: str) -> int:
        """Number of sentences of a Thai text."""


class Text:
    """One text and its facts."""

    def __init__(self, raw: str, tools: Tools) -> None:
        self.raw = raw
        self._tools = tools

    @cached_property
    def language(self) -> str | None:
        """The language's code, or None where no letter tells it."""
        return self._tools.detect(self.raw)

    @cached_property
    def lower_language(self) -> str | None:
        """The language of the lower-cased text: detectors know few words in capitals."""
        return self._tools.detect(self.raw.lower())

    @cached_property
    def lower(self) -> str:
        """The text in lower case."""
        return self.raw.lower()

    @cached_property
    def folded(self) -> str:
        """The text as words and phrases are compared."""
        return fold(self.raw)

    @cached_property
    def num_words(self) -> int:
        """Words: marks belong to them, an apostrophe joins, each Han or Kana character is one."""
        return count_words(self.raw)

    @cached_property
    def num_runs(self) -> int:
        """Runs of word characters."""
        return count_runs(self.raw)

    @cached_property
    def num_east_asian_words(self) -> int:
        """Words as the released grader counts them in Chinese and Japanese."""
        return count_east_asian(self.raw)

    @cached_property
    def num_thai_words(self) -> int:
        """Words of a Thai text."""
        return self._tools.thai_words(self.raw)

    @cached_property
    def num_thai_sentences(self) -> int:
        """Sentences of a Thai text."""
        return self._tools.thai_sentences(self.raw)

    @cached_property
    def num_sentences(self) -> int:
        """Sentences, by the splitter that the grader was built with."""
        return self._tools.count_sentences(self.raw)

    @cached_property
    def num_capital_tokens(self) -> int:
        """Tokens in capitals, by the tokenizer that the grader was built with."""
        return sum(token.isupper() for token in self._tools.tokens(self.raw))

    @cached_property
    def num_capital_words(self) -> int:
        """Words in capitals; hyphens and apostrophes join."""
        return sum(word.isupper() for word in hyphenated_words(self.raw))
