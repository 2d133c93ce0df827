"""Rules on numbers of words, sentences and paragraphs."""

import re
from collections.abc import Mapping

from llamarl.judges.rules.base import Arguments, Limit, Rule
from llamarl.judges.rules.sentences import count_east_asian_sentences, count_hindi_sentences
from llamarl.judges.rules.text import Text
from llamarl.judges.rules.words import is_spaceless

_EAST_ASIAN = ("zh", "zh-cn", "zh-tw", "ja")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_WORD_ENDS = re.compile("[.,?!'\"]")
_THAI = re.compile("[\u0e00-\u0e7f]")
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

    def official(self, text: Text) -> bool:
        """The detected language chooses the counter; it is asked only where the counters disagree."""
        verdicts = {"": self.limit.holds(text.num_runs)}
        verdicts |= dict.fromkeys(_EAST_ASIAN, self.limit.holds(text.num_east_asian_words))
        return _by_language(text, verdicts, lambda: self.limit.holds(text.num_thai_words))

    def fixed(self, text: Text) -> bool:
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

    def official(self, text: Text) -> bool:
        """The detected language chooses the splitter; it is asked only where the splitters disagree."""
        verdicts = {"": self.limit.holds(text.num_sentences), "hi": self.limit.holds(count_hindi_sentences(text.raw))}
        verdicts |= dict.fromkeys(_EAST_ASIAN, self.limit.holds(count_east_asian_sentences(text.raw)))
        return _by_language(text, verdicts, lambda: self.limit.holds(text.num_thai_sentences))

    def fixed(self, text: Text) -> bool:
        """One splitter for all scripts."""
        return self.limit.holds(text.num_sentences)
