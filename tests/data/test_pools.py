import json

import pytest

from llamarl.core.errors import DataError
from llamarl.data.pools import read_pool

GROUPS = ("short", "long")
GOOD = {"prompt": "p", "group": "short", "correct": True, "tokens": 12}


def test_rows_become_a_pool_in_order(tmp_path):
    rows = [GOOD, {**GOOD, "prompt": 7, "group": "long", "correct": 0}, {**GOOD, "group": None, "note": "kept"}]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_pool(path, GROUPS, "tokens")
    assert list(found.rows) == rows
    assert found.pool.prompts == ["p", 7, "p"]
    assert found.pool.groups == ["short", "long", None]
    assert found.pool.correct == [True, False, True]
    assert found.pool.costs == [12.0, 12.0, 12.0]
    assert read_pool(path, GROUPS).pool.costs is None


def test_equal_messages_are_one_prompt():
    chats = [[{"role": "user", "content": "a"}], [{"content": "a", "role": "user"}], [{"role": "user", "content": "b"}]]
    pool = read_pool([{**GOOD, "prompt": chat} for chat in chats], GROUPS).pool
    assert pool.prompts[0] == pool.prompts[1] != pool.prompts[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, r"line 2, field 'prompt': None names no prompt; give its text or id"),
        ({"prompt": ""}, r"field 'prompt': '' names no prompt"),
        ({"group": "Long"}, r"field 'group': 'Long' is no group. Did you mean 'long'"),
        ({"group": 3}, r"field 'group': 3 is no group"),
        ({"correct": 0.5}, r"field 'correct': 0.5 is neither true nor false"),
        ({"correct": None}, r"field 'correct': None is neither"),
        ({"tokens": -1}, r"field 'tokens': -1 is no cost"),
        ({"tokens": True}, r"field 'tokens': True is no cost"),
        ({"tokens": "12"}, r"field 'tokens': '12' is no cost"),
    ],
)
def test_bad_rows_are_named_with_line_and_field(change, message):
    with pytest.raises(DataError, match=message):
        read_pool([GOOD, {**GOOD, **change}], GROUPS, "tokens")


@pytest.mark.parametrize("field", ["prompt", "group", "correct", "tokens"])
def test_a_missing_field_is_named(field):
    row = {name: value for name, value in GOOD.items() if name != field}
    with pytest.raises(DataError, match=f"line 1, field '{field}': not in the row"):
        read_pool([row], GROUPS, "tokens")


def test_unreadable_and_empty_sources(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text('{"prompt": "p"\n')
    with pytest.raises(DataError, match=r"pool.jsonl, line 1: no JSON"):
        read_pool(path, GROUPS)
    path.write_text("")
    with pytest.raises(DataError, match="no rows"):
        read_pool(path, GROUPS)
    with pytest.raises(DataError, match="no such file"):
        read_pool(tmp_path / "other.jsonl", GROUPS)


def test_csv_is_read_from_its_texts(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_text("prompt,group,correct,tokens,note\np,short,true,12,1\np,long,0,3.5,\n7,,False,1,x\np,long,1,9,\n")
    found = read_pool(path, GROUPS, "tokens")
    assert found.pool.groups == ["short", "long", None, "long"]
    assert found.pool.correct == [True, False, False, True]
    assert found.pool.costs == [12.0, 3.5, 1.0, 9.0]
    assert found.rows[2] == {"prompt": "7", "group": None, "correct": False, "tokens": 1.0, "note": "x"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p,short,yes,12", r"pool.csv, line 2, field 'correct': 'yes' is neither true nor false"),
        ("p,short,,12", r"field 'correct': not in the row"),
        ("p,short,1,few", r"field 'tokens': 'few' is no cost"),
        ("p,short,1,nan", r"field 'tokens': nan is no cost"),
        ("p,Short,1,3", r"'Short' is no group. Did you mean 'short'"),
    ],
)
def test_bad_texts_of_csv_are_named(row, message, tmp_path):
    path = tmp_path / "pool.csv"
    path.write_text(f"prompt,group,correct,tokens\n{row}\n")
    with pytest.raises(DataError, match=message):
        read_pool(path, GROUPS, "tokens")


def test_csv_without_a_column_of_groups_is_refused(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_text("prompt,correct\np,1\n")
    with pytest.raises(DataError, match=r"pool.csv: the column 'group' is missing or empty"):
        read_pool(path, GROUPS)
