"""Cutting text into sentences: by NLTK's Punkt model, as the released grader does, or by our own rules.

count_by_rules(text)                       . ? ! before a blank, but not after abbreviations and initials
count_by_rules(text, is_any_script=True)   also the marks of other scripts; pieces without a letter don't count
split_sentences(text)                      those sentences, each line by itself
"""

import re
from collections.abc import Callable
from typing import Any

from llamarl.core.errors import ConfigError, MissingDependencyError

PUNKT_COMMAND = "python -m nltk.downloader punkt_tab"

_CLOSERS = "\"'”’»)]}*_`」』"
_ABBREVIATIONS = frozenset(
    """
    mr mrs ms dr prof sr jr st mt messrs gen col maj sen rep sgt lt capt rev hon gov inc ltd co corp bros vs etc al ca
    jan feb mar apr jun jul aug sep sept oct nov dec ave blvd vol fig u.s u.k u.n e.g i.e a.m p.m a.d b.c d.c ph.d
    cf ed est approx dept univ
    """.split()  # noqa: SIM905  a list of one word a line would be eighty lines long
)
_TITLES = frozenset(
    """
    sr sra srta srs sras dr dra d dña ud uds vd vds exc exca excmo ej av avda núm lic gral cía ee uu ee.uu pp
    m mm mme mmes mlle mlles st ste mgr pr éd
    hr fr frl dipl ing phil nr str abs abb bd kap bzw ggf evtl bspw inkl exkl vgl sog geb gest jh
    sig sig.ra sig.na sigg dott dott.ssa prof.ssa avv geom s.p.a
    exmo exma ilmo v.exa ltda
    им ул пр просп пл пос обл р-н гл табл проф акад доц напр св
    डॉ प्रो पं श्री श्रीमती सु कु स्व मो रु क्र सं पृ ए बी सी डी ई एफ एच जे के एल एम एन ओ पी क्यू आर एस टी यू वी
    डब्ल्यू एक्स वाई ज़ेड जेड
    tp ts ths th.s gs pgs bs ks
    """.split()  # noqa: SIM905
)
"""Abbreviations of Spanish, French, German, Italian, Portuguese, Russian, Hindi and Vietnamese that names, numbers or
more of the sentence follow."""
_CLOSING_ABBREVIATIONS = frozenset(
    """
    pág págs pag pagg aprox tel ecc usw env ca млн млрд тыс руб коп др гг стр рис см v.v ss vol cap art ex es no
    """.split()  # noqa: SIM905
)
"""Abbreviations that often stand at a sentence's end too, which the next word's capital tells; some are also words."""
_AFTER_ORDINALS = frozenset(
    """
    januar jänner februar märz april mai juni juli august september oktober november dezember jahrhundert jahrhunderts
    jahrhunderte klasse stock platz kapitel auflage geburtstag oktobers
    """.split()  # noqa: SIM905
)
"""Words that stand behind a German ordinal, such as `3.`."""
_WIDE_END = re.compile(rf"[。！？．｡।॥؟۔…]+[{re.escape(_CLOSERS)}]*")
_EAST_ASIAN_PIECE = re.compile(r"[^!?。.！？．\n]+")
_HINDI_END = re.compile(r"[।!?]")


def count_by_rules(text: str, *, is_any_script: bool = False) -> int:
    """Number of sentences.

    Args:
        text: any text.
        is_any_script: cut at the marks of every script, even without a blank, and count only pieces with a letter.
            Otherwise an approximation of Punkt: `.`, `?` and `!` cut, and a list number `1.` is a sentence.
    """
    if not is_any_script:
        return len(_cut_western(text, _ends_sentence))
    return sum(
        any(character.isalpha() for character in sentence)
        for part in _WIDE_END.split(text)
        for sentence in _cut_western(part, _ends_any_sentence)
    )


def split_sentences(text: str) -> list[str]:
    """Sentences of any script; a line break ends one too, and the mark at a sentence's end may be gone."""
    return [
        sentence
        for line in text.splitlines()
        for part in _WIDE_END.split(line)
        for sentence in _cut_western(part, _ends_any_sentence)
    ]


def count_east_asian_sentences(text: str) -> int:
    """Number of sentences as the released grader counts them in Chinese and Japanese: `3.5` is two pieces."""
    return sum(len(_EAST_ASIAN_PIECE.findall(line.strip())) for line in text.splitlines())


def count_hindi_sentences(text: str) -> int:
    """Number of sentences as the released grader counts them in Hindi: neither `.` nor a line break ends one."""
    # A piece keeps the mark that ends it, so a mark with nothing before it is a sentence too.
    pieces = _HINDI_END.split(text)
    return len(pieces) - 1 + bool(pieces[-1].strip())


def load_punkt() -> tuple[Callable[[str], int], Callable[[str], list[str]]]:
    """NLTK's English sentence counter and word tokenizer.

    Raises:
        MissingDependencyError: NLTK is not installed.
        ConfigError: its Punkt data is not; names the command that gets it.
    """
    try:
        import nltk
    except ImportError:
        raise MissingDependencyError.for_extra("nltk", "multiif") from None
    try:
        punkt: Any = nltk.PunktTokenizer()
    except LookupError:
        raise ConfigError(
            f"sentence_splitter='punkt': NLTK's data 'punkt_tab' is missing; run: {PUNKT_COMMAND} "
            "(or choose sentence_splitter='rules', on the command line --sentence-splitter rules; results record it)"
        ) from None
    return (lambda text: len(punkt.tokenize(text))), nltk.word_tokenize


def _cut_western(text: str, ends: Callable[[str, str], bool]) -> list[str]:
    """Sentences that end with `.`, `?` or `!` before a blank."""
    sentences, words = [], text.split()
    start = 0
    for index, word in enumerate(words):
        is_last = index + 1 == len(words)
        if is_last or ends(word, words[index + 1]):
            sentences.append(" ".join(words[start : index + 1]))
            start = index + 1
    return sentences


def _ends_sentence(word: str, following: str) -> bool:
    word = word.rstrip(_CLOSERS)
    if word.endswith(("?", "!")):
        return True
    if not word.endswith("."):
        return False
    starts_upper = _starts_upper(following)
    if word.endswith(".."):
        return starts_upper
    stem = _stem(word)
    is_initial = len(stem) == 1 and stem.isalpha()
    return stem.rpartition("-")[2] not in _ABBREVIATIONS and not is_initial


def _ends_any_sentence(word: str, following: str) -> bool:
    """Decides as `_ends_sentence`, knowing abbreviations of other languages, dotted initials and German ordinals."""
    if not _ends_sentence(word, following):
        return False
    word = word.rstrip(_CLOSERS)
    if not word.endswith(".") or word.endswith(".."):
        return True
    stem = _stem(word)
    if stem in _TITLES or all(len(part) == 1 and part.isalpha() for part in re.split("[.-]+", stem)):
        return False
    if stem in _CLOSING_ABBREVIATIONS:
        return _starts_upper(following)
    return not (stem.isdecimal() and following.strip(_CLOSERS + ".,;:!?").lower() in _AFTER_ORDINALS)


def _starts_upper(word: str) -> bool:
    return word.lstrip("\"'“‘«([*_")[:1].isupper()


def _stem(word: str) -> str:
    return word[:-1].lstrip("\"'“‘«([{*_").lower()
