"""Stop strings, checked as text while tokens arrive."""

from collections.abc import Callable, Sequence


def completes_stop(
    token_ids: Sequence[int], stops: Sequence[str], decode: Callable[[Sequence[int]], str], margin: int = 8
) -> bool:
    """True if the newest token completes one of `stops`.

    Only the tail is decoded: as many tokens as give the longest stop string and `margin` characters, since tokens may
    decode to nothing (special ones, parts of a character) and the first of a tail may lose a space.

    Args:
        token_ids: the completion so far, checked after each token.
        stops: non-empty strings.
        decode: token ids -> text.
        margin: extra characters to decode.
    """
    longest = max(map(len, stops))
    num_tokens = longest + margin
    while True:
        tail = decode(token_ids[-num_tokens:])
        if len(tail) >= longest + margin or num_tokens >= len(token_ids):
            return any(stop in tail for stop in stops)
        num_tokens *= 2


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string, as servers give it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
