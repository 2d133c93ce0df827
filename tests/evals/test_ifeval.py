import json

import pytest

from llamarl.core.errors import DataError
from llamarl.evals.conversations import read_conversations
from llamarl.evals.ifeval import read_ifeval_responses
from llamarl.evals.replies import Reply

DATA = read_conversations(
    [
        {"key": key, "prompt": prompt, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for key, prompt in ((1, "Write."), (2, "Sing."), (3, "Write."))
    ]
)


def responses(tmp_path, *rows):
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_ifeval_responses(path, DATA)


def test_replies_are_known_by_prompt(tmp_path):
    rows = [{"prompt": "Write.", "response": "w"}, {"prompt": "Nobody asked.", "response": "x"}]
    assert responses(tmp_path, *rows) == {("1", 1): Reply("1", 1, "w"), ("3", 1): Reply("3", 1, "w")}


def test_or_by_key(tmp_path):
    rows = [{"key": 2, "turn": 1, "response": None}, {"key": "1", "response": ""}]
    assert responses(tmp_path, *rows) == {("2", 1): Reply("2", 1, None), ("1", 1): Reply("1", 1, "")}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "Write."}], "line 1, field 'response'"),
        ([{"prompt": "Write.", "response": 7}], "line 1, field 'response'"),
        ([{"response": "x"}], "line 1, field 'prompt'"),
        ([{"prompt": "Sing.", "response": "x"}] * 2, "line 2.*'2' has a response already"),
    ],
)
def test_lines_that_are_no_replies(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        responses(tmp_path, *rows)
