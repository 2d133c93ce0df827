import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError, DataError
from llamarl.evals.replies import Reply, ReplyStore, read_responses

SETTINGS = {"chat": {"model": "m", "sampling": {"temperature": 0.6}}, "seed": 0}


def write(tmp_path, *lines, end="\n"):
    path = tmp_path / "responses.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)
    return path


def line(key="a", turn=1, response="yes", **more):
    return {"key": key, "turn": turn, "response": response, **more}


# reading


def test_the_bare_form_is_enough(tmp_path):
    path = write(tmp_path, line(), line(turn=2, response=""), line(7, 1, None))
    assert read_responses(path) == {
        ("a", 1): Reply("a", 1, "yes"),
        ("a", 2): Reply("a", 2, ""),
        ("7", 1): Reply("7", 1, None),
    }


def test_a_torn_last_line_is_left_out(tmp_path):
    path = write(tmp_path, line(), '{"key": "a", "turn": 2, "respon', end="")
    assert list(read_responses(path)) == [("a", 1)]


def test_a_failure_gives_way_to_a_later_answer(tmp_path):
    path = write(tmp_path, line(response=None, error="status 500"), line(response="at last"))
    assert read_responses(path)[("a", 1)].response == "at last"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"key": "a", "turn": 2, "respon', "line 2: no JSON"),
        ("[1]", "line 2: a list"),
        (line(turn=0), "line 2, field 'turn': no usable turn: 0"),
        (line(turn="1"), "line 2, field 'turn'"),
        (line(key=None), "line 2, field 'key'"),
        (line(response=5), "line 2, field 'response'"),
        ({"key": "a", "turn": 1}, "line 2, field 'response'"),
        (line(), "key 'a', turn 1 already has a response in line 1"),
    ],
)
def test_rejects_with_file_line_and_field(tmp_path, bad, message):
    path = write(tmp_path, line(), bad, line(turn=3))
    with pytest.raises(DataError, match=r"responses\.jsonl") as caught:
        read_responses(path)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_responses(tmp_path / "none.jsonl")


# the store


@given(
    response=st.text() | st.just("x" * 1_000_001),
    thinking=st.none() | st.text(),
    tokens=st.none() | st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_what_is_appended_reads_back_equal(tmp_path_factory, response, thinking, tokens):
    out = tmp_path_factory.mktemp("store")
    reply = Reply("a", 1, response, "length", thinking=thinking, prompt_tokens=tokens, seconds=0.5, asked="d")
    with ReplyStore(out, SETTINGS) as store:
        store.append(reply)
    assert read_responses(out / "responses.jsonl") == {("a", 1): reply}


def test_a_lone_surrogate_survives(tmp_path):
    with ReplyStore(tmp_path, SETTINGS) as store:
        store.append(Reply("a", 1, "half \ud83d"))
    assert read_responses(tmp_path / "responses.jsonl")[("a", 1)].response == "half \ud83d"


def test_opening_again_drops_torn_lines_and_failures(tmp_path):
    with ReplyStore(tmp_path, SETTINGS) as store:
        store.append(Reply("a", 1, "yes"))
        store.append(Reply("a", 2, None, "error", "status 500"))
    with (tmp_path / "responses.jsonl").open("a") as file:
        file.write('{"key": "b", "tu')
    with ReplyStore(tmp_path, SETTINGS) as store:
        assert list(store.finished) == [("a", 1)]
        store.append(Reply("b", 1, "no"))
    assert [json.loads(text)["key"] for text in (tmp_path / "responses.jsonl").read_text().splitlines()] == ["a", "b"]


def test_other_settings_are_refused_with_each_difference(tmp_path):
    ReplyStore(tmp_path, SETTINGS).close()
    other = {"chat": {"model": "m", "sampling": {"temperature": 0.0}}, "seed": 1}
    with pytest.raises(ConfigError) as caught:
        ReplyStore(tmp_path, other)
    assert "chat.sampling.temperature was 0.6, now 0.0; seed was 0, now 1;" in str(caught.value)
    ReplyStore(tmp_path, SETTINGS).close()


def test_a_server_may_move(tmp_path):
    ReplyStore(tmp_path, {"chat": {"base_url": "http://a/v1"}}).close()
    ReplyStore(tmp_path, {"chat": {"base_url": "http://b/v1"}}).close()


def test_replies_of_unknown_settings_are_refused(tmp_path):
    write(tmp_path, line())
    with pytest.raises(ConfigError, match=r"no settings\.json"):
        ReplyStore(tmp_path, SETTINGS)


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another directory"):
        ReplyStore(tmp_path / "file", SETTINGS)


def test_a_file_that_vanishes_is_named(tmp_path):
    store = ReplyStore(tmp_path, SETTINGS)
    store.append(Reply("a", 1, "yes"))
    (tmp_path / "responses.jsonl").unlink()
    with pytest.raises(DataError, match=r"responses\.jsonl: cannot be written \(No such file"):
        store.close()
    ReplyStore(tmp_path, SETTINGS).close()


HOLD = """
import sys
from pathlib import Path
from llamarl.evals.replies import ReplyStore
store = ReplyStore(Path(sys.argv[1]), {})
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time_and_a_killed_one_holds_nothing(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {child.pid} is evaluating into this directory"):
            ReplyStore(tmp_path, {})
    finally:
        child.kill()
        child.communicate()
    ReplyStore(tmp_path, {}).close()
