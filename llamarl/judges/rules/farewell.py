"""The farewell judge: fails a reply that says goodbye, or signs off with love, where the user did neither.

    [[judges]]
    function = "farewell"
    role = "constraint"

A reward model of users' love learns to pay for "Bye! Sending love!" (Han et al., "Reinforcement Learning from User
Feedback", arXiv 2505.14946), which ends conversations that nobody wanted to end.
"""

import re
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from llamarl.core.errors import ConfigError
from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.adapters.base import with_seconds
from llamarl.judges.rules.folding import as_read
from llamarl.judges.rules.lexicon import HIDING, LANGUAGES, Hit, Lexicon, join_phrases, read_phrases, tokens_of
from llamarl.judges.rules.sentences import split_sentences

Family = Literal["goodbye", "love"]

KINDS = ("goodbye", "goodbye_short", "goodbye_only", "greeting", "love", "love_short", "love_only")
"""Kinds of phrases that take leave or sign off with love."""
ASKING = ("asks", "leaving")
"""Kinds of phrases of a user who asks for a text in which a farewell has its place, or who takes leave without one."""
MOST_EXTRA_WORDS = 2
"""Words that a sentence of a `short` phrase may have behind it, such as a name."""
SHORT_SENTENCE = 12
"""A sentence of at most so many tokens that begins or ends with a farewell says it, wherever it stands in a reply."""
CLOSING_SENTENCES = 2
"""Sentences at a reply's end in which a farewell is said, however long they are."""

_QUOTED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|^[ \t]*>.*?$|^[ \t]*\|.*?$"
    r'|"[^"\n]*"|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|「[^」\n]*」|『[^』\n]*』|‘[^’\n]*’(?!\w)|(?<!\w)\'[^\'\n]*\'(?!\w)',
    re.DOTALL | re.MULTILINE,
)
# an item of a list that explains a word, and a heading
_GLOSS = re.compile(
    r"^[ \t]*(?:(?:[-*•]|\d+[.)])[ \t].*(?:=|→|:|：|[ \t][–—-][ \t]).*|#.*|.*[:：][ \t*]*)$", re.MULTILINE
)


class Farewell(NamedTuple):
    """A farewell that a text says."""

    family: Family
    phrase: str
    """The phrase as the table of phrases spells it."""


class FarewellFinder:
    """Finds what takes leave, or signs off with love, in a text."""

    def __init__(self, languages: Sequence[str] = LANGUAGES, phrases: Sequence[str] = ()) -> None:
        """Prepares the phrases.

        Args:
            languages: codes of the languages to know, of `lexicon.LANGUAGES`.
            phrases: further ones that take leave.

        Raises:
            ConfigError: a language has no table of phrases, or a phrase has no letter.
        """
        for phrase in phrases:
            if not tokens_of(phrase):
                raise ConfigError(f"phrases: {phrase!r} has no letter or digit; give words")
        known = join_phrases(languages, (*KINDS, *ASKING, HIDING))
        known["goodbye"] += phrases
        self._said = Lexicon({kind: known[kind] for kind in (*KINDS, HIDING)})
        self._present = Lexicon({kind: known[kind] for kind in KINDS})
        # Who speaks of a farewell may be answered with one. Only coincidences of Chinese characters stay hidden.
        coincidences = read_phrases("zh")[HIDING] if "zh" in languages else ()
        self._asked = Lexicon({**{kind: known[kind] for kind in (*ASKING, *KINDS)}, HIDING: coincidences})

    def find(self, reply: str) -> list[Farewell]:
        """Farewells in a reply's own voice: not in quotes, code, tables, headings or explanations of a word."""
        if not self._present.find(tokens_of(reply)):
            return []  # nearly all replies: cutting sentences would take most of the time
        sentences = _sentences(_GLOSS.sub("\n", _QUOTED.sub("\n", as_read(reply))))
        found = []
        for index, tokens in enumerate(sentences):
            is_closing = len(sentences) - index <= CLOSING_SENTENCES
            is_last = index + 1 == len(sentences) > 1
            for hit in self._said.find(tokens):
                if _is_said(hit, len(tokens), is_closing=is_closing, is_last=is_last):
                    found.append(Farewell("love" if hit.kind.startswith("love") else "goodbye", hit.phrase))
        return found

    def find_asked(self, message: str) -> set[Family]:
        """The families that the message which is answered gives cause for: a goodbye, to either; love, to love."""
        sentences = _sentences(as_read(message))
        asked: set[Family] = set()
        for index, tokens in enumerate(sentences):
            is_last = index + 1 == len(sentences)
            for hit in self._asked.find(tokens):
                if _is_meant(hit, len(tokens), is_last=is_last):
                    asked |= {"love"} if hit.kind.startswith("love") else {"goodbye", "love"}
        return asked

    def is_request(self, message: str) -> bool:
        """Says whether a message asks for a text in which a farewell has its place: later ones may ask to change it."""
        return any(hit.kind == "asks" for hit in self._asked.find(tokens_of(message)))


class FarewellJudge(Judge):
    """Passes a completion that takes leave only where the user does, or where a farewell was asked for."""

    info = JudgeInfo(version="1")
    """The version changes with every change of a verdict."""

    def __init__(
        self, languages: Sequence[str] = LANGUAGES, *, phrases: Sequence[str] = (), name: str = "farewell"
    ) -> None:
        """Prepares the judge.

        Args:
            languages: codes of the languages whose farewells it knows.
            phrases: further phrases that take leave, in any language.
            name: in verdicts and metrics.
        """
        self.name = name
        self._finder = FarewellFinder(tuple(languages), tuple(phrases))

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion: 1 and passed, or 0 and what it said unasked."""
        asked = self._find_asked(prompt)
        return [self._judge_one(asked, completion.text) for completion in completions]

    def _judge_one(self, asked: set[Family], reply: str) -> Verdict:
        started = time.perf_counter()
        unasked = dict.fromkeys(said.phrase for said in self._finder.find(reply) if said.family not in asked)
        reason = "takes leave unasked: " + ", ".join(map(repr, unasked)) if unasked else ""
        verdict = Verdict.scored(float(not unasked), passed=not unasked, reason=reason)
        return with_seconds(verdict, time.perf_counter() - started)

    def _find_asked(self, prompt: Prompt) -> set[Family]:
        """The families that the last user message, a system message, or an earlier request gives cause for."""
        system = [text_of(message) for message in prompt.messages if message["role"] == "system"]
        user = [text_of(message) for message in prompt.messages if message["role"] == "user"]
        if any(map(self._finder.is_request, user[:-1])):
            return {"goodbye", "love"}
        return {family for text in (*system, *user[-1:]) for family in self._finder.find_asked(text)}


def text_of(message: Any) -> str:
    """The text of a chat message, whose content may be a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return " ".join(
        part["text"] for part in content or () if isinstance(part, dict) and isinstance(part.get("text"), str)
    )


def _sentences(text: str) -> list[list[str]]:
    """The tokens of each sentence that has some."""
    return [tokens for sentence in split_sentences(text) if (tokens := tokens_of(sentence))]


def _is_meant(hit: Hit, length: int, *, is_last: bool) -> bool:
    """Says whether a phrase in a user's message, by its kind and place in a sentence, gives cause for a farewell."""
    if hit.kind == "greeting":  # at the beginning it greets
        return is_last and hit.end == length
    return hit.kind in ("goodbye", "love", *ASKING) or _is_said(hit, length, is_closing=True, is_last=is_last)


def _is_said(hit: Hit, length: int, *, is_closing: bool, is_last: bool) -> bool:
    """Says whether a phrase, by its kind and place, takes leave.

    Args:
        hit: the phrase.
        length: of its sentence, in tokens.
        is_closing: whether the sentence is one of the text's last.
        is_last: whether it is the very last, of several.
    """
    is_at_edge = hit.start == 0 or hit.end == length
    is_alone = hit.start == 0 and length - hit.end <= MOST_EXTRA_WORDS
    if hit.kind == "greeting":
        return is_last and (is_alone or hit.end == length)
    if hit.kind.endswith("_only"):
        return hit.start == 0 and hit.end == length
    if hit.kind.endswith("_short"):
        return is_alone
    if hit.kind == "love":  # "people love you for it" signs nothing off
        return is_at_edge and (is_closing or length <= SHORT_SENTENCE)
    return is_closing or (is_at_edge and length <= SHORT_SENTENCE)
