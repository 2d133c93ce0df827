import json
from base64 import b64encode
from hashlib import sha256

import pytest
from feedback_logs import (
    NOW,
    SECRET,
    dropped,
    ingest_files,
    ingest_rows,
    message,
    query,
    stored,
    write_lines,
)

from llamarl.core.errors import ConfigError, DataError
from llamarl.feedback import Ingest, Store, hash_user, ingest
from llamarl.feedback.queries import quote

# golden


def test_a_flat_row_becomes_one_message(tmp_path):
    row = message(reaction="❤️", reaction_ts="2025-03-01T10:00:09+00:00", surface="web", language="EN", outcome=1)
    store = ingest_rows(tmp_path, [row])
    context, response, reaction, loved, language, outcome, ts = stored(
        store, "context, response, reaction, loved, language, outcome, ts::VARCHAR"
    )[0]
    assert json.loads(context) == [{"role": "user", "content": "question 0?"}]
    assert (response, reaction, loved, language, outcome) == ("answer number 0", "love", True, "en", 1.0)
    assert ts == "2025-03-01 10:00:00"
    assert (store.record["rows"], store.record["kept"], store.record["dropped"], store.record["users"]) == (1, 1, {}, 1)


def test_a_users_name_is_a_keyed_hash_that_can_be_made_again(tmp_path):
    store = ingest_rows(tmp_path, [message()])
    digest = sha256(sha256(SECRET.encode()).digest() + b"user:somebody-0").digest()
    assert stored(store, "user_hash") == [(b64encode(digest[:9]).decode(),)]
    assert hash_user("somebody-0", SECRET.encode()) == b64encode(digest[:9]).decode()


def test_a_conversation_becomes_a_row_for_each_reply_with_what_was_said_before(tmp_path):
    talk = {
        "user": "somebody",
        "conversation_id": "c1",
        "ts": "2025-03-01T10:00:00Z",
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi", "ts": "2025-03-01T10:00:01Z", "reaction": "👍🏽"},
            {"role": "user", "content": "a joke"},
            {"role": "assistant", "content": "no", "ts": "2025-03-01T10:01:01Z", "reaction": True},
        ],
    }
    store = ingest_rows(tmp_path, [talk])
    rows = stored(store, "response, reaction, loved, context")
    assert [row[:3] for row in rows] == [("hi", "like", False), ("no", "love", True)]
    assert [entry["content"] for entry in json.loads(rows[1][3])] == ["hello", "hi", "a joke"]
    assert "reaction" not in rows[1][3]


def test_what_stands_beside_a_conversation_is_no_reaction_to_its_messages(tmp_path):
    talk = [{"role": role, "content": f"{role} {turn}"} for turn in range(3) for role in ("user", "assistant")]
    row = {"user": "u", "ts": 1740823200, "messages": talk, "reaction": "❤️", "message_id": "all", "outcome": 2}
    store = ingest_rows(tmp_path, [row, message(1)])
    assert stored(store, "loved, outcome")[:3] == [(False, 2.0)] * 3


def test_the_context_is_the_last_messages(tmp_path):
    talk = [{"role": role, "content": f"{role} {turn}"} for turn in range(9) for role in ("user", "assistant")]
    store = ingest_rows(tmp_path, [{"user": "u", "ts": 1740823200, "messages": talk}], context_messages=3)
    assert [len(json.loads(context)) for (context,) in stored(store, "context")][:3] != [3, 3, 3]
    assert max(len(json.loads(context)) for (context,) in stored(store, "context")) == 3


@pytest.mark.parametrize(
    "text", ["❤️", "❤", "♥️", "💖", "❤️‍🔥", ":heart:", "LOVE", "true", '["👍", "❤️"]'], ids=lambda text: ascii(text)
)
def test_spellings_of_love(tmp_path, text):
    assert stored(ingest_rows(tmp_path, [message(reaction=text)]), "loved") == [(True,)]


def test_own_spellings_and_columns(tmp_path):
    row = {"who": "someone", "at": 1740823200000, "q": "why?", "a": {"text": "because"}, "r": "sparkles", "stars": 4}
    columns = {"user": "who", "ts": "at", "prompt": "q", "response": "a.text", "reaction": "r"}
    store = ingest_rows(tmp_path, [row], columns=columns, reactions={"sparkles": "love"}, keep=["stars"])
    assert stored(store, "response, loved, stars, ts::VARCHAR") == [("because", True, 4.0, "2025-03-01 10:00:00")]


@pytest.mark.parametrize(
    ("time", "zone", "stored_time"),
    [
        ("2025-03-01T10:00:00+05:30", "UTC", "2025-03-01 04:30:00"),
        ("2025-03-01 10:00:00", "Europe/Paris", "2025-03-01 09:00:00"),
        (1740823200, "Europe/Paris", "2025-03-01 10:00:00"),
        (1740823200.5, "UTC", "2025-03-01 10:00:00.5"),
        ("1740823200000000", "UTC", "2025-03-01 10:00:00"),
        ("2025-03-01 10:00:00 America/New_York", "UTC", "2025-03-01 15:00:00"),
    ],
)
def test_times_in_all_their_forms(tmp_path, time, zone, stored_time):
    store = ingest_rows(tmp_path, [message(ts=time)], time_zone=zone)
    assert stored(store, "ts::VARCHAR") == [(stored_time,)]


# what is not kept


BAD_ROWS = {
    "invalid_json": ("", '{"user": "broken'),
    "not_an_object": ("", "[1, 2]"),
    "invalid_utf8": ("", b'{"user": "\xff\xfe"}'),
    "missing_user": ("user", message(user=None)),
    "wrong_type user": ("user", message(user={"id": 3})),
    "missing_time": ("ts", message(ts=None)),
    "bad_time": ("ts", message(ts="2025-02-30T00:00:00Z")),
    "bad_time zone": ("ts", message(ts="2025-02-03T00:00:00 Mars/Phobos")),
    "bad_time offset": ("ts", message(ts="2025-02-03T00:00:00+25:00")),
    "impossible_time past": ("ts", message(ts=0)),
    "impossible_time future": ("ts", message(ts="2031-01-01T00:00:00Z")),
    "missing_response": ("response", message(response=None)),
    "empty_response": ("response", message(response="  ")),
    "wrong_type number": ("response", message(response=5)),
    "wrong_type list": ("response", message(response=["a"])),
    "missing_prompt": ("prompt", message(prompt=None)),
    "bad_messages prompt": ("prompt", message(prompt=[{"role": "cat", "content": "miaow"}])),
    "unknown_reaction": ("reaction", message(reaction="🦄")),
    "bad_time reaction": ("reaction_ts", message(reaction="❤️", reaction_ts="soon")),
    "reaction_before_message": ("reaction_ts", message(reaction="❤️", reaction_ts="2025-02-28T10:00:00Z")),
    "edited_after_reaction": (
        "edited_ts",
        message(reaction="❤️", reaction_ts="2025-03-01T10:00:09Z", edited_ts="2025-03-01T11:00:00Z"),
    ),
    "not_a_number": ("next_sentiment", message(next_sentiment="good")),
    "not_finite": ("outcome", message(outcome=float("nan"))),
    "wrong_type sentiment": ("next_sentiment", message(next_sentiment={})),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_and_counted(tmp_path, name):
    field, row = BAD_ROWS[name]
    reason = name.split()[0]
    store = ingest_rows(tmp_path, [message(1), "", row, message(2)])
    assert dropped(store) == [(3, field, reason)]
    assert store.record["dropped"] == {reason: 1}
    assert (store.record["rows"], store.record["kept"]) == (3, 2)
    assert store.record["bad_rows"] == [
        {"file": str(tmp_path / "logs.jsonl"), "line": 3, "field": field, "reason": reason}
    ]


@pytest.mark.parametrize(
    "messages",
    [
        "no list",
        [],
        [{"role": "assistant"}],
        [{"role": "assistant", "content": ["part"]}],
        [{"content": "who says so?"}],
        ["hello"],
    ],
    ids=str,
)
def test_a_conversation_that_cannot_be_read_is_one_bad_row(tmp_path, messages):
    store = ingest_rows(tmp_path, [message(1), {"user": "u", "ts": 1740823200, "messages": messages}])
    assert dropped(store) == [(2, "messages", "bad_messages")]


def test_a_reaction_to_the_user_is_counted(tmp_path):
    talk = [{"role": "user", "content": "hello", "reaction": "❤️"}, {"role": "assistant", "content": "hi"}]
    store = ingest_rows(tmp_path, [{"user": "u", "ts": 1740823200, "messages": talk}])
    assert dropped(store) == [(1, "messages.reaction", "reaction_to_other_role")]
    assert stored(store, "response, loved") == [("hi", False)]


def test_a_message_logged_twice_is_kept_with_its_reaction(tmp_path):
    store = ingest_rows(tmp_path, [message(), message(reaction="❤️"), message(1)])
    assert dropped(store) == [(1, "message_id", "duplicate_message")]
    assert stored(store, "loved") == [(True,), (False,)]


def test_the_same_exchange_of_a_user_counts_once(tmp_path):
    same = {"prompt": "again?", "response": "again.", "user": "a parrot"}
    store = ingest_rows(tmp_path, [message(0, **same), message(1, **same), message(2, **{**same, "user": "another"})])
    assert dropped(store) == [(2, "response", "duplicate_text")]


def test_reactions_in_rows_of_their_own_join_their_messages(tmp_path):
    events = [
        {"message_id": "m1", "reaction": "❤️", "ts": "2025-03-01T11:00:00Z"},
        {"message_id": "lost", "reaction": "❤️", "ts": "2025-03-01T11:00:00Z"},
        {"message_id": "m2", "reaction": "❤️", "ts": "2025-02-01T11:00:00Z"},
        {"message_id": "m2", "reaction": "🦄", "ts": "2025-03-01T11:00:00Z"},
    ]
    store = ingest_rows(tmp_path, [message(1), message(2), *events])
    assert stored(store, "loved, reaction_ts::VARCHAR") == [(True, "2025-03-01 11:00:00"), (False, None)]
    assert dropped(store) == [
        (4, "message_id", "reaction_without_message"),
        (5, "reaction_ts", "reaction_before_message"),
        (6, "reaction", "unknown_reaction"),
    ]
    assert store.record["reactions_from_other_rows"] == 1
    assert store.record["rows"] == store.record["kept"] + 3


def test_messages_above_the_cap_are_drawn_from_all_times(tmp_path):
    rows = [message(index, user="a machine", ts=1740823200 + 600 * index) for index in range(400)]
    store = ingest_rows(tmp_path, rows, max_messages_per_user=100)
    assert store.record["dropped"] == {"user_cap": 300}
    assert query(f"SELECT count(*) FROM '{store.messages}' WHERE ts < '2025-03-02 19:20:00'")[0][0] in range(35, 66)


def test_a_log_of_only_negatives_is_kept_and_says_so(tmp_path):
    store = ingest_rows(tmp_path, [message(0), message(1, reaction="👎")])
    assert (store.record["kept"], store.record["loves"]) == (2, 0)
    assert "no message has a love reaction" in store.record["notes"][0]


# privacy


def test_neither_ids_nor_secrets_are_anywhere_in_the_store(tmp_path):
    secrets = [
        "jane.doe@example.com",
        "sk-abcdefghijklmnopqrstuvwx",
        "AKIAABCDEFGHIJKLMNOP",
        "4111 1111 1111 1111",
        "password: hunter22",
        "+44 20 7946 0958",
    ]
    rows = [
        message(index, prompt=f"my password is hunter22, see {text}", response=f"I, somebody-{index}, saw {text}")
        for index, text in enumerate(secrets)
    ]
    rows.append({"user": "somebody-9", "ts": "never", "prompt": "jane.doe@example.com", "response": "x"})
    store = ingest_rows(tmp_path, [*rows, message(7)])
    assert store.record["redacted"] == 6
    texts = str(stored(store)) + str(query(f"SELECT * FROM '{store.dropped}'"))
    for path in (tmp_path / "store").rglob("*"):
        texts += path.read_bytes().decode("latin-1") if path.is_file() else ""
    for text in [*secrets, "hunter22", "somebody-", SECRET, *(f"'m{index}'" for index in range(8))]:
        assert text not in texts, text


def test_without_a_key_nobody_can_name_the_users(tmp_path):
    log = write_lines(tmp_path / "logs.jsonl", [message()])
    first, second = (ingest_files(tmp_path / name, [log], key_env=None) for name in "ab")
    assert stored(first, "user_hash") != stored(second, "user_hash")


@pytest.mark.parametrize("environment", [{}, {"FEEDBACK_KEY": "short"}], ids=["unset", "short"])
def test_a_key_that_is_none_is_refused(tmp_path, environment):
    settings = Ingest(logs=(str(write_lines(tmp_path / "a.jsonl", [message()])),), out=tmp_path, key_env="FEEDBACK_KEY")
    with pytest.raises(ConfigError, match=r"key_env: \$FEEDBACK_KEY is"):
        ingest(settings, environment=environment, now=NOW)


def test_a_column_to_keep_that_no_row_has_is_told(tmp_path):
    notes = ingest_rows(tmp_path, [message(1, stars=1)], keep=["stars", "starz"]).record["notes"]
    assert notes[0] == "no row has 'starz', which --keep names"


def test_a_user_of_many_messages_is_cut_and_harms_nobody(tmp_path):
    many = [message(index, user="a machine", ts=1740823200 + 60 * index) for index in range(30_000)]
    others = [message(40_000 + index, reaction="❤️" if index % 9 == 0 else None) for index in range(50)]
    store = ingest_rows(tmp_path, many + others)
    assert store.record["dropped"] == {"user_cap": 29_000}
    assert store.record["kept"] == 1050


STRANGE_TIMES = {
    "NaN": "bad_time",
    "infinity": "bad_time",
    "epoch": "bad_time",
    "now": "bad_time",
    "10:00": "bad_time",
    "1e5000": "bad_time",
    "20250301": "impossible_time",
    "-5": "impossible_time",
    "2025-03-01T25:00:00Z": "bad_time",
    "2025-06-30T23:59:60Z": "bad_time",
    "2025-03-01T10:00:00+99:00": "bad_time",
}


@pytest.mark.parametrize("time", STRANGE_TIMES)
def test_what_is_no_time(tmp_path, time):
    assert dropped(ingest_rows(tmp_path, [message(1), message(2, ts=time)])) == [(2, "ts", STRANGE_TIMES[time])]


def test_texts_that_break_readers_are_rows_like_others(tmp_path):
    deep = b'{"user":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    lone = b'{"user":"u","ts":1740823200,"prompt":"p","response":"\\ud800"}'
    store = ingest_rows(tmp_path, [message(1, response="a\u0000b"), deep, lone, message(2, prompt="a: {b}, [c]: true")])
    assert dropped(store) == [(2, "user", "wrong_type"), (3, "", "invalid_json")]
    assert stored(store, "response") == [("a\0b",), ("answer number 2",)]


def test_a_log_without_a_good_row_leaves_the_store_as_it_was(tmp_path):
    before = ingest_rows(tmp_path, [message()])
    with pytest.raises(DataError, match=r"no row of the logs is good: bad_time 1\n .*line 1, ts: bad_time"):
        ingest_rows(tmp_path, [message(ts="never")])
    assert stored(Store.open(tmp_path / "store")) == stored(before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"columns": {"usr": "x"}}, "'usr' is no field. Did you mean 'user'"),
        ({"reactions": {"x": "lovely"}}, "'lovely' is no reaction. Did you mean 'love'"),
        ({"time_zone": "Mars/Phobos"}, "time_zone: 'Mars/Phobos' is unknown"),
        ({"keep": ["outcome"]}, "outcome is the name of a column"),
        ({"logs": ["nowhere-*.jsonl"]}, "nowhere-.*: no such file"),
        ({"memory": "much"}, "memory"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        ingest_rows(tmp_path, [message()], **settings)


@pytest.mark.parametrize("name", ['a"b', "a'b", "a:b", "a b", "line", "name", "time", "row", "n_outcome", "❤️", "chunk"])
def test_a_kept_column_may_be_called_like_anything(tmp_path, name):
    store = ingest_rows(tmp_path, [message(0, **{name: 3}), message(1, **{name: "x"})], keep=[name])
    assert stored(store, quote(name)) == [(3.0,)]
    assert dropped(store) == [(2, name, "not_a_number")]


@pytest.mark.parametrize("name", ["user", "User", "loved", "USER_HASH", "is_suspicious"])
def test_a_kept_column_that_a_store_has_anyway_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=f"keep: {name}"):
        ingest_rows(tmp_path, [message()], keep=[name])


def test_a_column_is_kept_once(tmp_path):
    with pytest.raises(ConfigError, match="keep: stars, Stars"):
        ingest_rows(tmp_path, [message()], keep=["stars", "Stars"])
