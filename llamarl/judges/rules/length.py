"""Rules on numbers of words, sentences and paragraphs."""

import itertools
import re
from collections.abc import Callable, Mapping

from llamarl.judges.rules.base import Arguments, Limit, Rule
from llamarl.judges.rules.folding import fold
from llamarl.judges.rules.sentences import count_east_asian_sentences, count_hindi_sentences
from llamarl.judges.rules.text import Text
from llamarl.judges.rules.words import is_spaceless, is_word_character

_EAST_ASIAN = ("zh", "zh-cn", "zh-tw", "ja")
SCRIPTS = {
    "hi": re.compile("[\u0900-\u097f\ufffd]"),
    "th": re.compile("[\u0e00-\u0e7f\ufffd]"),
    **dict.fromkeys(_EAST_ASIAN, re.compile("[\u00b7\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")),
}
"""Characters without one of which langdetect never finds the language the most probable one."""
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_WORD_ENDS = re.compile("[.,?!'\"]")
_WIDE_PUNCTUATION = "\"'“”‘’«»„‚「」『』*_#([<"


class NumberOfWords(Rule):
    """Less or more words."""

    id = "length_constraints:number_words"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.limit = arguments.limit("num_words")

    def describe(self) -> str:
        """One sentence."""
        return f"Answer with {self.limit} words."

    def check_official(self, text: Text) -> bool:
        """The detected language chooses the counter."""
        counters = dict.fromkeys(_EAST_ASIAN, lambda: text.num_east_asian_words)
        return _holds(self.limit, text, text.num_runs, {**counters, "th": lambda: text.num_thai_words})

    def check_google(self, text: Text) -> bool:
        """Runs of word characters, in any language."""
        return self.limit.holds(text.num_runs)

    def check_fixed(self, text: Text) -> bool:
        """One counter for all scripts."""
        return self.limit.holds(text.num_words)


class NumberOfSentences(Rule):
    """Less or more sentences."""

    id = "length_constraints:number_sentences"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.limit = arguments.limit("num_sentences")

    def describe(self) -> str:
        """One sentence."""
        return f"Answer with {self.limit} sentences."

    def check_official(self, text: Text) -> bool:
        """The detected language chooses the splitter."""
        counters = dict.fromkeys(_EAST_ASIAN, lambda: count_east_asian_sentences(text.raw))
        counters |= {"hi": lambda: count_hindi_sentences(text.raw), "th": lambda: text.num_thai_sentences}
        return _holds(self.limit, text, text.num_sentences, counters)

    def check_google(self, text: Text) -> bool:
        """One splitter, made for English, in any language."""
        return self.limit.holds(text.num_sentences)

    def check_fixed(self, text: Text) -> bool:
        """One splitter for all scripts."""
        return self.limit.holds(text.num_sentences)


class NumberOfParagraphs(Rule):
    """An exact number of paragraphs, divided by `***`."""

    id = "length_constraints:number_paragraphs"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.num_paragraphs = arguments.count("num_paragraphs")

    def describe(self) -> str:
        """One sentence."""
        return f"Write {self.num_paragraphs} paragraphs, divided by ***."

    def check_official(self, text: Text) -> bool:
        """A blank first or last paragraph does not count; a blank one in between fails."""
        is_blank = [not paragraph.strip() for paragraph in _DIVIDER.split(text.raw)]
        if any(is_blank[1:-1]):
            return False
        return len(is_blank) - sum(is_blank) == self.num_paragraphs


class ParagraphFirstWord(Rule):
    """An exact number of paragraphs, divided by blank lines; one of them starts with a given word."""

    id = "length_constraints:nth_paragraph_first_word"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.num_paragraphs = arguments.count("num_paragraphs")
        self.nth_paragraph = arguments.count("nth_paragraph", minimum=1, maximum=self.num_paragraphs)
        self.first_word = arguments.text("first_word", can_be_blank=self.mode != "fixed").lower()

    def describe(self) -> str:
        """One sentence."""
        return (
            f"Write {self.num_paragraphs} paragraphs, divided by blank lines; "
            f"paragraph {self.nth_paragraph} starts with {self.first_word!r}."
        )

    def check_official(self, text: Text) -> bool:
        """Counts the paragraphs that are not blank, but looks at the n-th of all of them."""
        paragraphs = text.raw.split("\n\n")
        num_paragraphs = sum(bool(paragraph.strip()) for paragraph in paragraphs)
        if num_paragraphs != self.num_paragraphs:
            return False
        paragraph = paragraphs[self.nth_paragraph - 1].strip()
        if not paragraph:
            return False
        word = paragraph.split(maxsplit=1)[0].lstrip("'").lstrip('"')
        word = _WORD_ENDS.split(word, maxsplit=1)[0]
        return "".join(letter.lower() for letter in word) == self.first_word

    def check_fixed(self, text: Text) -> bool:
        """Lines of blanks divide, the n-th text counts; the word may be several, or of a script without blanks."""
        groups = itertools.groupby(text.raw.split("\n"), key=lambda line: bool(line.strip()))
        paragraphs = [" ".join(lines) for is_text, lines in groups if is_text]
        if len(paragraphs) != self.num_paragraphs:
            return False
        start = fold(paragraphs[self.nth_paragraph - 1]).lstrip(_WIDE_PUNCTUATION + " ")
        wanted = fold(self.first_word)
        following = start[len(wanted) : len(wanted) + 1]
        is_cut = bool(following) and is_word_character(following) and not is_spaceless(wanted[-1])
        return start.startswith(wanted) and not is_cut


def _holds(limit: Limit, text: Text, usual: int, counters: Mapping[str, Callable[[], int]]) -> bool:
    """Says whether the text keeps to the limit, counted as its language is; `usual` counts as most languages do.

    The language is detected only where the counts that come into question by `SCRIPTS` disagree.
    """
    verdict = limit.holds(usual)
    others = {code: limit.holds(count()) for code, count in counters.items() if SCRIPTS[code].search(text.raw)}
    if all(other is verdict for other in others.values()):
        return verdict
    return others.get(text.language or "en", verdict)
