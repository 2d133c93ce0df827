import pytest

from llamarl.core.config import suggest


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("gpro", " Did you mean 'grpo'?"),  # gspo is as close by its letters, but two that changed places are likelier
        ("gspoo", " Did you mean 'gspo'?"),
        ("zzz", " Choose one of: grpo, gspo."),
    ],
)
def test_a_mistyped_word_is_answered_with_the_likeliest(word: str, expected: str) -> None:
    assert suggest(word, ["gspo", "grpo"]) == expected
