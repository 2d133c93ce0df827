"""Rules on the reply as a whole: its beginning and end, case, commas, language, and two answers in one."""

from llamarl.judges.rules.base import Arguments, Limit, Rule
from llamarl.judges.rules.folding import fold
from llamarl.judges.rules.languages import NAMES
from llamarl.judges.rules.text import Text

_COMMAS = ",،、，﹐﹑､՝߸፣᠂᠈⸲⸴⸷⹁⹉꓾꘍꛵︐︑٬"
_QUOTES = ('""', "“”", "「」")
_MORE_QUOTES = ("«»", "»«", "„“", "„”", "‟”", "『』", "””", "＂＂")
_CLOSING_QUOTES = '"“”«»„‟「」『』＂'


class ResponseLanguage(Rule):
    """All in one language."""

    id = "language:response_language"
    needs_language = True

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        codes = tuple(NAMES) if self.mode != "fixed" else (*NAMES, "zh")
        self.language = arguments.choice("language", codes)

    def describe(self) -> str:
        """One sentence."""
        return f"Answer in {NAMES.get(self.language, 'Chinese')}, and in no other language."

    def check_official(self, text: Text) -> bool:
        """The detected language; a text whose language nothing tells passes."""
        return text.language is None or text.language == self.language

    def check_fixed(self, text: Text) -> bool:
        """The detected language; a text without letters is in none."""
        return text.language == self.language


class TwoResponses(Rule):
    """Two different answers, divided by six stars."""

    id = "combination:two_responses"

    def describe(self) -> str:
        """One sentence."""
        return "Give two different answers, divided by ******."

    def check_official(self, text: Text) -> bool:
        """A blank first or last part does not count; a blank one in between fails."""
        parts = [part.strip() for part in text.raw.split("******")]
        answers = [part for part in parts if part]
        return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]

    def check_fixed(self, text: Text) -> bool:
        """Answers that differ in case, blanks or the make of their characters only are the same."""
        parts = [fold(part) for part in text.raw.split("******")]
        answers = [part for part in parts if part]
        return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


class RepeatPrompt(Rule):
    """The request word for word, then the answer."""

    id = "combination:repeat_prompt"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.request = arguments.text("prompt_to_repeat", can_be_blank=self.mode != "fixed")
        if not self.request:
            raise arguments.error("prompt_to_repeat", self.request, "a text that is not empty")
        self._folded = fold(self.request)

    def describe(self) -> str:
        """One sentence."""
        return "First repeat the request word for word, then answer."

    def check_official(self, text: Text) -> bool:
        """Compares in either case, blanks around it aside."""
        return text.raw.strip().lower().startswith(self.request.strip().lower())

    def check_fixed(self, text: Text) -> bool:
        """Compares in either case, with any blanks, apostrophes and hyphens."""
        return text.folded.startswith(self._folded)


class EndPhrase(Rule):
    """A given phrase at the end."""

    id = "startend:end_checker"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.phrase = arguments.text("end_phrase", can_be_blank=self.mode != "fixed").strip()

    def describe(self) -> str:
        """One sentence."""
        return f"End with exactly this phrase: {self.phrase}"

    def check_official(self, text: Text) -> bool:
        """Compares in either case; blanks, then straight quotes, may follow."""
        return text.raw.strip().strip('"').lower().endswith(self.phrase.lower())

    def check_fixed(self, text: Text) -> bool:
        """Compares in either case; blanks and quotes of any kind may follow."""
        end = _CLOSING_QUOTES + " "
        return text.folded.rstrip(end).endswith(fold(self.phrase).rstrip(end))


class Quotation(Rule):
    """All of it in double quotation marks."""

    id = "startend:quotation"

    def describe(self) -> str:
        """One sentence."""
        return "Put the whole answer in double quotation marks."

    def check_official(self, text: Text) -> bool:
        """Straight, curly or corner marks."""
        return _is_quoted(text.raw, _QUOTES)

    def check_google(self, text: Text) -> bool:
        """Straight marks only."""
        return _is_quoted(text.raw, _QUOTES[:1])

    def check_fixed(self, text: Text) -> bool:
        """Accepts angular, low and white corner marks."""
        return _is_quoted(text.raw, _QUOTES + _MORE_QUOTES)


class CapitalWords(Rule):
    """The reply has so many words in capitals."""

    id = "change_case:capital_word_frequency"

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.limit: Limit = arguments.limit("capital_frequency", "capital_relation")

    def describe(self) -> str:
        """One sentence."""
        return f"Write {self.limit} words in capitals."

    def check_official(self, text: Text) -> bool:
        """Tokens in capitals: a hyphenated word is one, a contraction two."""
        return self.limit.holds(text.num_capital_tokens)

    def check_fixed(self, text: Text) -> bool:
        """Words in capitals: a hyphenated word is one, and so is a contraction."""
        return self.limit.holds(text.num_capital_words)


class EnglishCapitals(Rule):
    """English, in capitals."""

    id = "change_case:english_capital"
    needs_language = True

    def describe(self) -> str:
        """One sentence."""
        return "Answer in English, in capital letters only."

    def check_official(self, text: Text) -> bool:
        """The language of the capitals as they stand; where nothing tells it, the text passes."""
        return text.raw.isupper() and text.language in (None, "en")

    def check_fixed(self, text: Text) -> bool:
        """The language of the text in lower case, which detectors know."""
        return text.raw.isupper() and text.lower_language == "en"


class EnglishLowercase(Rule):
    """English, in lower case."""

    id = "change_case:english_lowercase"
    needs_language = True

    def describe(self) -> str:
        """One sentence."""
        return "Answer in English, in lower-case letters only."

    def check_official(self, text: Text) -> bool:
        """Passes a text where nothing tells its language."""
        return text.raw.islower() and text.language in (None, "en")

    def check_fixed(self, text: Text) -> bool:
        """English only."""
        return text.raw.islower() and text.language == "en"


class NoComma(Rule):
    """No commas."""

    id = "punctuation:no_comma"

    def describe(self) -> str:
        """One sentence."""
        return "Use no commas."

    def check_official(self, text: Text) -> bool:
        """ASCII commas only."""
        return "," not in text.raw

    def check_fixed(self, text: Text) -> bool:
        """Commas of every script."""
        return not any(comma in text.raw for comma in _COMMAS)


def _is_quoted(text: str, pairs: tuple[str, ...]) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] + text[-1] in pairs
