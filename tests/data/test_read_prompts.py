import datetime
import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import duckdb
import pytest

from llamarl.core.errors import DataError, MissingDependencyError
from llamarl.core.records import Prompt
from llamarl.data import TEXT_PROMPT, prompt_to_row, read_prompts, write_jsonl

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2 ="}]


def only(row: dict[str, Any], **options: Any) -> Prompt:
    (prompt,) = read_prompts([row], **options)
    return prompt


def test_our_own_row_fills_every_field() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    row = {"id": 7, "prompt": CHAT, "answer": "4", "task": "sums", "judges": ["exact"], "info": {"level": 1}}
    prompt = only({**row, "tools": [tool]}, format="llamarl")
    assert prompt == Prompt("7", tuple(CHAT), "4", "sums", {"level": 1, "judges": ["exact"]}, (tool,))


def test_text_becomes_one_user_message_and_is_remembered_as_text() -> None:
    prompt = only({"prompt": "2 + 2 ="})
    assert prompt.messages == ({"role": "user", "content": "2 + 2 ="},)
    assert prompt.info == {TEXT_PROMPT: True}
    assert (prompt.answer, prompt.task, prompt.tools) == (None, "default", None)


def test_trl_row_keeps_its_other_columns_in_info() -> None:
    prompt = only({"prompt": CHAT, "solution": "4", "difficulty": 2})
    assert prompt.info == {"solution": "4", "difficulty": 2}


def test_verl_row_takes_answer_and_task_and_keeps_its_columns() -> None:
    row = {
        "data_source": "sums",
        "prompt": CHAT,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 3},
    }
    prompt = only(row)
    assert (prompt.answer, prompt.task) == ("4", "sums")
    assert prompt.info == {name: value for name, value in row.items() if name != "prompt"}


def test_verifiers_row_with_info_as_json_text() -> None:
    prompt = only({"prompt": CHAT, "answer": "4", "info": '{"level": 1}'}, format="verifiers")
    assert (prompt.answer, prompt.info) == ("4", {"level": 1})


def test_mapping_reads_other_columns_and_drops_the_one_it_replaces() -> None:
    row = {"question": "2 + 2 =", "answer": "long", "short": "4"}
    prompt = only(row, mapping={"prompt": "question", "answer": "short"})
    assert (prompt.messages[0]["content"], prompt.answer) == ("2 + 2 =", "4")
    assert prompt.info == {TEXT_PROMPT: True}


def test_a_mapped_column_that_is_missing_is_named() -> None:
    with pytest.raises(DataError, match=r"field 'question': no column 'question'; .*Did you mean 'questions'"):
        only({"questions": "x"}, mapping={"prompt": "question"})


def test_ids_are_hashes_of_the_content_not_of_its_layout() -> None:
    one = only({"prompt": "x", "answer": "4"})
    assert one.id == only({"answer": "4", "extra": None, "prompt": "x"}).id
    assert one.id != only({"prompt": "x", "answer": "5"}).id
    assert one.id == hashlib.blake2b(b'{"answer": "4", "prompt": "x"}', digest_size=8).hexdigest()


def test_null_optional_columns_count_as_absent() -> None:
    row = {"id": None, "prompt": CHAT, "answer": None, "task": None, "info": None, "tools": None, "x": None}
    prompt = only(row)
    assert (prompt.task, prompt.info, prompt.tools, prompt.answer) == ("default", {}, None, None)


def test_chat_with_tool_calls_is_a_prompt() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    prompt = only({"prompt": [CHAT[1], call, {"role": "tool", "content": "4", "name": None}]})
    assert prompt.messages[1:] == (
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "4"},
    )


def test_rows_survive_export_and_reading(tmp_path: Path) -> None:
    rows = [{"prompt": "text", "answer": 4, "x": [1]}, {"id": "b", "prompt": CHAT, "task": "t", "tools": [{"a": 1}]}]
    data = read_prompts(rows)
    assert write_jsonl(tmp_path / "out.jsonl", data) == 2
    assert list(read_prompts(tmp_path / "out.jsonl", format="llamarl")) == list(data)
    assert prompt_to_row(data[0])["prompt"] == "text"


def test_a_system_message_added_to_a_text_prompt_is_exported() -> None:
    prompt = Prompt("a", tuple(CHAT), info={TEXT_PROMPT: True})
    assert prompt_to_row(prompt) == {"id": "a", "prompt": CHAT}


def test_lines_limit_blank_lines_and_a_leading_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "a"}\r\n\r\n{"prompt": "b"}\n   \n{"prompt": "c"}')
    assert [p.messages[0]["content"] for p in read_prompts(path)] == ["a", "b", "c"]
    limited = read_prompts(str(path), limit=2)
    assert len(limited) == 2 and limited[-1] == limited[0:2][1]
    assert repr(limited) == "PromptData(2 prompts, 0 rows skipped)"
    assert limited.places == ((str(path), 1), (str(path), 3))


def test_the_limit_ends_reading_before_a_later_bad_row() -> None:
    def rows() -> Any:
        yield {"prompt": "a"}
        raise AssertionError("read too far")

    assert len(read_prompts(rows(), limit=1)) == 1


def test_a_long_line_is_allowed_on_request_and_never_read_whole_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    write_jsonl(path, [{"prompt": "x" * 3_000_000}, {"prompt": "y"}])
    assert len(read_prompts(path, max_row_bytes=4_000_000)) == 2
    data = read_prompts(path, on_bad_row="skip")
    assert [p.messages[0]["content"] for p in data] == ["y"]
    assert (data.skipped[0].line, data.skip_counts) == (1, {"row_too_long": 1})


def test_a_glob_joins_files_in_name_order_and_names_each(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"id": "2", "prompt": "x"}, {"id": "1", "prompt": "y"}])
    write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "prompt": "x"}])
    with pytest.raises(DataError, match=r"b\.jsonl, line 2, field 'id': '1' is also the id of .*a\.jsonl, line 1"):
        read_prompts(str(tmp_path / "*.jsonl"))
    assert [p.id for p in read_prompts(str(tmp_path / "*.jsonl"), on_bad_row="skip")] == ["1", "2"]


def test_rows_of_a_program_may_hold_dates_but_not_objects() -> None:
    row = {"prompt": "x", "day": datetime.date(2026, 1, 2)}
    assert only(row).info["day"] == "2026-01-02"
    with pytest.raises(DataError, match=r"rows, line 1, field 'image': a value of type bytes: b'abc'; rows hold text"):
        only({"prompt": "x", "image": b"abc"})
    with pytest.raises(DataError, match=r"rows, line 1: a str: 'x'; each row is one mapping"):
        read_prompts(["x"])  # type: ignore[list-item]


# ---- tables


def test_parquet_rows_read_like_json_lines(tmp_path: Path) -> None:
    rows = [{"prompt": CHAT, "answer": "4", "info": {"level": i}} for i in range(3000)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    path = tmp_path / "rows.parquet"
    duckdb.execute(f"COPY (SELECT * FROM '{tmp_path}/rows.jsonl') TO '{path}'")
    assert list(read_prompts(path)) == list(read_prompts(tmp_path / "rows.jsonl"))


def test_parquet_names_row_and_nested_field_of_a_bad_value(tmp_path: Path) -> None:
    path = tmp_path / "nan.parquet"
    duckdb.execute(f"COPY (SELECT 'a' AS prompt, 1.5::DOUBLE AS score UNION ALL SELECT 'b', 'nan'::DOUBLE) TO '{path}'")
    with pytest.raises(DataError, match=r"nan\.parquet, line 2, field 'score': nan is not a finite number"):
        read_prompts(path)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"rows\.parquet: no readable Parquet file"):
        read_prompts(path)


def test_csv_values_are_text_and_empty_ones_absent(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffid,prompt,answer,info\n007,"2 + 2,\nplease",4,"{""a"": 1}"\n008,x,,\n')
    first, second = read_prompts(path)
    assert (first.id, first.messages[0]["content"], first.answer) == ("007", "2 + 2,\nplease", "4")
    assert first.info == {"a": 1, TEXT_PROMPT: True}
    assert second.answer is None


def test_csv_defects_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,answer\na,1\nb,1,2\nc\xe9,1\nd,"1"x\ne,1\n')
    data = read_prompts(path, on_bad_row="skip")
    assert [p.messages[0]["content"] for p in data] == ["a", "e"]
    assert [(bad.line, bad.reason) for bad in data.skipped] == [
        (3, "column_count"),
        (4, "invalid_utf8"),
        (5, "invalid_csv"),
    ]
    path.write_text("prompt,prompt\na,b\n")
    with pytest.raises(DataError, match="line 1: the header names a column twice"):
        read_prompts(path)


# ---- Hub


class FakeDatasets(types.ModuleType):
    """`datasets` with one data set."""

    def __init__(self) -> None:
        super().__init__("datasets")
        self.exceptions = types.SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
        self.asked: list[Any] = []

    def load_dataset(self, name: str, configuration: str | None, split: str) -> list[dict[str, Any]]:
        self.asked.append((name, configuration, split))
        if split == "nosuch":
            raise ValueError('Unknown split "nosuch"')
        return [{"question": "2 + 2 =", "answer": "4"}]

    def load_from_disk(self, folder: str) -> dict[str, list[dict[str, Any]]]:
        return {"train": [{"prompt": "a"}, {"prompt": None}], "test": [{"prompt": "b"}]}


def test_hub_data_sets_are_read_by_id_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    mapping = {"prompt": "question"}
    assert read_prompts("owner/sums", mapping=mapping)[0].answer == "4"
    read_prompts("owner/sums:main", mapping=mapping, split="test")
    assert fake.asked == [("owner/sums", None, "train"), ("owner/sums", "main", "test")]
    with pytest.raises(DataError, match=r"owner/sums: cannot load the data set: ValueError: Unknown split"):
        read_prompts("owner/sums", split="nosuch")


def test_a_saved_data_set_folder_is_read_by_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets())
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    data = read_prompts(tmp_path, on_bad_row="skip")
    assert (len(data), data.skipped[0].line, data.skipped[0].reason) == (1, 2, "null_prompt")
    assert read_prompts(tmp_path, split="test")[0].messages[0]["content"] == "b"
    with pytest.raises(DataError, match=f"^{tmp_path}: no split 'dev'; choose one of: train, test$"):
        read_prompts(tmp_path, split="dev")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llamarl\[hub\]'"):
        read_prompts("owner/sums")
