"""Rules on keywords and letters."""

import contextlib
import re

from llamarl.judges.rules.base import Arguments, Rule
from llamarl.judges.rules.patterns import INVALID, Pattern, compile_pattern
from llamarl.judges.rules.text import Text
from llamarl.judges.rules.words import is_spaceless, is_word_character


class Existence(Rule):
    """Every keyword occurs, also inside other words."""

    id = "keywords:existence"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.keywords = arguments.texts("keywords", can_be_blank=self.mode != "fixed")
        self._finders = [_finder(self, "keywords", keyword) for keyword in self.keywords]

    def describe(self) -> str:
        """One sentence."""
        return f"Include the keywords {_listed(self.keywords)}."

    def official(self, text: Text) -> bool:
        """All found; official keywords are regular expressions."""
        return all(finder.is_in(text.raw) for finder in self._finders)


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
            self._finder = Pattern(self.keyword if self.mode != "fixed" else re.escape(self.keyword))

    def describe(self) -> str:
        """One sentence."""
        return f"Use the word {self.keyword!r} {self.limit} times."

    def official(self, text: Text) -> bool:
        """Counts hits; a keyword that is no valid regular expression fails under either relation."""
        return self._finder is not None and self.limit.holds(self._finder.count(text.raw))


class ForbiddenWords(Rule):
    """No forbidden word occurs as a word of its own."""

    id = "keywords:forbidden_words"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.words = arguments.texts("forbidden_words", can_be_blank=self.mode != "fixed")
        self._finders = [_forbidden(self, word) for word in self.words]

    def describe(self) -> str:
        """One sentence."""
        return f"Do not use the words {_listed(self.words)}."

    def official(self, text: Text) -> bool:
        """Words end where `re` says: at marks of Indic scripts, but not between Han characters, nor after `+`."""
        return not any(finder.is_in(text.raw) for finder in self._finders)

    def fixed(self, text: Text) -> bool:
        """Words end where the next character is no word character, or where a script writes without blanks."""
        return not any(
            _is_separate(text.raw, *match.span())
            for finder in self._finders
            for match in finder.regex.finditer(text.raw)
        )


class LetterFrequency(Rule):
    """A letter occurs so many times, in either case."""

    id = "keywords:letter_frequency"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        letter = arguments.text("letter")
        allowed = "one letter from a to z" if self.mode != "fixed" else "one character"
        is_single = len(letter) == len(letter.lower()) == 1
        if not is_single or (self.mode != "fixed" and not "a" <= letter.lower() <= "z"):
            raise arguments.error("letter", letter, allowed)
        self.letter = letter.lower()
        self.limit = arguments.limit("let_frequency", "let_relation")

    def describe(self) -> str:
        """One sentence."""
        return f"Use the letter {self.letter!r} {self.limit} times."

    def official(self, text: Text) -> bool:
        """Counts in the lower-cased text."""
        return self.limit.holds(text.lower.count(self.letter))


def _finder(rule: Rule, name: str, keyword: str) -> Pattern:
    """In official mode the keyword is a regular expression, in fixed mode it means itself."""
    return compile_pattern(rule.id, name, keyword if rule.mode != "fixed" else re.escape(keyword.strip()))


def _forbidden(rule: Rule, word: str) -> Pattern:
    if rule.mode == "fixed":
        return _finder(rule, "forbidden_words", word)
    return compile_pattern(rule.id, "forbidden_words", word, before=r"\b", after=r"\b")


def _is_separate(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is not a part of a longer word."""
    return (start == 0 or _is_border(text[start - 1], text[start])) and (
        end == len(text) or _is_border(text[end - 1], text[end])
    )


def _is_border(left: str, right: str) -> bool:
    is_inside = is_word_character(left) and is_word_character(right)
    return not is_inside or is_spaceless(left) or is_spaceless(right)


def _listed(words: list[str]) -> str:
    return ", ".join(repr(word) for word in words)
