import pytest

from llamarl.generation.stops import completes_stop

PIECES = ["he", "llo", "", " wor", "ld", "!", "é"]


def spell(ids):
    """Like a sentencepiece tokenizer: a text that starts with a blank loses it."""
    return "".join(PIECES[i] for i in ids).removeprefix(" ")


@pytest.mark.parametrize(
    ("ids", "stops", "ends"),
    [
        ([0, 1], ["lo"], True),
        ([0, 1], ["ll", "x"], True),
        ([0, 1], ["hello"], True),
        ([0, 1, 3], ["lo w"], True),
        ([0, 1], ["world"], False),
        ([0, 1, 2, 2, 3, 4], ["hello world"], True),
        ([3], [" wor"], False),  # the text itself has no blank there
        ([0, 6], ["é"], True),
    ],
)
def test_a_stop_string_is_found_where_the_text_has_it(ids, stops, ends):
    assert completes_stop(ids, stops, spell) is ends


def test_tokens_without_text_do_not_hide_the_string():
    assert completes_stop([0, *[2] * 500, 1], ["hello"], spell)


def test_only_the_tail_is_decoded():
    lengths = []

    def count(ids):
        lengths.append(len(ids))
        return spell(ids)

    assert not completes_stop([0] * 5000, ["zz"], count)
    assert max(lengths) == 10
