"""Texts of tokens: of one token by itself, and of a completion while it grows."""

from collections.abc import Callable, Sequence

from llamarl.generation.stops import before_stop

Decode = Callable[[Sequence[int]], str]
PART = "\N{REPLACEMENT CHARACTER}"
"""Decoders write it for bytes that are no character yet."""


class TextPieces:
    """The text of a completion that grows by tokens, piece by piece, and only as far as it can no longer change.

    Held back are bytes that are no character yet, and what may be the beginning of a stop string. Nothing comes after
    the first stop string.

    Args:
        decode: token ids -> text without special tokens.
        stops: strings that end the text and are not part of it.
    """

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, stops
        self._token_ids: list[int] = []
        # A token's text depends on the one before it (some decoders drop a leading space), so a window is decoded:
        # from `_start`, of which the tokens before `_end` have been given out.
        self._start = self._end = 0
        self._given, self._held = "", ""
        self._is_over = False

    def add(self, token_id: int) -> str:
        """The text that one more token makes certain."""
        self._token_ids.append(token_id)
        window = self._decode(self._token_ids[self._start :])
        known = self._decode(self._token_ids[self._start : self._end])
        if self._is_over or window.endswith(PART) or len(window) <= len(known):
            return ""
        self._start, self._end = self._end, len(self._token_ids)
        self._held += window[len(known) :]
        text = before_stop(self._held, self._stops)
        self._is_over = len(text) < len(self._held)
        if not self._is_over:
            text = text[: len(text) - _length_of_begun_stop(text, self._stops)]
        self._held = self._held[len(text) :]
        self._given += text
        return text

    def finish(self, text: str) -> str:
        """What is still to come of the whole text, as `before_stop` cut it."""
        return text[len(self._given) :] if text.startswith(self._given) else ""


def _length_of_begun_stop(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    ends = (length for length in range(min(longest, len(text)), 0, -1))
    return next((length for length in ends if any(stop.startswith(text[-length:]) for stop in stops)), 0)


class TokenTexts:
    """The text of single tokens, as it stands within a text: with its leading space.

    Args:
        decode: token ids -> text, special tokens included.
        anchor: a token that stands before, whose text is taken off again.
    """

    def __init__(self, decode: Decode, anchor: int) -> None:
        self._decode, self._anchor = decode, anchor
        self._before = decode([anchor])
        self._texts: dict[int, str] = {}

    def __getitem__(self, token_id: int) -> str:
        if token_id not in self._texts:
            self._texts[token_id] = self._decode([self._anchor, token_id])[len(self._before) :]
        return self._texts[token_id]
