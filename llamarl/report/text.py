"""Numbers, times and untrusted text as people read them."""

import math
from collections.abc import Sequence
from pathlib import PurePath


def format_number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands separated; a dash for None."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0 or (isinstance(value, int) and not isinstance(value, bool)):
        return f"{int(value):,}"
    size = abs(value)
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if size >= 1e-3:
        return f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"
    return f"{value:.{digits - 2}e}".replace("e-0", "e-")


def format_seconds(seconds: float | None) -> str:
    """A duration: `3.1 ms`, `4.2 s`, `3m 20s`, `2h 05m`, `3d 04h`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 1:
        return f"{format_number(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if hours == 0:
        return f"{minutes}m {whole % 60:02d}s"
    return f"{hours}h {minutes % 60:02d}m" if days == 0 else f"{days}d {hours % 24:02d}h"


def format_bytes(count: float | None) -> str:
    """A size in binary units: `812 MiB`."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def visible(text: str) -> str:
    """Text that a terminal can only show: control characters, the escape character first, become pictures.

    A model's completion may hold sequences that clear the screen or forge output; they must not reach the terminal.
    """
    return "".join(map(_visible_character, text))


def one_line(text: str, width: int | None = None) -> str:
    """`visible` text on one line, cut to `width` characters with an ellipsis."""
    line = visible(" ⏎ ".join(text.splitlines()))
    return line if width is None or len(line) <= width else line[: max(0, width - 1)] + "…"


def name_files(paths: Sequence[str]) -> list[str]:
    """Short names of files: without folder and suffix, or with as much of them as tells them apart. Repeats count."""
    parts = {path: PurePath(path).parts for path in paths}
    shorts = [{path: PurePath(path).stem for path in paths}]
    shorts += [
        {path: "/".join(parts[path][-size:]) for path in paths} for size in range(1, max(map(len, parts.values())))
    ]
    short = next((each for each in shorts if len(set(each.values())) == len(parts)), {path: path for path in paths})
    counts: dict[str, int] = {}
    named = []
    for path in paths:
        counts[path] = counts.get(path, 0) + 1
        named.append(short[path] if counts[path] == 1 else f"{short[path]} ({counts[path]})")
    return named


def figure_text(text: str) -> str:
    """Text that a figure can show: what has no glyph by its nature, such as a control character, is replaced."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _visible_character(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return character
    if character == "\t":
        return "    "
    if code < 0x20:
        return chr(0x2400 + code)  # the "control pictures" block mirrors ASCII
    if 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or character in _UNSHOWN:
        return "\N{REPLACEMENT CHARACTER}"
    return character


_UNSHOWN = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")
"""Overrides of direction, which reorder what stands around them, and separators of lines and paragraphs."""
