import sys

import pytest

pytest.importorskip("langdetect")
pytest.importorskip("emoji")

from benchmarks.grading import NEEDS_PUNKT, OFFICIAL, Released, copied, lengthened, num_equal, seconds_of, shipped
from llamarl.evals.verdicts import grade_replies, places_of

FAKE = """
def gen_acc_strict(row):
    return {"follow_instruction_list": [bool(row["response"])] * len(row["instruction_id_list"])}

gen_acc_loose = gen_acc_strict
"""


@pytest.fixture(scope="module")
def work():
    return shipped()


def test_every_shipped_reply_is_graded_without_what_needs_punkt(work):
    assert list(places_of(work.conversations)) == list(work.texts)
    assert len(work.texts) == 350  # lines of replies.jsonl
    assert not [row for row in work.rows() if set(row["instruction_id_list"]) & set(NEEDS_PUNKT)]
    assert seconds_of(work, 1) > 0.0


def test_long_replies_begin_with_the_short_ones_and_stay_in_their_language(work):
    long = lengthened(work, 600)
    for place, text in long.texts.items():
        assert text.startswith(work.texts[place])
        assert len(text) >= 600
    russian = [text for (key, _), text in long.texts.items() if key.startswith("ru-")]
    cyrillic = sum("а" <= letter <= "я" for text in russian for letter in text)
    assert cyrillic > 0.5 * sum(map(len, russian))


def test_copies_have_keys_of_their_own(work):
    twice = copied(work, 2)
    assert len({each.key for each in twice.conversations}) == 2 * len(work.conversations)
    assert list(places_of(twice.conversations)) == list(twice.texts)


def test_the_other_grader_takes_turns_and_a_difference_is_named(work, tmp_path):
    (tmp_path / "metrics.py").write_text(FAKE)
    with Released(sys.executable, tmp_path, work) as released:
        assert released.seconds() >= 0.0
        assert released.seconds() >= 0.0
        theirs = released.verdicts()
    assert theirs == [[[True] * len(row["instruction_id_list"])] * 2 for row in work.rows()]
    ours = grade_replies(work.conversations, work.texts, OFFICIAL)
    assert num_equal(ours, [[list(each.strict), list(each.loose)] for each in ours]) == sum(
        2 * len(each.strict) for each in ours
    )
    with pytest.raises(AssertionError, match=r"en-picnic fail, turn 1: ours .* released"):
        num_equal(ours, theirs)


def test_a_grader_that_cannot_start_is_an_error(work, tmp_path):
    with Released(sys.executable, tmp_path, work) as released, pytest.raises(RuntimeError, match="status 1"):
        released.seconds()
