"""Telling the language of a text: as the released grader does (langdetect, here seeded), or robustly (lingua).

Langdetect draws n-grams at random until it is sure; unseeded, its answer on a short text may change from call to call.
`Langdetect` gives the package's own answers for a seed, several times faster: it keeps the n-grams of every word that
it has met, where the package cuts each text anew, character by character.
"""

import functools
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
ALPHA, ALPHA_WIDTH, BASE_FREQUENCY = 0.5, 0.05, 10_000
CONVERGED = 0.99999
MIN_PROBABILITY = 0.1

_URL = re.compile(r"https?://[-_.?&~;+=/#0-9A-Za-z]{1,2076}")
_MAIL = re.compile(r"[-_.0-9A-Za-z]{1,64}@[-_0-9A-Za-z]{1,255}[-_.0-9A-Za-z]{1,255}")
_LATIN = re.compile("[A-z]+")

_Row = tuple[float, ...]
"""Probability of one n-gram in each language."""


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
        rows = self._profiles.rows_of(text)
        if not rows:
            return None
        totals = self._mean_probabilities(rows)
        best = max(totals)
        # Of equals the package takes the last one: it sorts upwards and turns the list, which keeps their order.
        return self._profiles.languages[totals.index(best)] if best > MIN_PROBABILITY else "unknown"

    def _mean_probabilities(self, rows: list[_Row]) -> list[float]:
        generator = random.Random(self.seed)
        totals = [0.0] * len(self._profiles.languages)
        for _ in range(NUM_TRIALS):
            probabilities = _one_trial(rows, generator, len(totals))
            totals = [total + p / NUM_TRIALS for total, p in zip(totals, probabilities, strict=True)]
        return totals


def _one_trial(rows: list[_Row], generator: random.Random, num_languages: int) -> list[float]:
    """Probabilities of the languages after drawing n-grams until one language is as good as certain."""
    weight = (ALPHA + generator.gauss(0.0, 1.0) * ALPHA_WIDTH) / BASE_FREQUENCY
    probabilities = [1.0 / num_languages] * num_languages
    for step in range(MAX_STEPS + 1):
        row = generator.choice(rows)
        probabilities = [p * (weight + q) for p, q in zip(probabilities, row, strict=True)]
        if step % 5 == 0:
            total = sum(probabilities)
            probabilities = [p / total for p in probabilities]
            if max(probabilities) > CONVERGED:
                break
    return probabilities


class Profiles:
    """Which n-gram is how frequent in which language; and the n-grams of a text."""

    def __init__(self, languages: tuple[str, ...], rows: Mapping[str, _Row], normalizer: Any) -> None:
        self.languages = languages
        self._rows = rows
        self._normalizer = normalizer
        self._characters = _Normalized(normalizer.normalize)
        self._rows_of_word = functools.lru_cache(maxsize=1 << 16)(self._cut_word)

    def rows_of(self, text: str) -> list[_Row]:
        """One row for each known n-gram of the text, in order, repeats included."""
        words = self._clean(text).translate(self._characters).split(" ")
        rows: list[_Row] = []
        for word in words[:-1]:
            rows += self._rows_of_word(word + " ")
        return rows + self._rows_of_word(words[-1])

    def _clean(self, text: str) -> str:
        """Without addresses; and without Latin letters where those of other scripts clearly prevail."""
        if "http" in text:
            text = _URL.sub(" ", text)
        if "@" in text:
            text = _MAIL.sub(" ", text)
        text = self._normalizer.normalize_vi(text)[:MAX_CHARACTERS]
        num_latin = num_other = 0
        for character, count in Counter(text).items():
            if "A" <= character <= "z":
                num_latin += count
            elif character >= "\u0300" and not "\u1e00" <= character <= "\u1eff":
                num_other += count
        return _LATIN.sub("", text) if num_latin * 2 < num_other else text

    def _cut_word(self, word: str) -> list[_Row]:
        """N-grams of up to three characters that end at each character of the word, a blank before it included.

        From the second of two capitals in a row on, there are none until the next character that is no capital.
        """
        rows = []
        is_capitals = False
        padded = " " + word
        for end in range(2, len(padded) + 1):
            is_capitals = padded[end - 1].isupper() and (is_capitals or padded[end - 2].isupper())
            if is_capitals:
                continue
            for start in range(end - 1, max(end - 4, -1), -1):
                row = self._rows.get(padded[start:end])
                if row is not None and padded[start:end] != " ":
                    rows.append(row)
        return rows


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
    factory: Any = DetectorFactory()
    files = sorted(path for path in Path(PROFILES_DIRECTORY).iterdir() if not path.name.startswith("."))
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in files])
    rows = {gram: tuple(row) for gram, row in factory.word_lang_prob_map.items()}
    return Profiles(tuple(factory.langlist), rows, NGram)
