import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.errors import DataError
from llamarl.report.files import JsonlFile, encode, has_torn_tail, read_json, read_jsonl, write_json

records_strategy = st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=8) | st.integers()), max_size=5)


@given(records=records_strategy, cut=st.integers(0, 400))
def test_a_file_cut_at_any_byte_keeps_every_whole_line_and_goes_on(
    records: list[dict[str, object]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    lines = [encode(record) for record in records]
    content = b"".join(line + b"\n" for line in lines)
    cut = min(cut, len(content))
    path.write_bytes(content[:cut])
    # A line survives when all its bytes are there, with or without its newline.
    ends = [sum(len(line) + 1 for line in lines[: index + 1]) - 1 for index in range(len(lines))]
    whole = [record for record, end in zip(records, ends, strict=True) if end <= cut]
    assert read_jsonl(path) == whole

    file = JsonlFile(path)
    file.append({"after": 1})
    file.close()
    assert read_jsonl(path) == [*whole, {"after": 1}]
    assert path.read_bytes().count(b"\n") == len(whole) + 1


def test_torn_tail_is_reported_only_where_a_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content, is_torn in ((b"", False), (b'{"a":1}\n', False), (b'{"a":1}', False), (b'{"a":1}\n{"b"', True)):
        path.write_bytes(content)
        assert has_torn_tail(path) is is_torn


def test_a_broken_line_before_the_last_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n{"b":\n{"c":3}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not a JSON object"):
        read_jsonl(path)


@pytest.mark.parametrize("line", [b"[1]\n", b"3\n", b"\xff\n", b"null\n"])
def test_lines_that_are_no_objects_are_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line)
    with pytest.raises(DataError, match="line 1"):
        read_jsonl(path)


def test_required_keys_are_checked_with_their_type(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": "two"}\n')
    with pytest.raises(DataError, match=r"line 2: 'step' must be of type int, got 'two'"):
        read_jsonl(path, required={"step": int})
    path.write_bytes(b'{"step": 1}\n{"step": true}\n')
    with pytest.raises(DataError, match="got True"):
        read_jsonl(path, required={"step": int})
    assert len(read_jsonl(path)) == 2


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: no such file"):
        read_jsonl(tmp_path / "a.jsonl")


def test_non_finite_floats_become_null_and_half_characters_survive() -> None:
    line = encode({"x": [float("nan"), {"y": float("inf")}], "text": "a\ud83d", "other": Path("p")})
    assert json.loads(line) == {"x": [None, {"y": None}], "text": "a\ud83d", "other": "p"}


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "a.jsonl"
    pid = os.fork()
    if pid == 0:  # the limit of a file's size stands in for a full disk; it binds this child only
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        file = JsonlFile(path)
        file.append({"a": "x" * 50})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            file.append({"b": "y" * 200})
        except OSError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert path.read_bytes() == encode({"a": "x" * 50}) + b"\n"


def test_keep_only_rewrites_and_goes_on_appending(tmp_path: Path) -> None:
    file = JsonlFile(tmp_path / "a.jsonl")
    for step in range(5):
        file.append({"step": step})
    assert file.keep_only(lambda record: record["step"] < 2) == 3
    assert file.keep_only(lambda record: True) == 0
    file.append({"step": 9})
    file.close()
    file.close()
    assert [record["step"] for record in read_jsonl(file.path)] == [0, 1, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    for use in (lambda: file.append({}), lambda: file.keep_only(lambda record: True)):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_write_json_replaces_whole_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "s.json"
    write_json(path, {"a": 1, "b": float("nan")})
    write_json(path, {"a": "ü"})
    assert read_json(path) == {"a": "ü"}
    assert [entry.name for entry in path.parent.iterdir()] == ["s.json"]


@pytest.mark.parametrize(("content", "said"), [(b'{"a":\n', "line 2"), (b"[]", "got list"), (b'{"a":"\xff"}', "UTF-8")])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"s\.json.*{said}"):
        read_json(path)
