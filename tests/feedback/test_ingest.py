import gzip
import json
import os
import subprocess
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pyarrow
import pyarrow.parquet
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
from llamarl.feedback.ingestion import STAGING
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


# files


def test_formats_hold_the_same_rows(tmp_path):
    rows = [message(index, outcome=index, reaction="❤️" if index % 2 else None) for index in range(3)]
    names = ["user", "ts", "message_id", "conversation_id", "prompt", "response", "outcome", "reaction"]
    lines = write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.csv").write_text(
        "\n".join([",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)])
    )
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    columns = {name: [row.get(name) for row in rows] for name in names}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    files = [lines, tmp_path / "b.csv", tmp_path / "c.jsonl.gz", tmp_path / "d.parquet"]
    stores = [ingest_files(tmp_path / path.stem[0], [path]) for path in files]
    assert len({str(stored(store)) for store in stores}) == 1


def test_parquet_with_times_numbers_and_nested_conversations(tmp_path):
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    table = pyarrow.table(
        {
            "user": [17, 18],
            "ts": pyarrow.array([1740823200000, None], pyarrow.timestamp("ms", "UTC")),
            "messages": [talk, talk],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    store = ingest_files(tmp_path, [tmp_path / "a.parquet"])
    assert stored(store, "response, ts::VARCHAR") == [("hi", "2025-03-01 10:00:00")]
    assert dropped(store) == [(2, "ts", "missing_time")]


def test_a_dot_goes_into_an_object_of_parquet(tmp_path):
    table = pyarrow.table({"user": ["a"], "ts": [1740823200], "q": [{"text": "why?"}], "a": [{"b": {"text": "so."}}]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    store = ingest_files(tmp_path, [tmp_path / "a.parquet"], columns={"prompt": "q.text", "response": "a.b.text"})
    assert stored(store, "response") == [("so.",)]


def write_empty(folder, name):
    path = folder / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"user": pyarrow.array([], pyarrow.string())}), path)
    else:
        path.write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    return path


@pytest.mark.parametrize("name", ["b.jsonl", "b.csv", "b.jsonl.gz", "b.parquet"])
def test_an_empty_file_is_no_error_beside_others_and_no_log_alone(tmp_path, name):
    empty = write_empty(tmp_path, name)
    assert ingest_files(tmp_path, [write_lines(tmp_path / "a.jsonl", [message()]), empty]).record["dropped"] == {}
    with pytest.raises(DataError, match="the logs are empty"):
        ingest_files(tmp_path / "alone", [empty])


def test_a_directory_of_logs_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"a directory; give its files, for instance '.*/\*\.jsonl'"):
        ingest_files(tmp_path, [tmp_path])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(b"{}"), "its first bytes are those of gzip"),
        (b"PAR1....", "its first bytes are those of Parquet"),
        (json.dumps([message(1), message(2)], indent=1).encode(), "JSON lines have one object a line"),
    ],
    ids=["gzip", "parquet", "a list"],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path, data, words):
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=words):
        ingest_files(tmp_path, [tmp_path / "a.jsonl"])


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


PROGRAM = """
import resource, sys
from llamarl.cli.program import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
run()
"""


@pytest.mark.parametrize("limit", [4096, 40_000])
def test_a_disk_that_is_full_is_told_in_one_line_and_the_store_stays(tmp_path, limit):
    """A limit of the size of files stands for the disk: the system refuses to write on."""
    before = ingest_rows(tmp_path, [message(0)])
    lines = [message(index, response=sha256(b"%d" % index).hexdigest() * 4) for index in range(2000)]
    log = write_lines(tmp_path / "big.jsonl", lines)
    arguments = ["feedback", "ingest", str(log), "--out", str(tmp_path / "store"), "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(limit), *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert stored(Store.open(tmp_path / "store")) == stored(before)


def test_csv_rows_have_the_line_on_which_they_end(tmp_path):
    lines = ["user,ts,prompt,response", '"a",1740823200,"two', 'lines",x', "b,1740823200,y", "c,never,p,r", "d,1,2,3,4"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    store = ingest_files(tmp_path, [tmp_path / "a.csv"])
    assert dropped(store) == [(4, "", "column_count"), (5, "ts", "bad_time"), (6, "", "column_count")]


def test_a_truncated_parquet_file_is_named_and_nothing_of_it_is_kept(tmp_path):
    good = write_lines(tmp_path / "a.jsonl", [message()])
    pyarrow.parquet.write_table(pyarrow.table({"user": ["x"] * 1000}), tmp_path / "whole.parquet")
    broken = tmp_path / "b.parquet"
    broken.write_bytes((tmp_path / "whole.parquet").read_bytes()[:-20])
    store = ingest_files(tmp_path, [good, broken])
    assert store.record["dropped"] == {"unreadable_file": 1}
    assert "b.parquet" in store.record["notes"][0]
    with pytest.raises(DataError, match=r"b\.parquet"):
        ingest_files(tmp_path, [broken])
    assert Store.open(tmp_path / "store").record == store.record


def test_rows_before_the_damage_of_a_file_are_dropped_with_it(tmp_path):
    whole = gzip.compress(write_lines(tmp_path / "x.jsonl", [message(i) for i in range(5000)]).read_bytes())
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    good = write_lines(tmp_path / "good.jsonl", [message(9000)])
    store = ingest_files(tmp_path, [tmp_path / "torn.jsonl.gz", good])
    assert (store.record["kept"], store.record["dropped"]) == (1, {"unreadable_file": 1})


def test_a_log_without_a_column_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"no column for user among .*uid.*--columns user=COLUMN"):
        ingest_rows(tmp_path, [{**message(user=None), "uid": "x"}])
    with pytest.raises(DataError, match=r"no column 'uuid' for user; Did you mean 'uid'"):
        ingest_rows(tmp_path, [{**message(user=None), "uid": "x"}], columns={"user": "uuid"})
    assert not (tmp_path / "store" / "store.json").exists()


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


def test_a_name_that_says_no_format_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"logs end in \.jsonl"):
        ingest_files(tmp_path, [write_lines(tmp_path / "log.txt", [message()])])


# interruptions


def test_an_interrupted_ingest_leaves_the_store_and_goes_on_with_what_is_missing(tmp_path):
    before = ingest_rows(tmp_path, [message(77)])
    first = write_lines(tmp_path / "a.jsonl", [message(1)])
    second = write_lines(tmp_path / "b.jsonl", [{"no": "log"}])
    with pytest.raises(DataError, match="no column"):
        ingest_files(tmp_path, [first, second])
    assert stored(Store.open(tmp_path / "store")) == stored(before)

    # the first log changes behind the back of the second run, which shows whose rows it takes: the staged ones
    state = first.stat()
    first.write_text(first.read_text().replace("number 1", "number X"))
    os.utime(first, ns=(state.st_atime_ns, state.st_mtime_ns))
    write_lines(second, [message(2)])
    assert stored(ingest_files(tmp_path, [first, second]), "response") == [("answer number 1",), ("answer number 2",)]
    assert not (tmp_path / "store" / STAGING).exists()
    assert len(list((tmp_path / "store").glob("data-*"))) == 1


def test_a_log_that_changed_is_read_again(tmp_path):
    first = write_lines(tmp_path / "a.jsonl", [message(1)])
    with pytest.raises(DataError, match="no column"):
        ingest_files(tmp_path, [first, write_lines(tmp_path / "b.jsonl", [{"no": "log"}])])
    write_lines(first, [message(1), message(3)])
    assert stored(ingest_files(tmp_path, [first]), "response") == [("answer number 1",), ("answer number 3",)]


def test_two_ingests_into_one_store_are_refused(tmp_path):
    from llamarl.feedback.ingestion import _hold

    with _hold(tmp_path / "store"), pytest.raises(ConfigError, match="another ingest writes this store"):
        ingest_rows(tmp_path, [message()])


def test_the_path_of_a_missing_store_is_named(tmp_path):
    with pytest.raises(DataError, match="no store of messages"):
        Store.open(tmp_path)


def test_a_store_without_its_data_is_told(tmp_path):
    store = ingest_rows(tmp_path, [message()])
    store.data.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is gone; ingest the logs again"):
        Store.open(store.path)


def test_suspicious_paths_are_no_sql(tmp_path):
    folder = tmp_path / "it's; a 'folder'"
    folder.mkdir()
    assert isinstance(ingest_rows(folder, [message()]).path, Path)


# progress


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_progress_ends_at_all_of_the_files(tmp_path, suffix):
    columns = {name: [message(index)[name] for index in range(9)] for name in message()}
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"log.{suffix}")
    else:
        lines = [json.dumps(message(index)) for index in range(9)]
        if suffix == "csv":
            lines = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
        data = "\n".join(lines).encode()
        (tmp_path / f"log.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    told: list[tuple[int, int, str]] = []
    ingest(
        Ingest.parse({"logs": [str(tmp_path / f"log.{suffix}")], "out": tmp_path / "store", "threads": 1}),
        now=NOW,
        on_progress=lambda done, total, note="": told.append((done, total, note)),
    )
    notes = "looking for duplicates and suspicious users", "writing the store"
    assert (told[0], {*told[1:-2]}, told[-2:]) == ((0, 1, ""), {(1, 1, "")}, [(1, 1, note) for note in notes])


def test_conversations_inside_an_object_of_parquet_are_read(tmp_path):
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    table = pyarrow.table({"user": ["a"], "ts": [1740823200], "log": [{"turns": talk}]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    store = ingest_files(tmp_path, [tmp_path / "a.parquet"], columns={"messages": "log.turns"})
    assert (store.record["rows"], stored(store, "response")) == (1, [("hi",)])


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


# what breaks readers


def test_columns_that_are_not_read_harm_nobody(tmp_path):
    """Types that DuckDB lacks, names that differ by capitals, and the reader's own names."""
    table = pyarrow.table(
        {
            "User": ["other"],
            **{name: [value] for name, value in message().items()},
            "outcome": pyarrow.array([1.5]).cast(pyarrow.float16()),
            "weight": pyarrow.array([2.5]).cast(pyarrow.float16()),
            "__line": ["x"],
            "__broken": ["y"],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    row = {**message(), "__line": "x", "__broken": "y", "User": "other", "outcome": 1.5}
    (tmp_path / "b.csv").write_text("\n".join([",".join(row), ",".join(map(str, row.values()))]))
    stores = [ingest_files(tmp_path / path[0], [tmp_path / path]) for path in ("a.parquet", "b.csv")]
    assert stored(stores[0]) == stored(stores[1]) and stored(stores[0], "outcome") == [(1.5,)]
    assert stored(stores[0], "user_hash") == stored(ingest_rows(tmp_path, [message()]), "user_hash")


def test_two_columns_of_one_name_are_refused(tmp_path):
    values = [pyarrow.array(["x"])] * 2
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(values, names=["user", "user"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns are named 'user'"):
        ingest_files(tmp_path, [tmp_path / "a.parquet"])


def test_a_header_that_is_not_utf_8_is_told(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"us\xe9r,ts,prompt,response\nx,1740823200,p,r\n")
    with pytest.raises(DataError, match="line 1: the header is not UTF-8"):
        ingest_files(tmp_path, [tmp_path / "a.csv"])


def test_nested_names_and_control_characters_are_rows_like_others(tmp_path):
    deep = "[" * 5000 + "]" * 5000
    rows = [
        message(0, prompt="x\0y", response="r\0s", surface="s\0"),
        "[" * 100_000,
        f'{{"user": "u", "ts": 1740823200, "messages": {deep}}}',
        message(3, ts=-1e30),
        message(4, ts="1e999"),
        message(5, reaction="[" * 10_000),
        message(6, response="\N{GRINNING FACE}" * 200_000),
        message(7, response="\N{GRINNING FACE}" * 2_600_000),
    ]
    store = ingest_rows(tmp_path, rows)
    assert len(stored(store)) == 2
    assert [(line, reason) for line, _, reason in dropped(store)] == [
        (2, "invalid_json"),
        (3, "bad_messages"),
        (4, "bad_time"),
        (5, "bad_time"),
        (6, "unknown_reaction"),
        (8, "row_too_long"),
    ]
