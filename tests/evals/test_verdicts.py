import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_rows import LOWER, NO_COMMA, TITLE, keyword, released_row, small_set

from llamarl.core.errors import ConfigError, DataError
from llamarl.evals.conversations import Conversation, Turn, read_conversations
from llamarl.evals.verdicts import (
    GraderSettings,
    TurnVerdict,
    failures_of,
    grade_replies,
    places_of,
    read_verdicts,
    released_reply,
    write_verdicts,
)

RULES = GraderSettings(sentence_splitter="rules")


def one_turn(*instructions, key="a"):
    return [Conversation(key, "en", (Turn("p", instructions),))]


def graded(reply, *instructions, modes=("official", "fixed")):
    return grade_replies(one_turn(*instructions), {("a", 1): reply}, GraderSettings(modes, "rules"))


# what is graded


def test_order_is_conversation_turn_mode():
    data = small_set()
    texts = dict.fromkeys(places_of(data), "The river, the sun")
    verdicts = grade_replies(data, texts, RULES)
    assert [(v.key, v.turn, v.mode) for v in verdicts] == [(*p, m) for p in places_of(data) for m in RULES.modes]
    assert verdicts[4].strict == (False, True, False)  # 1:0:en, turn 3: no comma, river, no comma


def test_turns_without_a_reply_get_no_verdict_and_are_named():
    data = small_set()
    texts = {("1:0:en", 1): "x"}
    assert [(v.key, v.turn) for v in grade_replies(data, texts, GraderSettings(("fixed",)))] == [("1:0:en", 1)]
    assert failures_of(data, texts) == list(places_of(data))[1:]


def test_an_empty_reply_follows_nothing():
    for verdict in graded("", NO_COMMA, LOWER):
        assert verdict.strict == verdict.loose == (False, False)


def test_an_ungradable_instruction_is_false_in_official_mode_and_left_out_in_fixed_mode():
    broken = {"id": "keywords:letter_frequency", "kwargs": {"letter": "#", "let_frequency": -1, "let_relation": "?"}}
    official, fixed = graded("words", NO_COMMA, broken)
    assert official.strict == (True, False)
    assert fixed.strict == (True, None)
    assert list(official.ungradable) == list(fixed.ungradable) == [1]


def test_ids_that_occur_twice_are_told_apart_by_position():
    assert graded("the sun", keyword("moon"), keyword("sun"), modes=("fixed",))[0].strict == (False, True)


# the released grader's look inside JSON


@pytest.mark.parametrize(
    ("reply", "seen"),
    [
        ('[{"response": "inside"}]', "inside"),
        ('[{"response": null}]', "None"),
        ('[{"response": ["a", 1]}]', "['a', 1]"),
        ('[{"response": ""}, 5]', ""),
        ('{"response": "outside"}', '{"response": "outside"}'),
        ('[{"answer": "x"}]', '[{"answer": "x"}]'),
        ("[]", "[]"),
        ("[7]", "[7]"),
        ('"response"', '"response"'),
        ("[" * 100_000, "[" * 100_000),
        ("[" + "1" * 5000 + "]", "[" + "1" * 5000 + "]"),
        ("plain", "plain"),
    ],
)
def test_a_reply_inside_json_is_graded_instead(reply, seen):
    assert released_reply(reply) == seen


def test_only_official_mode_looks_inside_json():
    official, fixed = graded('[{"response": "no comma"}, 1]', NO_COMMA)
    assert (official.strict, fixed.strict) == ((True,), (False,))


# one process or many


def test_multi_if_p6_workers_and_order_change_nothing():
    rows = [
        released_row(f"{n}", "English", random.Random(n).sample([NO_COMMA, LOWER, TITLE, keyword("a")], 3))
        for n in range(40)
    ]
    data = list(read_conversations(rows))
    texts = {place: f"OK done {place[0]}, <<{place[1]}>> a" for place in places_of(data)}
    alone = grade_replies(data, texts, RULES)
    counts = []
    assert grade_replies(data, texts, RULES, workers=2, on_graded=counts.append) == alone
    assert sum(counts) == 40
    shuffled = random.Random(0).sample(data, 40)
    by_place = {(v.key, v.turn, v.mode): v for v in alone}
    assert all(by_place[v.key, v.turn, v.mode] == v for v in grade_replies(shuffled, texts, RULES))


@given(reply=st.text())
@settings(max_examples=40, deadline=None)
def test_multi_if_p1_loose_is_never_harder_than_strict(reply):
    if not reply.strip():  # a reply of blanks is graded strictly, but has no loose version
        return
    instructions = (NO_COMMA, LOWER, TITLE, keyword("a"), {"id": "startend:quotation"})
    for verdict in graded(reply, *instructions):
        assert all(loose or not strict for strict, loose in zip(verdict.strict, verdict.loose, strict=True))
        if "\n" not in reply and "*" not in reply:
            assert verdict.strict == verdict.loose


HOSTILE = {
    "a megabyte": "word, " * 170_000,
    "a megabyte without blanks": "a" * 1_000_000,
    "lone surrogates": "\ud800 \udfff " * 100,
    "right to left": "\u202eשלום, עולם\u202c",
    "brackets": "[" * 200_000,
    "zeros": "\x00" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_reply_crashes_or_hangs(name, tmp_path):
    nested = {"id": "keywords:existence", "kwargs": {"keywords": ["(a+)+$"]}}
    verdicts = graded(HOSTILE[name], NO_COMMA, LOWER, TITLE, nested, {"id": "detectable_format:json_format"})
    assert [len(v.strict) for v in verdicts] == [5, 5]
    write_verdicts(tmp_path / "v.jsonl", verdicts)


def test_a_keyword_that_could_take_years_is_ungradable_and_named():
    nested = {"id": "keywords:existence", "kwargs": {"keywords": ["(a+)+$"]}}
    official, fixed = graded("a" * 5000 + "!", nested)
    assert official.strict == (False,)
    assert "could take" in official.ungradable[0]
    assert fixed.strict == (False,)  # taken literally
    assert not fixed.ungradable


# files


def test_a_line_holds_exactly_these_fields(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    write_verdicts(path, [TurnVerdict("k\ud800", 2, "fixed", (True, None), (True, None), {1: "why"})])
    line = json.loads(path.read_text())
    assert line == {"key": "k\ud800", "turn": 2, "mode": "fixed", "strict": [True, None], "loose": [True, None]}
    assert list(line) == ["key", "turn", "mode", "strict", "loose"]


def test_written_verdicts_are_read_back(tmp_path):
    verdicts = graded("a, b", NO_COMMA, LOWER)
    write_verdicts(tmp_path / "v.jsonl", verdicts)
    assert read_verdicts(tmp_path / "v.jsonl") == verdicts


@pytest.mark.parametrize(
    "change", [{"mode": "mine"}, {"strict": [1]}, {"loose": [True, True]}, {"turn": "1"}, {"strict": "T"}]
)
def test_lines_that_are_no_verdicts(tmp_path, change):
    row = {"key": "k", "turn": 1, "mode": "fixed", "strict": [True], "loose": [True]} | change
    (tmp_path / "v.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=re.escape("v.jsonl, line 1")):
        read_verdicts(tmp_path / "v.jsonl")


def test_at_least_one_worker():
    with pytest.raises(ConfigError, match="workers=0"):
        grade_replies(small_set(), {}, RULES, workers=0)
