"""Signals that monitors look for in one response. Pure functions of a text, in any script.

Phrases count whatever their case, accents, punctuation, emoji and widths are, and as whole words: `byte` holds no `bye`
(`judges.rules.lexicon`). Everything counts responses, never tokens: a response that says bye ten times says it once.
"""

import itertools
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llamarl.judges.rules.farewell import FarewellFinder
from llamarl.judges.rules.lexicon import HIDING, Lexicon, join_phrases, read_phrases, tokens_of
from llamarl.judges.rules.sentences import split_sentences
from llamarl.monitors.settings import MonitorConfig

LAST_WORDS = 8
"""Words of the last sentence, from its end, whose pairs are its marks."""

LAST_CHARACTERS = 1000
"""A last sentence longer than this is cut at its beginning."""

# Characters that are emoji by themselves, and those that a variation selector makes one; hearts and faces also without.
_EMOJI = re.compile(
    "[\u231a\u231b\u23e9-\u23ec\u23f0\u23f3\u25fd\u25fe\u2614\u2615\u2648-\u2653\u267f\u2693\u26a1\u26aa\u26ab\u26bd"
    "\u26be\u26c4\u26c5\u26ce\u26d4\u26ea\u26f2\u26f3\u26f5\u26fa\u26fd\u2705\u270a\u270b\u2728\u274c\u274e\u2753-\u2755"
    "\u2757\u2795-\u2797\u27b0\u27bf\u2b1b\u2b1c\u2b50\u2b55\U0001f004\U0001f0cf\U0001f18e\U0001f191-\U0001f19a"
    "\U0001f1e6-\U0001f1ff\U0001f201\U0001f21a\U0001f22f\U0001f232-\U0001f236\U0001f238-\U0001f23a\U0001f250\U0001f251"
    "\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7f0\U0001f90c-\U0001f9ff\U0001fa70-\U0001faff"
    "\u2764\u2763\u2665\u263a\u2639\u270c]|[\u0023\u002a0-9\u00a9\u00ae\u2000-\u2bff\u3030\u303d\u3297\u3299\U0001f100-\U0001f2ff]\ufe0f"
)
_QUESTION = re.compile(r"[?？؟՞](?=[\s\"'”’»)\]}*_]|\Z|[^\x00-\x7f])")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)


def has_emoji(text: str) -> bool:
    """Says whether a text has an emoji; a heart or a smiling face counts without its variation selector too."""
    return not text.isascii() and _EMOJI.search(text) is not None


def asks_question(text: str) -> bool:
    """Says whether a text has a question mark that ends something; those in code and addresses don't count."""
    return _QUESTION.search(_CODE.sub(" ", text)) is not None


def count_tokens(text: str) -> float:
    """Words; characters where a script has no blanks."""
    return float(len(tokens_of(text)))


def mark_ending(text: str) -> dict[int, float]:
    """Marks of a response's last sentence, of equal weights that add up to 1: its pairs of neighbouring words.

    They are checksums of the pairs; a sentence of one word has the word itself, and an empty response none.
    """
    for sentence in reversed(split_sentences(text[-LAST_CHARACTERS:])):
        if words := tokens_of(sentence)[-LAST_WORDS:]:
            marks = {f"{first} {second}" for first, second in itertools.pairwise(words)} or {words[0]}
            return {zlib.crc32(mark.encode()): 1.0 / len(marks) for mark in marks}
    return {}


@dataclass(frozen=True)
class PhraseFamily:
    """A family of phrases, as a test of responses."""

    finder: FarewellFinder
    family: str
    words: Lexicon

    def __call__(self, text: str) -> bool:
        """Says whether a text has a phrase of the family."""
        return any(said.family == self.family for said in self.finder.find(text)) or bool(
            self.words.find(tokens_of(text))
        )


def phrase_test(config: MonitorConfig) -> Callable[[str], bool]:
    """The test of a monitor of phrases.

    `farewell`: what takes leave, as the judge `farewell` finds it, asked for or not. `love`: what signs off with love,
    and words of love anywhere.
    """
    own = Lexicon({"own": config.phrases})
    if config.signal == "phrases":
        return lambda text: bool(own.find(tokens_of(text)))
    if config.signal == "farewell":
        return PhraseFamily(FarewellFinder(config.languages), "goodbye", own)
    words: Mapping[str, list[str]] = join_phrases(config.languages, ["love_words"])
    # What only speaks of love is a word of love all the same, but not a coincidence of Chinese characters.
    coincidences = read_phrases("zh")[HIDING] if "zh" in config.languages else ()
    every = Lexicon({"words": [*words["love_words"], *config.phrases], HIDING: coincidences})
    return PhraseFamily(FarewellFinder(config.languages), "love", every)
