"""Phrases in a text, found as a reader sees them: whatever their case, accents, punctuation, emoji and widths are.

    tokens_of("Good-BYE… 👋")               # ["good", "bye"]
    Lexicon({"goodbye": ["bye"]}).find(tokens_of("my bytes"))       # []: whole words

Where a script writes without blanks (Chinese, Japanese, Thai) each character is a token, so that a phrase is found
inside a line, and coincidences have to be named. Phrases of the kind `HIDING` do that: the leftmost phrase that begins
at a token wins, the longest of several, so that `今晚安排` (tonight's plan) hides the `晚安` (good night) in it.
"""

import functools
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError
from llamarl.judges.rules.folding import fold
from llamarl.judges.rules.words import token_pattern

HIDING = "not_said"
"""Kind of the phrases that hide others, and are never found themselves."""

_ACCENTS = re.compile("[\u0300-\u036f\u093c]")
_CANDRABINDU_TO_ANUSVARA = str.maketrans("\u0901", "\u0902")
_LONG_RUN = re.compile(r"(.)\1{2,}")
_RUN = re.compile(r"(.)\1+")


class Hit(NamedTuple):
    """A phrase in a text."""

    kind: str
    phrase: str
    """The phrase as its table spells it."""
    start: int
    """The place of its first token."""
    end: int
    """The token after its last."""


def tokens_of(text: str) -> list[str]:
    """The words of a text in lower case, without accents; characters where a script has no blanks.

    Punctuation, emoji and underscores separate words; marks of Indic and Thai letters belong to them.
    """
    text = fold(text).replace("_", " ")
    if not text.isascii():
        # Nukta and candrabindu are often left out in Hindi; other Indic marks are vowels.
        text = _ACCENTS.sub("", unicodedata.normalize("NFD", text)).translate(_CANDRABINDU_TO_ANUSVARA)
    return token_pattern().findall(text)


class Lexicon:
    """Phrases of several kinds, looked for together."""

    def __init__(self, phrases: Mapping[str, Iterable[str]]) -> None:
        """Prepares the phrases of each kind; blank ones are left out, and of equal ones the first kind counts."""
        known: dict[tuple[str, ...], tuple[str, str]] = {}
        for kind, texts in phrases.items():
            for text in texts:
                known.setdefault(tuple(tokens_of(text)), (kind, text))
        known.pop((), None)
        self._by_first: dict[str, list[tuple[tuple[str, ...], str, str]]] = {}
        for tokens, (kind, text) in sorted(known.items(), key=lambda item: -len(item[0])):
            self._by_first.setdefault(tokens[0], []).append((tokens, kind, text))
        self._words = {word for tokens in known for word in tokens}
        # The longest word of a phrase is rare: a text without any of them is done with at once.
        self._rare = {max(tokens, key=len) for tokens, (kind, _) in known.items() if kind != HIDING}
        # Of words that sound alike when drawn out (`bye`, `byee`) the shortest counts, which is set last.
        by_length = sorted(self._words, key=lambda word: (-len(word), word))
        self._stretched = {_RUN.sub(r"\1", word): word for word in by_length}

    def find(self, tokens: Sequence[str]) -> list[Hit]:
        """The phrases among the tokens, in order, none overlapping; those of `HIDING` are left out."""
        if any(map(_LONG_RUN.search, set(tokens) - self._words)):
            tokens = [self._shorten(token) for token in tokens]
        if self._rare.isdisjoint(tokens):
            return []
        hits, place = [], 0
        while place < len(tokens):
            # Asked for here, as hardly any word begins a phrase.
            hit = self._longest_at(tokens, place) if tokens[place] in self._by_first else None
            if hit is None:
                place += 1
                continue
            place = hit.end
            if hit.kind != HIDING:
                hits.append(hit)
        return hits

    def _longest_at(self, tokens: Sequence[str], place: int) -> Hit | None:
        for phrase, kind, text in self._by_first[tokens[place]]:
            end = place + len(phrase)
            if tuple(tokens[place:end]) == phrase:
                return Hit(kind, text, place, end)
        return None

    def _shorten(self, token: str) -> str:
        """The word of a phrase that a drawn-out token stands for: `byeee` is `bye`."""
        if token in self._words or not _LONG_RUN.search(token):
            return token
        return self._stretched.get(_RUN.sub(r"\1", token), token)


LANGUAGES = ("en", "es", "fr", "hi", "it", "pt", "ru", "zh")
"""Codes of the languages that have a table of phrases: the eight of Multi-IF."""


@functools.cache
def read_phrases(language: str) -> Mapping[str, Sequence[str]]:
    """The shipped phrases of one language by kind; `phrases/en.toml` says of each kind what it is.

    Raises:
        ConfigError: there is no table of that language.
    """
    if language not in LANGUAGES:
        raise ConfigError(f"languages: {language!r} has no table of phrases.{suggest(language, list(LANGUAGES))}")
    table = resources.files("llamarl.judges.rules").joinpath(f"phrases/{language}.toml").read_text(encoding="utf-8")
    return {kind: texts for kind, texts in tomllib.loads(table).items() if isinstance(texts, list)}


def join_phrases(languages: Sequence[str], kinds: Sequence[str]) -> dict[str, list[str]]:
    """The shipped phrases of several languages together. Raises `ConfigError` for a language without a table."""
    tables = [read_phrases(language) for language in languages]
    return {kind: [text for table in tables for text in table[kind]] for kind in kinds}
