r"""One spelling of text that looks the same. Pure functions of a string.

as_read("ba\u00add\r\n")      # "bad\n": without what nobody sees, accents composed, one kind of line break
fold("L\u2019ÉTÉ")            # "l'été": also one case, one apostrophe, one hyphen, one width

Fixed mode judges every reply as it is read, and compares words and phrases folded.
"""

import re
import unicodedata

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # ignorable by default
    "\u0334-\u0338]"  # strokes laid over letters
)
_BLANK_LOOKING = str.maketrans({"\u2800": " ", "\r": "\n", "\u2028": "\n", "\u2029": "\n", "\x85": "\n"})
_FOLDED = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛ʼʻˈ′＇`´ʹꞌ", "'"),
        **dict.fromkeys("“”„‟″＂", '"'),
        **dict.fromkeys("‐‑‒–−﹘﹣－", "-"),
        "ς": "σ",
    }
)


def as_read(text: str) -> str:
    """The text without invisible characters, accents composed (NFC), line breaks of one kind."""
    if text.isascii():
        return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    text = _INVISIBLE.sub("", text.replace("\r\n", "\n").translate(_BLANK_LOOKING))
    return unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """The text as words and phrases are compared: as it is read, in lower case and plain characters, single blanks."""
    text = as_read(text)
    text = unicodedata.normalize("NFKC", text.translate(_FOLDED)).lower().translate(_FOLDED)
    return " ".join(text.split())
