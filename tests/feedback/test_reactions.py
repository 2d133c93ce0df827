import pytest

from llamarl.feedback.reactions import NAMES, name_reaction


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("👍🏿", "like"),
        ("+1", "like"),
        ("Thumbs Up", "like"),
        (":thumbsdown:", "dislike"),
        ("❤️‍🩹", "love"),
        ("❤️❤️", "love"),
        (":+1::skin-tone-2:", "like"),
        ("[null]", ""),
        ('[null, "🦄"]', None),
        ("11", None),
        ("💔", "sad"),
        ("", ""),
        ("None", ""),
        ("false", ""),
        ("[]", ""),
        ('["😢", "❤️"]', "love"),
        ('["🦄", "👍"]', "like"),
        ('["🦄"]', None),
        ("[broken", None),
        ("🦄", None),
        ("glove", None),
    ],
)
def test_names(text, name):
    assert name_reaction(text) == name


def test_own_spellings_come_first():
    assert name_reaction("🦄", {"🦄": "love"}) == "love"
    assert name_reaction("👍", {"👍": "love"}) == "love"
    assert name_reaction('["🦄"]', {"🦄": "love"}) == "love"


def test_no_spelling_has_two_names():
    spellings = [spelling for text in NAMES.values() for spelling in text.split()]
    assert len(spellings) == len(set(spellings))
