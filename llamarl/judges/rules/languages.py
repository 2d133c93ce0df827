"""Telling the language of a text: as the released grader does (langdetect, here seeded), or robustly (lingua).

Lingua lacks Nepali and takes short Hindi for Marathi, so Hindi, Marathi and Nepali are told by langdetect's n-gram
tables and by small words that only one of them has; nothing is drawn.

Langdetect draws n-grams at random until it is sure; unseeded, its answer on a short text may change from call to call.
`Langdetect` gives the package's own answers for a seed, several times faster: it keeps the n-grams of every word that
it has met, where the package cuts each text anew, character by character.
"""

import functools
import importlib.util
import math
import random
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llamarl.core.errors import MissingDependencyError

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "de": "German", "en": "English", "es": "Spanish",
        "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi",
        "it": "Italian", "ja": "Japanese", "kn": "Kannada", "ko": "Korean", "ml": "Malayalam", "mr": "Marathi",
        "ne": "Nepali", "pa": "Punjabi", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sw": "Swahili",
        "ta": "Tamil", "te": "Telugu", "th": "Thai", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
    }
)  # fmt: skip
"""The languages that `language:response_language` may ask for."""

MAX_CHARACTERS = 10_000
NUM_TRIALS = 7
MAX_STEPS = 1_000
DRAWS = 5
ALPHA, ALPHA_WIDTH, BASE_FREQUENCY = 0.5, 0.05, 10_000
CONVERGED = 0.99999
MIN_PROBABILITY = 0.1

DEVANAGARI = "Devanagari"
SMALL_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "hi": ("है हैं था थे थी हूँ हूं में का की और यह वह क्या नहीं मैं मुझे चाहिए हाँ आप ने पर भी रहा रही मेरा मेरी मेरे हम तुम "),
        "mr": (
            "आहे आहेत आहेस होता होती होते आणि मी तू ती ते हे ही नाही नाहीत काय जेवण च्या मला तुम्ही आम्ही "
            "माझा माझी माझे तुला त्याला तिला कसे पाहिजे "
        ),
        "ne": (
            "छ छन् छु छौं छैन हो हुन् थियो थिए भयो भएको र मा लाई म यो त्यो पनि हामी तपाईं गर्छ गर्न उनी ऊ छिन् मेरो हाम्रो तिम्रो सबै "
        ),
    }
)
"""Words that one of the three languages uses all the time and the others hardly ever."""
SMALL_WORD_WEIGHT = 4.0
HINDI_WEIGHT = 6.0
"""Natural logarithms of odds: of a small word, and of Hindi before anything is read."""

_URL = re.compile(r"https?://[-_.?&~;+=/#0-9A-Za-z]{1,2076}")
_MAIL = re.compile(r"[-_.0-9A-Za-z]{1,64}@[-_0-9A-Za-z]{1,255}[-_.0-9A-Za-z]{1,255}")
_DEVANAGARI_WORD = re.compile("[\u0900-\u0963\u0970-\u097f]+")
_LATIN = re.compile("[A-z]+")


class Langdetect:
    """Langdetect's verdicts for one seed."""

    def __init__(self, seed: int | None = 0) -> None:
        """Loads the package's profiles (once a process, about a second).

        Args:
            seed: of every call; None draws anew each time, as the released grader does.

        Raises:
            MissingDependencyError: langdetect is not installed.
        """
        self.seed = seed
        self._profiles = load_profiles()

    def detect(self, text: str) -> str | None:
        """The most probable language's code; None where no n-gram tells it, `unknown` where none is probable."""
        grams = self._profiles.grams_of(text)
        if not grams:
            return None
        generator = random.Random(self.seed)
        total = sum(_one_trial(grams, generator, self._profiles.frequencies) / NUM_TRIALS for _ in range(NUM_TRIALS))
        best = int(total.argmax())
        return self._profiles.languages[best] if total[best] > MIN_PROBABILITY else "unknown"


def _one_trial(grams: list[int], generator: random.Random, frequencies: Any) -> Any:
    """Probability of each language after drawing n-grams until one language is as good as certain.

    Certainty is looked at after 1, 6, 11, ... draws, so draws come in fives.
    """
    weight = (ALPHA + generator.gauss(0.0, 1.0) * ALPHA_WIDTH) / BASE_FREQUENCY
    probabilities = frequencies[0] * 0.0 + 1.0 / frequencies.shape[1]
    for check in range(MAX_STEPS // DRAWS + 1):
        drawn = [generator.choice(grams) for _ in range(DRAWS if check else 1)]
        factors = frequencies[drawn] + weight
        factors[0] *= probabilities
        probabilities = factors.prod(axis=0)
        probabilities /= sum(probabilities.tolist())
        if probabilities.max() > CONVERGED:
            break
    return probabilities


class Profiles:
    """Frequencies of n-grams by language, and the n-grams of a text."""

    def __init__(self, languages: tuple[str, ...], grams: Mapping[str, int], frequencies: Any, normalizer: Any) -> None:
        """Takes langdetect's tables.

        Args:
            languages: codes.
            grams: n-gram -> its row in `frequencies`.
            frequencies: numpy [n-grams, languages].
            normalizer: langdetect's, of characters and of Vietnamese.
        """
        self.languages, self.frequencies = languages, frequencies
        self.gram_rows, self._normalizer = grams, normalizer
        self._characters = _Normalized(normalizer.normalize)
        self._grams_of_word = functools.lru_cache(maxsize=1 << 16)(self._cut_word)

    def grams_of(self, text: str) -> list[int]:
        """The row of each known n-gram of the text, in order, repeats included."""
        words = self._clean(text).translate(self._characters).split(" ")
        grams: list[int] = []
        for word in words[:-1]:
            if word:
                grams += self._grams_of_word(word + " ")
        return grams + self._grams_of_word(words[-1])

    def _clean(self, text: str) -> str:
        """The text without addresses; and without Latin letters where those of other scripts clearly prevail."""
        if "http" in text:
            text = _URL.sub(" ", text)
        if "@" in text:
            text = _MAIL.sub(" ", text)
        text = self._normalizer.normalize_vi(text)[:MAX_CHARACTERS]
        counts = Counter(text)
        num_latin = sum(count for character, count in counts.items() if "A" <= character <= "z")
        num_other = sum(count for character, count in counts.items() if character >= "\u0300")
        return _LATIN.sub("", text) if num_latin * 2 < num_other else text

    def _cut_word(self, word: str) -> list[int]:
        """N-grams of up to three characters that end at each character of the word, a blank before it included.

        From the second of two capitals in a row on, there are none until the next character that is no capital.
        """
        grams = []
        is_capitals = False
        padded = " " + word
        for end in range(2, len(padded) + 1):
            is_capitals = padded[end - 1].isupper() and (is_capitals or padded[end - 2].isupper())
            if is_capitals:
                continue
            for start in range(end - 1, max(end - 4, -1), -1):
                gram = self.gram_rows.get(padded[start:end])
                if gram is not None and padded[start:end] != " ":
                    grams.append(gram)
        return grams


class _Normalized(dict[int, str]):
    """Langdetect's normal form of each character, for `str.translate`; found out when first met."""

    def __init__(self, normalize: Any) -> None:
        self._normalize = normalize

    def __missing__(self, code: int) -> str:
        self[code] = str(self._normalize(chr(code)))
        return self[code]


@functools.cache
def load_profiles() -> Profiles:
    """The profiles that langdetect ships, languages in alphabetical order whatever the file system says."""
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
        from langdetect.utils.ngram import NGram
    except ImportError:
        raise MissingDependencyError.for_extra("langdetect", "multiif") from None
    import numpy

    factory: Any = DetectorFactory()
    files = sorted(path for path in Path(PROFILES_DIRECTORY).iterdir() if not path.name.startswith("."))
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in files])
    grams = {gram: row for row, gram in enumerate(factory.word_lang_prob_map)}
    frequencies = numpy.array(list(factory.word_lang_prob_map.values()))
    return Profiles(tuple(factory.langlist), grams, frequencies, NGram)


class Lingua:
    """Lingua's verdicts among the languages of `NAMES` and Chinese; scripts of one language speak for themselves."""

    def __init__(self) -> None:
        """Prepares the detector; models and tables are loaded at first use.

        Raises:
            MissingDependencyError: lingua or langdetect is not installed.
        """
        self._detector = _load_lingua()
        if importlib.util.find_spec("langdetect") is None:
            raise MissingDependencyError.for_extra("langdetect", "multiif")

    def detect(self, text: str) -> str | None:
        """The language's code, or None where no letter tells it. Looks at the first `MAX_CHARACTERS` only."""
        text = text[:MAX_CHARACTERS]  # lingua's time on a single word grows with the square of its length
        text = text.encode("utf-8", "replace").decode("utf-8")  # it takes no lone surrogates
        code = _language_of_script(text)
        if code == DEVANAGARI:
            return devanagari_language(text)
        if code is not None:
            return code
        language = self._detector.detect_language_of(text)
        return None if language is None else str(language.iso_code_639_1.name.lower())


def _language_of_script(text: str) -> str | None:
    """Returns what the script of more than half of the letters says, where lingua lacks some of its languages."""
    letters = [character for character in text if character.isalpha()]
    scripts = {DEVANAGARI: ("\u0900", "\u097f"), "kn": ("\u0c80", "\u0cff"), "ml": ("\u0d00", "\u0d7f")}
    for code, (first, last) in scripts.items():
        if 2 * sum(first <= letter <= last for letter in letters) > len(letters):
            return code
    return None


def devanagari_language(text: str) -> str:
    """Hindi (`hi`), Marathi (`mr`) or Nepali (`ne`), whichever is likeliest; Hindi where hardly anything tells."""
    profiles = load_profiles()
    words = Counter(_DEVANAGARI_WORD.findall(text))
    frequencies = profiles.frequencies[profiles.grams_of(text)] + ALPHA / BASE_FREQUENCY
    evidence = {
        code: float(sum(math.log(each) for each in frequencies[:, profiles.languages.index(code)].tolist()))
        + SMALL_WORD_WEIGHT * sum(words[word] for word in small_words.split())
        for code, small_words in SMALL_WORDS.items()
    }
    evidence["hi"] += HINDI_WEIGHT
    return max(evidence, key=evidence.__getitem__)


@functools.cache
def _load_lingua() -> Any:
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder
    except ImportError:
        raise MissingDependencyError.for_extra("lingua-language-detector", "multiif") from None
    known = [getattr(IsoCode639_1, code.upper(), None) for code in sorted({*NAMES, "zh"})]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*[code for code in known if code is not None]).build()
