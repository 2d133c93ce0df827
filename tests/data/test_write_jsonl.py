import os
from pathlib import Path

import pytest

from llamarl.core.errors import DataError
from llamarl.data import write_jsonl


def test_rows_are_written_one_a_line_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    assert write_jsonl(path, [{"a": "é"}, {"b": [1, None]}]) == 2
    assert path.read_bytes() == '{"a": "é"}\n{"b": [1, null]}\n'.encode()
    assert path.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o022))


@pytest.mark.parametrize("bad", [float("nan"), object(), "\ud800"])
def test_a_row_that_is_no_json_leaves_the_old_file_and_nothing_else(bad: object, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(DataError, match=r"out\.jsonl: row 2 cannot be written as JSON"):
        write_jsonl(path, [{"a": 1}, {"a": bad}])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_source_that_breaks_halfway_leaves_nothing(tmp_path: Path) -> None:
    def rows():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(tmp_path / "out.jsonl", rows())
    assert os.listdir(tmp_path) == []
