"""Reactions by their names: emoji variants, skin tones and spellings of one reaction are one."""

import json
import re
from collections.abc import Mapping

LOVE = "love"

NAMES = {
    LOVE: "love loved heart red_heart true yes 1 <3 "
    "❤ ♥ 💕 💖 💗 💓 💞 💘 💝 ❣ 💙 💚 💛 🧡 💜 🖤 🤍 🤎 🩷 🩵 🩶 😍 🥰 😻 🫶",
    "like": "like liked thumbs_up thumbsup thumb_up up upvote +1 👍 👏 🙌 💯 🔥 🎉",
    "laugh": "laugh laughed haha lol 😂 🤣 😆 😄 😁",
    "surprise": "surprise surprised wow 😮 😲 🤯 😯",
    "sad": "sad 😢 😭 😞 🙁 ☹ 💔",
    "angry": "angry mad 😡 😠 🤬",
    "dislike": "dislike disliked thumbs_down thumbsdown thumb_down down downvote -1 👎",
}
"""Spellings of each reaction, in the order in which the first counts where a message has several."""

NEGATIVE = ("sad", "angry", "dislike")
"""Reactions that say that a message was not liked."""

NONE = frozenset({"", "none", "null", "false", "no", "0", "[]"})

_BY_SPELLING = {spelling: name for name, text in NAMES.items() for spelling in text.split()}
# variation selectors, skin tones, and what joins emoji (a heart on fire is a heart)
_DECORATION = re.compile("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]|\u200d.*|::skin-tone-\\d", re.S)


def name_reaction(text: str, own: Mapping[str, str] | None = None) -> str | None:
    """The name of a logged reaction, "" for none, None for one that is not known.

    Args:
        text: an emoji, a name such as `:heart:`, a truth value (true is love), or a JSON list of them, of which the
            first in the order of `NAMES` counts.
        own: names of further spellings.
    """
    plain = _DECORATION.sub("", text.strip()).strip(":").lower().replace(" ", "_")
    if text.startswith("[") and plain not in NONE:
        names = [name_reaction(str(entry), own) for entry in _entries(text)]
        known = [name for name in [*NAMES, *(own or {}).values(), ""] if name in names]
        return known[0] if known and (known[0] or None not in names) else None
    if own and (chosen := own.get(text.strip(), own.get(plain))):
        return chosen
    if len(set(plain)) == 1 and not plain.isascii():
        plain = plain[0]  # the same emoji several times
    return "" if plain in NONE else _BY_SPELLING.get(plain)


def _entries(text: str) -> list[object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []
