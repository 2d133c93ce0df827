"""Every kind of bad row is named by file, line, field, problem and remedy; skipping counts and lists it."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamarl.core.errors import ConfigError, DataError
from llamarl.data import read_prompts

GOOD = b'{"id": "good", "prompt": "1 + 1 ="}'


def row(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def chat(*turns: Any) -> bytes:
    messages = [{"role": turn[0], "content": turn[1]} if isinstance(turn, tuple) else turn for turn in turns]
    return row(prompt=messages)


# name: (line of the file, reason, field, part of the problem, part of the remedy)
BAD = {
    "missing column": (row(answer="4"), "missing_prompt", "prompt", "columns: answer", "mapping="),
    "question unmapped": (row(question="2+2"), "missing_prompt", "prompt", "no column", "{'prompt': 'question'}"),
    "whole chat": (row(messages=[]), "whole_chat", "messages", "whole chat", "into 'prompt'"),
    "null": (row(prompt=None), "null_prompt", "prompt", "null", "drop the row"),
    "wrong type": (row(prompt=7), "wrong_type", "prompt", "a int: 7", "list of {role, content}"),
    "empty text": (row(prompt=""), "empty_prompt", "prompt", "empty: ''", "drop the row"),
    "white space": (row(prompt=" \n"), "empty_prompt", "prompt", "empty: ' \\n'", "drop the row"),
    "no messages": (row(prompt=[]), "empty_prompt", "prompt", "no messages", "at least one user"),
    "empty user turn": (chat(("user", "")), "empty_prompt", "prompt[0].content", "empty", "drop the row"),
    "message is text": (row(prompt=["hi"]), "bad_message", "prompt[0]", "a str: 'hi'", "role and content"),
    "bad role": (chat(("human", "hi")), "bad_role", "prompt[0].role", "'human' is no role", "user, assistant"),
    "no role": (chat({"content": "hi"}), "bad_role", "prompt[0].role", "None is no role", "use one of"),
    "role not text": (chat((["user"], "hi")), "bad_role", "prompt[0].role", "['user'] is no role", "use one of"),
    "assistant last": (
        chat(("user", "hi"), ("assistant", "ho")),
        "role_order",
        "prompt[1].role",
        "the last message is 'assistant'",
        "into 'answer'",
    ),
    "system only": (chat(("system", "be kind")), "role_order", "prompt[0].role", "'system'", "end with a user"),
    "system later": (
        chat(("user", "a"), ("system", "b"), ("user", "c")),
        "role_order",
        "prompt[1].role",
        "'system' after 'user'",
        "before the first user",
    ),
    "tool first": (chat(("tool", "5"), ("user", "a")), "role_order", "prompt[0].role", "comes first", "assistant"),
    "tool after user": (
        chat(("user", "a"), ("tool", "5")),
        "role_order",
        "prompt[1].role",
        "'tool' after 'user'",
        "assistant message",
    ),
    "no content": (chat({"role": "user"}), "missing_content", "prompt[0].content", "no content", "give the message"),
    "content parts": (
        chat(("user", [{"type": "text", "text": "hi"}])),
        "bad_content",
        "prompt[0].content",
        "a list",
        "join the parts",
    ),
    "invalid JSON": (b'{"prompt": "x"', "invalid_json", "", "column 15", "one complete JSON object"),
    "huge integer": (b'{"prompt": "x", "answer": ' + b"9" * 5000 + b"}", "invalid_json", "", "digits", "as text"),
    "array file": (b'[{"prompt": "x"},', "invalid_json", "", "column 18", "jq -c"),
    "not an object": (b"[1]", "not_an_object", "", "a list: [1]", "jq -c"),
    "a number": (b"3", "not_an_object", "", "a int: 3", "one complete JSON object"),
    "too deep": (b'{"prompt": ' + b"[" * 100_000, "nested_too_deep", "", "nested too deeply", "flatten"),
    "1 MB line": (row(prompt="x" * 1_000_001), "row_too_long", "", "1,000,016 bytes", "or write Parquet"),
    "invalid UTF-8": (b'{"prompt": "caf\xe9"}', "invalid_utf8", "", "byte 16", "save the file as UTF-8"),
    "BOM inside": (b"\xef\xbb\xbf" + row(prompt="x"), "byte_order_mark", "", "byte order mark", "remove it"),
    "NaN": (b'{"prompt": "x", "info": {"a": [1, NaN]}}', "not_finite", "info.a[1]", "nan", "write null"),
    "overflow": (b'{"prompt": "x", "answer": 1e999}', "not_finite", "answer", "inf", "write null"),
    "lone surrogate": (b'{"prompt": "a\\ud83d"}', "lone_surrogate", "prompt", "half a surrogate", "repair"),
    "surrogate key": (b'{"prompt": "a", "info": {"\\udc00": 1}}', "lone_surrogate", "info", "half a", "repair"),
    "duplicate id": (row(id="good", prompt="x"), "duplicate_id", "id", "'good' is also", "make ids unique"),
    "duplicate key": (b'{"prompt": "x", "prompt": "y"}', "duplicate_key", "prompt", "stands twice", "keep one"),
    "id not text": (row(id=[1], prompt="x"), "bad_id", "id", "[1] is no id", "text or an integer"),
    "id is boolean": (row(id=True, prompt="x"), "bad_id", "id", "True is no id", "text or an integer"),
    "empty id": (row(id="", prompt="x"), "bad_id", "id", "'' is no id", "leave it out"),
    "task not text": (row(prompt="x", task=3), "bad_task", "task", "3 is no name", "use text"),
    "tools not list": (row(prompt="x", tools={}), "bad_tools", "tools", "{} is no list", "JSON schemas"),
    "tool not object": (row(prompt="x", tools=["f"]), "bad_tools", "tools[0]", "'f' is no object", "JSON schema"),
    "info not object": (row(prompt="x", info=[1]), "bad_info", "info", "[1] is no object", "give an object"),
    "info broken text": (row(prompt="x", info="{"), "bad_info", "info", "'{' is no object", "JSON object as text"),
    "judges not names": (row(prompt="x", judges="f"), "bad_judges", "judges", "'f' is no list", "judge names"),
    "column and info": (row(prompt="x", info={"a": 1}, a=2), "column_clash", "a", "also a key of 'info'", "rename"),
    "verl answer": (
        row(prompt="x", reward_model={"style": "rule"}),
        "missing_answer",
        "reward_model.ground_truth",
        "no ground_truth",
        "add it",
    ),
    "verl reward_model": (row(prompt="x", reward_model=1), "bad_reward_model", "reward_model", "1 is no", "an object"),
    "verl extra_info": (
        row(prompt="x", reward_model={"ground_truth": 1}, extra_info=2),
        "bad_extra_info",
        "extra_info",
        "2 is no",
        "an object",
    ),
    "verl data_source": (
        row(prompt="x", reward_model={"ground_truth": 1}, data_source=2),
        "bad_task",
        "data_source",
        "2 is no name",
        "use text",
    ),
}


def bad_file(folder: Path, line: bytes) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + row(id="last", prompt="z") + b"\n")
    return path


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_file_line_field_problem_and_remedy(name: str, tmp_path: Path) -> None:
    line, _, field, problem, remedy = BAD[name]
    path = bad_file(tmp_path, line)
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    message = str(caught.value)
    place = f"{path}, line 3, field '{field}': " if field else f"{path}, line 3: "
    assert message.startswith(place)
    assert problem in message
    assert remedy in message
    assert len(message) < len(str(path)) + 320
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize("name", BAD)
def test_skipping_lists_the_row_and_keeps_the_others(name: str, tmp_path: Path) -> None:
    line, reason, field, *_ = BAD[name]
    data = read_prompts(bad_file(tmp_path, line), on_bad_row="skip")
    assert [prompt.id for prompt in data] == ["good", "last"]
    assert [(bad.line, bad.reason, bad.field) for bad in data.skipped] == [(3, reason, field)]


def test_all_kinds_in_one_file_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_bytes(b"\n".join([GOOD, *(bad[0] for bad in BAD.values())]))
    data = read_prompts(path, on_bad_row="skip")
    assert len(data) == 1
    assert sum(data.skip_counts.values()) == len(data.skipped) == len(BAD) >= 20
    assert data.skip_counts["role_order"] == sum(bad[1] == "role_order" for bad in BAD.values())
    assert list(data.skip_counts.values()) == sorted(data.skip_counts.values(), reverse=True)


def test_the_same_row_twice_without_id_is_a_duplicate(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_bytes(b'{"prompt": "x"}\n{"prompt": "x"}\n')
    with pytest.raises(DataError, match=r"line 2: the same row as .*line 1; remove it, or give both an id"):
        read_prompts(path)


def test_unknown_column_is_refused_with_a_suggestion_in_our_own_format() -> None:
    with pytest.raises(DataError, match=r"unknown column 'anwser'; Did you mean 'answer'\?"):
        read_prompts([{"prompt": "x", "anwser": "4"}], format="llamarl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows; the source is empty"),
        (b"\n \n", "no rows; the source is empty"),
        ('{"prompt": "x"}'.encode("utf-16"), "UTF-16 or UTF-32"),
    ],
)
def test_a_file_without_rows_is_an_error_even_when_skipping(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(path, on_bad_row="skip")


def test_a_file_of_bad_rows_only_is_an_error_that_quotes_the_first(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"{}\n{}\n")
    with pytest.raises(DataError, match=r"none of 2 rows is usable; the first: .*line 1, field 'prompt'"):
        read_prompts(path, on_bad_row="skip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "verll"}, "Did you mean 'verl'"),
        ({"on_bad_row": "ignore"}, "use 'error' or 'skip'"),
        ({"mapping": {"promt": "x"}}, "Did you mean 'prompt'"),
        ({"limit": 0}, "positive"),
    ],
)
def test_wrong_arguments_are_refused_before_reading(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_prompts("nowhere.jsonl", **arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.jsonl", "no such file"),
        ("notes.txt", "unknown kind of file '.txt'"),
        (".", "a folder; name its files by a glob"),
    ],
)
def test_a_source_that_is_no_data_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)
