"""Counting words, in any script. Pure functions of a string.

count_runs        runs of word characters, as Python's `re` sees them: breaks Indic words at vowel signs
count_east_asian  each Han, Kana or Hangul character is a word, and so is each other piece between blanks
count_words       the repaired count: marks belong to words, apostrophes join, Han and Kana count by character
token_pattern     pieces to compare phrases by: words, or characters where a script has no blanks
"""

import functools
import re
import unicodedata

from llamarl.core.errors import MissingDependencyError

_RUN = re.compile(r"\w+")
_HAN_KANA = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff"
_HAN_KANA_ALL = _HAN_KANA + "\uf900-\ufaff\U00020000-\U0003ffff"
_EAST_ASIAN = re.compile(f"[{_HAN_KANA}\uac00-\ud7af]")
# What the released counter removes first, without putting a blank in its place: "a,b" is one word.
_REMOVED = re.compile(r"""[\\.!?．/_,{}<>:;$%^&*(+"'—！，。？、`~@#￥…（）：；《》“”()\[\]»〔〕\-「」]+""")
_JOINERS = "\u200c\u200d"
_SPACELESS_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_SPACELESS = re.compile(f"[{_HAN_KANA_ALL}{_SPACELESS_LETTERS}]")
_CONTRACTION = re.compile(r"(?i)(?<=\w)(?=(?:n't|'(?:s|m|d|ll|re|ve))(?![\w']))")
_FUSED = re.compile(r"(?i)\b(can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:lem|gim)(?=me\b))")
_TOKEN_BREAKS = re.compile(r"[;@#$%&?!\[\](){}<>\"«»“”‘’„`]|--|\.{2,}|[:,](?!\d)|''")


def count_runs(text: str) -> int:
    """Number of runs of letters, digits and underscores. Combining marks end a run."""
    return len(_RUN.findall(text))


def count_east_asian(text: str) -> int:
    """Number of words as the released grader counts them in Chinese and Japanese.

    Raises:
        MissingDependencyError: the text has characters beyond ASCII and `emoji`, which counts some, is not installed.
    """
    text = _REMOVED.sub("", text)
    text, num_emoji = _without_emoji(text)
    rest, num_characters = _EAST_ASIAN.subn(" ", text)
    return num_emoji + num_characters + len(rest.split())


def count_words(text: str) -> int:
    """Number of words: marks are word characters, an apostrophe inside a word joins, a Han or Kana character is one."""
    return len(_word_pattern().findall(text))


def word_tokens(text: str) -> list[str]:
    """Texts between blanks and punctuation. Hyphens join; contractions are two tokens: `DO`, `N'T`."""
    return _FUSED.sub(r"\1 ", _CONTRACTION.sub(" ", _TOKEN_BREAKS.sub(" ", text))).split()


def hyphenated_words(text: str) -> list[str]:
    """Words; hyphens and apostrophes join."""
    return _word_pattern("-").findall(text)


def is_spaceless(character: str) -> bool:
    """Says whether its script puts no blanks between words, so that a word may begin or end anywhere."""
    return bool(_SPACELESS.match(character))


def is_word_character(character: str) -> bool:
    """Letters, digits, underscore, combining marks and joiners."""
    return character.isalnum() or character == "_" or character in _JOINERS or unicodedata.category(character)[0] == "M"


def _without_emoji(text: str) -> tuple[str, int]:
    if text.isascii() or not emoji_characters().intersection(text):
        return text, 0
    import emoji

    return emoji.replace_emoji(text, ""), emoji.emoji_count(text)


@functools.cache
def emoji_characters() -> frozenset[str]:
    """Characters beyond ASCII that occur in emoji. Raises `MissingDependencyError` without the package `emoji`."""
    try:
        import emoji
    except ImportError:
        raise MissingDependencyError.for_extra("emoji", "multiif") from None
    return frozenset(character for sequence in emoji.EMOJI_DATA for character in sequence if not character.isascii())


@functools.cache
def token_pattern() -> re.Pattern[str]:
    """Words of scripts that put blanks between them; of others, a character with the marks on it."""
    south_east = [
        chr(code)
        for first, last in ((0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF))
        for code in range(first, last + 1)
    ]
    marks = "".join(character for character in south_east if unicodedata.category(character)[0] == "M")
    letters = f"[{_letter_ranges(_HAN_KANA_ALL + _SPACELESS_LETTERS)}]"
    return re.compile(f"{letters}+|[{_HAN_KANA_ALL}]|[{_SPACELESS_LETTERS}][{marks}]*")


@functools.cache
def _word_pattern(joiner: str = "") -> re.Pattern[str]:
    """Words of any script; `joiner` joins besides apostrophes."""
    letters = f"[{_letter_ranges(_HAN_KANA_ALL)}]"
    return re.compile(rf"[{_HAN_KANA_ALL}]|{letters}+(?:['’{joiner}]{letters}+)*")


@functools.cache
def _letter_ranges(excluded: str) -> str:
    """Word characters without those of the character class `excluded`, as ranges of a character class.

    A class of ranges is searched ten times faster than an alternative of classes. Beyond the Basic Multilingual Plane
    the blocks of scripts count as a whole; emoji lie behind them.
    """
    is_excluded = re.compile(f"[{excluded}]").match
    codes = {code for code in range(0x10000) if is_word_character(chr(code)) and not is_excluded(chr(code))}
    firsts = sorted(code for code in codes if code - 1 not in codes)
    lasts = sorted(code for code in codes if code + 1 not in codes)
    ranges = [f"{chr(first)}-{chr(last)}" for first, last in zip(firsts, lasts, strict=True)]
    return "".join(ranges) + "\U00010000-\U0001eeff"
