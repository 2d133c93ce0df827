import pytest

from llamarl.core.errors import DataError
from llamarl.jobs import Journal
from llamarl.report.files import read_jsonl


def test_lines_outlive_the_writer_and_a_torn_one_is_cut_off(tmp_path) -> None:
    journal = Journal(tmp_path / "new" / "rows.jsonl")
    journal.append({"row": 1})
    journal.append({"row": 2})
    assert read_jsonl(journal.path) == [{"row": 1}, {"row": 2}]  # before it is closed
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"row": 3')
    again = Journal(journal.path)
    again.append({"row": 4})
    assert again.keep_only(lambda record: record["row"] != 1) == 1
    again.close()
    again.close()
    assert read_jsonl(journal.path) == [{"row": 2}, {"row": 4}]


def test_a_disk_that_refuses_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"rows\.jsonl: cannot be written .*; mend that and run the same again"):
        Journal(tmp_path / "file" / "rows.jsonl")
