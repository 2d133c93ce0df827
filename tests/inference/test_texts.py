"""Pieces of a growing text: together they are the text, and none had to be taken back."""

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamarl.generation.stops import before_stop
from llamarl.inference.texts import TextPieces, TokenTexts

on_any_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # however busy it is


def decode(ids: Sequence[int]) -> str:
    """Tokens are bytes, as those of a byte-level tokenizer that merged nothing."""
    return bytes(ids).decode(errors="replace")


def grow(data: bytes, stops: Sequence[str] = ()) -> list[str]:
    pieces, given_out = TextPieces(decode, stops), []
    for token_id in data:
        given_out.append(pieces.add(token_id))
        if any(stop in decode(data[: len(given_out)]) for stop in stops):
            break  # as the batcher does
    return [*given_out, pieces.finish(before_stop(decode(data[: len(given_out)]), stops))]


def test_a_character_is_given_out_whole() -> None:
    assert grow("aé€😀b".encode()) == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    assert grow(b"ab<en<end>x", ["<end>"]) == ["a", "b", "", "", "", "<en", "", "", "", "", ""]
    assert grow(b"a<en", ["<end>"]) == ["a", "", "", "", "<en"]


@on_any_machine
@given(st.text(alphabet="ab<>é😀", max_size=30), st.lists(st.text(alphabet="ab<é", min_size=1, max_size=4), max_size=3))
def test_pieces_together_are_the_text_up_to_its_stop(text: str, stops: list[str]) -> None:
    given_out = grow(text.encode(), stops)
    drawn = decode(text.encode()[: len(given_out) - 1])  # up to the token that completed a stop string
    assert "".join(given_out) == before_stop(drawn, stops)


@on_any_machine
@given(st.binary(max_size=30))
def test_bytes_that_are_no_characters_come_as_the_decoder_writes_them(data: bytes) -> None:
    assert "".join(grow(data)) == decode(data)


def test_the_text_of_a_token_has_its_leading_space() -> None:
    words = {0: "a", 1: " Safe", 2: " Un"}
    texts = TokenTexts(lambda ids: "".join(words[i] for i in ids).lstrip(), 0)  # drops the space before a first word
    assert (texts[1], texts[2], texts[0]) == (" Safe", " Un", "a")
