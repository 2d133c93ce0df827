r"""One spelling for answers: LaTeX noise, Unicode forms and wrappers out, mathematics in.

clean("$\dfrac{1}{2}$.")      # "\frac{1}{2}"
clean("$5")                   # "\$5": a dollar sign before a number, not the mark of a formula
clean("\text{(C)}")           # "(C)"
clean("[42]")                 # "42": brackets around one thing are no interval
"""

import re
import unicodedata

_SYMBOLS = {
    **dict.fromkeys("−–—‐‑‒", "-"),
    **dict.fromkeys("×·⋅∗", "*"),
    "÷": "/",
    "⁄": "/",
    "√": "\\sqrt",
    "π": "\\pi ",
    "∞": "\\infty ",
    "°": " degrees",
    "∪": "\\cup ",
    "∅": "\\emptyset ",
    "∈": "\\in ",
    "ℝ": "\\mathbb{R}",
    "±": "\\pm ",
    "≤": "\\leq ",
    "≥": "\\geq ",
    "≠": "\\neq ",
    **dict.fromkeys("’ʼ′", "'"),
    "\u00a0": " ",
}
_SUPERSCRIPTS = {**{character: str(i) for i, character in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, "⁻": "-"}

_REPLACEMENTS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\[!,;:]|\{,\}", ""),
        (r"(?<!\\)\\(?:quad|qquad| )|~|(?<!\\)\\(?=\s)", " "),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"\\(?:dfrac|tfrac|cfrac)(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:cdot|times|ast)(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\^ ?\{? ?\\circ(?![a-zA-Z]) ?\}?|\\degree(?![a-zA-Z])", " degrees"),
        (r"\\%", "%"),
        (r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{ *\\\}", r"\\emptyset"),
        (r"\\(le|ge|ne)(?:q(?:slant)?)?(?![a-zA-Z])", r"\\\1q"),
        (r"<=|=<", r"\\leq "),
        (r">=", r"\\geq "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"_\{ ?(\w) ?\}", r"_\1"),
        (r"\\l(?:brace|vert)(?![a-zA-Z])", lambda match: r"\{" if "brace" in match[0] else "|"),
        (r"\\r(?:brace|vert)(?![a-zA-Z])", lambda match: r"\}" if "brace" in match[0] else "|"),
        (r"(?<![\\a-zA-Z])(sqrt|pi|infty)(?![a-zA-Z])", r"\\\1"),
        (r"(?<![\\a-zA-Z])(?:inf|infinity|oo)(?![a-zA-Z])", r"\\infty"),
        (r"(?<=\d)\s*/\s*(?=\d)", "/"),
        (r"(?<=\d),\s+(?=\d{3}(?!\d))", ";"),  # a list: the comma of thousands has no space behind it
    )
)
_DOLLAR = re.compile(r"(?<!\\)\$")
_DELIMITER = re.compile(r"(?<!\\)\$(?! ?-?\.?\d)")
"""A dollar sign that no number follows: where there is one, all of them stand around formulas."""
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}")
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{(.*)\}", re.DOTALL)
_BRACKETED = re.compile(r"\[([^\[\]()|,;]+)\]")
_LOOSE_SPACE = re.compile(r"(?<![a-zA-Z0-9.%}]) +| +(?![a-zA-Z0-9.])")


def clean(text: str) -> str:
    """The text in one spelling. Meant for texts of at most `MAX_ANSWER_CHARACTERS`; idempotent on what it returns."""
    text = _plain_characters(text).strip()
    while match := _BOX.fullmatch(text):
        text = match[1].strip()
    text = _DOLLAR.sub("", text) if _DELIMITER.search(text) else _DOLLAR.sub(r"\\$", text)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    for _ in range(3):
        text = _TEXT.sub(r" \1 ", text)
    text = re.sub(r"\s+", " ", text)
    text = _LOOSE_SPACE.sub("", text)
    text = _without_marks(text)
    match = _BRACKETED.fullmatch(text)
    return _without_marks(match[1]) if match else text


def _without_marks(text: str) -> str:
    return text.lstrip(" :;,=*_`\"'").rstrip(" :;,=*_`\"'.")


def _plain_characters(text: str) -> str:
    """ASCII digits, minus signs, fractions and exponents for their Unicode relatives."""
    text = re.sub(
        f"[{''.join(_SUPERSCRIPTS)}]+",
        lambda match: "^{" + "".join(map(_SUPERSCRIPTS.__getitem__, match[0])) + "}",
        text,
    )
    return "".join(map(_plain_character, text))


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if unicodedata.category(character) == "Cf":
        return ""  # an invisible mark, such as a zero-width space
    plain = unicodedata.normalize("NFKC", character)
    if "⁄" in plain:  # a vulgar fraction, such as one half
        numerator, _, denominator = plain.partition("⁄")
        return f"\\frac{{{numerator}}}{{{denominator}}}"
    return plain
