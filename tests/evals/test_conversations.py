import json
import os
from itertools import pairwise

import duckdb
import pytest
from released_rows import LOWER, NO_COMMA, keyword, released_row, write_csv

from llamarl.core.errors import ConfigError, DataError
from llamarl.evals.conversations import Conversation, Turn, language_code, read_conversations

ROW = released_row("1:0:en", "English", [NO_COMMA, keyword("river"), NO_COMMA])
OURS = {
    "key": "k",
    "language": "zh",
    "turns": [
        {"prompt": "one", "instructions": [NO_COMMA]},
        {"prompt": "two", "instructions": [NO_COMMA, keyword("sun")]},
    ],
}
IFEVAL = {
    "key": 1000,
    "prompt": "Write.",
    "instruction_id_list": ["keywords:existence", "punctuation:no_comma"],
    "kwargs": [{"keywords": ["sun"], "num_words": None}, {"keywords": None}],
}


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# the three forms


def test_a_released_row_is_decoded_twice():
    (conversation,) = read_conversations([ROW])
    assert conversation == Conversation(
        "1:0:en",
        "en",
        (
            Turn("1:0:en, turn 1", (NO_COMMA,)),
            Turn("1:0:en, turn 2", (NO_COMMA, keyword("river"))),
            Turn("1:0:en, turn 3", (NO_COMMA, keyword("river"), NO_COMMA)),
        ),
    )


@pytest.mark.parametrize("missing", ["", "None"])
def test_csv_with_a_missing_third_turn(tmp_path, missing):
    two = released_row("2:0:hi", "Hindi", [NO_COMMA, LOWER], num_turns=2, missing=missing)
    data = read_conversations(write_csv(tmp_path / "data.csv", [ROW, two]))
    assert [(each.language, len(each.turns)) for each in data] == [("en", 3), ("hi", 2)]
    assert data.revision.startswith("sha256:")


def test_parquet_gives_what_csv_gives(tmp_path):
    source = write_csv(tmp_path / "data.csv", [ROW, released_row("2:0:fr", "French", [NO_COMMA, LOWER], num_turns=2)])
    target = tmp_path / "data.parquet"
    duckdb.sql(f"COPY (SELECT * FROM read_csv('{source}', all_varchar=true)) TO '{target}' (FORMAT parquet)")
    assert list(read_conversations(target)) == list(read_conversations(source))


def test_our_rows(tmp_path):
    (conversation,) = read_conversations(jsonl(tmp_path / "data.jsonl", OURS))
    assert conversation.turns == (Turn("one", (NO_COMMA,)), Turn("two", (NO_COMMA, keyword("sun"))))


def test_ifeval_rows_have_one_english_turn_and_drop_null_arguments(tmp_path):
    (conversation,) = read_conversations(jsonl(tmp_path / "data.jsonl", IFEVAL))
    assert conversation == Conversation("1000", "en", (Turn("Write.", (keyword("sun"), NO_COMMA)),))


def test_multi_if_p3_the_same_id_may_stand_twice():
    instructions = [keyword("sun"), keyword("moon"), keyword("sun")]
    (conversation,) = read_conversations([released_row("a", "Russian", instructions)])
    assert conversation.turns[2].instructions == tuple(instructions)


def test_the_shipped_set_can_be_read():
    data = read_conversations("builtin", languages=["en"])
    assert {each.language for each in data} == {"en"}
    assert data.source == "builtin"


def test_the_real_sample():
    path = os.environ.get("LLAMARL_MULTI_IF_CSV")
    if not path:
        pytest.skip("LLAMARL_MULTI_IF_CSV names no file of Multi-IF")
    data = read_conversations(path)
    assert all(each.language == "en" for each in data if each.key.endswith(":en"))
    assert {len(each.turns) for each in data} == {2, 3}
    sizes = [[len(turn.instructions) for turn in each.turns] for each in data]
    assert all(later == earlier + 1 for row in sizes for earlier, later in pairwise(row))


# selecting


def test_languages_turns_and_limit():
    rows = [released_row(f"{n}", name, [NO_COMMA, LOWER]) for n, name in enumerate(["English", "French", "English"])]
    data = read_conversations(rows, languages=["en"], turns=1, limit=1)
    assert [(each.key, len(each.turns)) for each in data] == [("0", 1)]
    assert [each.key for each in read_conversations(rows, languages=["French", "en"])] == ["0", "1", "2"]


def test_bad_rows_can_be_listed_instead():
    data = read_conversations([ROW, {**ROW, "key": "b", "language": "Klingon"}], on_bad_row="skip")
    assert len(data) == 1
    assert "Klingon" in str(data.skipped[0])


@pytest.mark.parametrize(
    "arguments", [{"turns": 0}, {"turns": 4}, {"limit": 0}, {"on_bad_row": "guess"}, {"languages": ["xx"]}]
)
def test_wrong_arguments(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments)).rstrip("s")):
        read_conversations([ROW], **arguments)


def test_nothing_that_was_asked_for():
    with pytest.raises(DataError, match="no conversation in zh among 1 good rows"):
        read_conversations([ROW], languages=["zh"])


def test_an_unknown_language_gets_a_suggestion():
    with pytest.raises(ConfigError, match="French"):
        language_code("Frnch")


# bad rows

BAD_ROWS = {
    "unknown id": ({"turn_1_instruction_id_list": '["keywords:existance"]'}, r"turn_1_instruction_id_list\[0\].*exist"),
    "broken list": ({"turn_2_instruction_id_list": '["keywords:existence'}, r"turn_2_instruction_id_list.*JSON"),
    "broken arguments": ({"turn_1_kwargs": '["{"]'}, r"turn_1_kwargs\[0\].*JSON"),
    "arguments that are no mapping": ({"turn_1_kwargs": '["[]"]'}, r"turn_1_kwargs\[0\].*mapping"),
    "too few arguments": ({"turn_2_kwargs": '["{}"]'}, "turn_2_kwargs.*1 entries for 2 ids"),
    "nested too deep": ({"turn_1_kwargs": "[" * 100_000}, "turn_1_kwargs.*JSON"),
    "no instruction": ({"turn_1_kwargs": "[]", "turn_1_instruction_id_list": "[]"}, "empty list"),
    "message that is no JSON": ({"turn_1_prompt": "hello"}, "turn_1_prompt.*JSON"),
    "message without text": ({"turn_1_prompt": '{"role": "user"}'}, "turn_1_prompt.content"),
    "gap": ({"turn_2_prompt": "None"}, "turn_2_prompt.*empty, but turn_3_prompt is not"),
    "no turn": ({"turn_1_prompt": "", "turn_2_prompt": "", "turn_3_prompt": ""}, "turn_1_prompt.*at least one"),
    "not cumulative": ({"turn_1_kwargs": '["{\\"relation\\": \\"x\\"}"]'}, "turn 2.*do not begin with those of turn 1"),
    "no key": ({"key": ""}, "key.*no usable key"),
    "unknown language": ({"language": "Klingon"}, "language.*'Klingon' is unknown"),
    "no language": ({"language": None}, "language.*is unknown"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_with_line_field_and_remedy(name):
    change, message = BAD_ROWS[name]
    with pytest.raises(DataError, match=f"rows, line 2.*{message}"):
        read_conversations([{**ROW, "key": "good"}, {**ROW, **change}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": []}, "0 turns"),
        ({"turns": "x"}, "turns.*not a list"),
        ({"turns": [7]}, r"turns\[0\]"),
        ({"turns": [{"prompt": "p", "instructions": [7]}]}, r"turns\[0\].instructions\[0\]"),
        ({"turns": [{"prompt": " ", "instructions": [NO_COMMA]}]}, r"turns\[0\].prompt"),
        ({"turns": [{"prompt": "p", "instructions": []}]}, r"turns\[0\].instructions.*empty"),
    ],
)
def test_a_bad_row_of_ours(change, message):
    with pytest.raises(DataError, match=message):
        read_conversations([OURS | change])


def test_a_bad_csv_names_its_file_and_line(tmp_path):
    path = write_csv(tmp_path / "data.csv", [ROW, {**ROW, "key": "b", "turn_1_kwargs": "["}])
    with pytest.raises(DataError, match=r"data.csv, line 3, field 'turn_1_kwargs'"):
        read_conversations(path)


def test_keys_are_unique():
    with pytest.raises(DataError, match="is also the key of line 1"):
        read_conversations([ROW, ROW])


def test_a_file_that_is_not_there():
    with pytest.raises(DataError, match="no such file"):
        read_conversations("nowhere.csv")
