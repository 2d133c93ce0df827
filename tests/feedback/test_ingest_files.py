"""Logs as files: their formats and their damage, ingests that are interrupted, and what is told meanwhile."""

import gzip
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from feedback_logs import NOW, dropped, ingest_files, ingest_rows, message, stored, write_lines

from llamarl.core.errors import ConfigError, DataError
from llamarl.feedback import Ingest, Store, ingest
from llamarl.feedback.ingestion import STAGING

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


# conversations


def test_a_conversation_whose_key_is_spelled_with_an_escape_is_read(tmp_path):
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    line = json.dumps({"user": "u", "ts": 1740823200, "messages": talk}).replace("messages", "mess\\u0061ges")
    assert stored(ingest_rows(tmp_path, [line, message(1)]), "response") == [("hi",), ("answer number 1",)]


def test_conversations_behind_other_rows_and_in_further_chunks_are_read(tmp_path):
    long, rows = "x" * 1_000_000, []
    for first in (0, 40):
        rows += [message(index, response=f"{index} {long}") for index in range(first, first + 36)]
        for index in range(first + 36, first + 40):
            talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": f"reply {index}"}]
            rows.append({"user": f"somebody-{index}", "ts": 1740823200 + index, "messages": talk})
    store = ingest_rows(tmp_path, rows, memory="1GB")
    assert (store.record["kept"], store.record["dropped"]) == (80, {})
    assert len(list(store.data.glob("messages/*.parquet"))) == 3


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
