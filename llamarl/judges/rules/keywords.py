"""Rules on keywords and letters."""

import contextlib
import re

from llamarl.judges.rules.base import Arguments, Rule
from llamarl.judges.rules.folding import as_read, fold
from llamarl.judges.rules.patterns import INVALID, Pattern, compile_pattern
from llamarl.judges.rules.text import Text
from llamarl.judges.rules.words import is_spaceless, is_word_character

_STARS_INSIDE = re.compile(r"(?<=[^\W\d_])\*+(?=[^\W\d_])")
_UNDERSCORES = re.compile("_+")


class Existence(Rule):
    """Every keyword occurs, also inside other words."""

    id = "keywords:existence"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.keywords = arguments.texts("keywords", can_be_blank=self.mode != "fixed")
        self._finders = _finders(self, "keywords", self.keywords)
        self._fold = _fold(arguments, "keywords", self.keywords)

    def describe(self) -> str:
        """One sentence."""
        return f"Include the keywords {_list(self.keywords)}."

    def check_official(self, text: Text) -> bool:
        """All found; official keywords are regular expressions."""
        return all(finder.is_in(text.raw) for finder in self._finders)

    def check_fixed(self, text: Text) -> bool:
        """All found, whatever their apostrophes, accents and widths are made of."""
        return all(keyword in text.folded for keyword in self._fold)


class Frequency(Rule):
    """A keyword occurs so many times, also inside other words; hits don't overlap."""

    id = "keywords:frequency"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        keyword = arguments.text("keyword", can_be_blank=self.mode != "fixed")
        if not keyword:
            raise arguments.error("keyword", keyword, "a text that is not empty")
        self.keyword = keyword.strip()
        self.limit = arguments.limit("frequency")
        self._finder: Pattern | None = None
        with contextlib.suppress(*INVALID):  # the released grader fails every reply then
            self._finder = Pattern(self.keyword) if self.mode != "fixed" else None
        self._fold = _fold(arguments, "keyword", [self.keyword])

    def describe(self) -> str:
        """One sentence."""
        return f"Use the word {self.keyword!r} {self.limit} times."

    def check_official(self, text: Text) -> bool:
        """Counts hits; a keyword that is no valid regular expression fails under either relation."""
        return self._finder is not None and self.limit.holds(self._finder.count(text.raw))

    def check_fixed(self, text: Text) -> bool:
        """Counts hits, whatever apostrophes, accents and widths are made of."""
        return self.limit.holds(text.folded.count(self._fold[0]))


class ForbiddenWords(Rule):
    """No forbidden word occurs as a word of its own."""

    id = "keywords:forbidden_words"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.words = arguments.texts("forbidden_words", can_be_blank=self.mode != "fixed")
        self._finders = _finders(self, "forbidden_words", self.words, before=r"\b", after=r"\b")
        self._fold = _fold(arguments, "forbidden_words", self.words)

    def describe(self) -> str:
        """One sentence."""
        return f"Do not use the words {_list(self.words)}."

    def check_official(self, text: Text) -> bool:
        """Words end where `re` says: at marks of Indic scripts, but not between Han characters, nor after `+`."""
        return not any(finder.is_in(text.raw) for finder in self._finders)

    def check_fixed(self, text: Text) -> bool:
        """Words end where the next character is no word character, or where a script writes without blanks.

        Stars and underscores that set a word or a part of it apart do not hide it.
        """
        versions = dict.fromkeys((text.folded, _without_emphasis(text.folded)))
        return not any(_is_used(word, version) for version in versions for word in self._fold)


class LetterFrequency(Rule):
    """A letter occurs so many times, in either case."""

    id = "keywords:letter_frequency"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        letter = arguments.text("letter")
        letter = as_read(letter) if self.mode == "fixed" else letter
        allowed = "one letter from a to z" if self.mode != "fixed" else "one character"
        is_single = len(letter) == len(letter.lower()) == 1
        if not is_single or (self.mode != "fixed" and not "a" <= letter.lower() <= "z"):
            raise arguments.error("letter", letter, allowed)
        self.letter = letter.lower()
        self.limit = arguments.limit("let_frequency", "let_relation")
        self._fold = fold(letter) or self.letter

    def describe(self) -> str:
        """One sentence."""
        return f"Use the letter {self.letter!r} {self.limit} times."

    def check_official(self, text: Text) -> bool:
        """Counts in the lower-cased text."""
        return self.limit.holds(text.lower.count(self.letter))

    def check_fixed(self, text: Text) -> bool:
        """Counts in the folded text: a full-width letter is a letter, and so is one with its accent composed."""
        return self.limit.holds(text.folded.count(self._fold))


def _finders(rule: Rule, name: str, keywords: list[str], *, before: str = "", after: str = "") -> list[Pattern]:
    """Keywords as the regular expressions that the released grader takes them for; none in fixed mode."""
    if rule.mode == "fixed":
        return []
    return [compile_pattern(rule.id, name, keyword, before=before, after=after) for keyword in keywords]


def _fold(arguments: Arguments, name: str, keywords: list[str]) -> list[str]:
    """Keywords that mean themselves, as they are compared in fixed mode."""
    folded = [fold(keyword) for keyword in keywords]
    if arguments.mode == "fixed" and not all(folded):
        raise arguments.error(name, keywords, "texts that a reader sees something of")
    return folded


def _without_emphasis(text: str) -> str:
    """Removes stars inside of words, and puts blanks for underscores that don't join words."""
    return _UNDERSCORES.sub(_blank_unless_joining, _STARS_INSIDE.sub("", text))


def _blank_unless_joining(match: re.Match[str]) -> str:
    sides = match.string[max(match.start() - 1, 0) : match.start()], match.string[match.end() : match.end() + 1]
    return match[0] if all(side and is_word_character(side) for side in sides) else " "


def _is_used(word: str, text: str) -> bool:
    """Says whether `word` occurs in `text` as a word of its own."""
    start = text.find(word)
    while start >= 0:
        if _is_separate(text, start, start + len(word)):
            return True
        start = text.find(word, start + 1)
    return False


def _is_separate(text: str, start: int, end: int) -> bool:
    """Says whether text[start:end] is not a part of a longer word."""
    return (start == 0 or _is_border(text[start - 1], text[start])) and (
        end == len(text) or _is_border(text[end - 1], text[end])
    )


def _is_border(left: str, right: str) -> bool:
    is_inside = is_word_character(left) and is_word_character(right)
    return not is_inside or is_spaceless(left) or is_spaceless(right)


def _list(words: list[str]) -> str:
    return ", ".join(repr(word) for word in words)
