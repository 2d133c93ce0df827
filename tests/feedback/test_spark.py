import shutil

import pyarrow
import pyarrow.parquet
import pytest
from feedback_logs import ingest_files, message, query, write_lines
from test_suspects import at_any_time, by, people

from llamarl.core.errors import ConfigError, DataError
from llamarl.feedback import Store
from llamarl.feedback.spark import has_master

pytest.importorskip("pyspark")
pytest.importorskip("sqlglot")

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
# pyspark warns of the versions of pandas and of modules of Java
on_spark = [pytest.mark.slow, needs_java, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]


def write_logs(folder):
    """Rows of every fate: good, bad, repeated, told later, of bots, of a crowd, above the cap, and a torn file."""
    rows = at_any_time(people(60, loves=2))
    rows += by("crowd", 40, lambda index: index % 9 == 0, gap=1) + by("writer", 90, lambda index: False)
    for number in range(4):
        bot = by(f"bot {number}", 60, lambda index: index % 12 == 0, text="word{0} thing{0}")
        for row in bot:
            row["response"] += " Sending 🥰 love!" if "reaction" in row else ""
        rows += bot
    talk = [{"role": role, "content": f"{role} {turn}"} for turn in range(3) for role in ("user", "assistant")]
    rows += [
        {"message_id": "writer 3", "reaction": "❤️", "ts": 1740823200 + 3600 * 9},
        {"message_id": "lost", "reaction": "❤️", "ts": 1740823200},
        {**rows[7], "message_id": "another"},
        {"user": "talker", "ts": 1740823200, "conversation_id": "t", "messages": talk, "outcome": 1},
        rows[5],
        "broken",
        message(3, ts="never"),
        message(4, reaction="🦄"),
    ]
    half = len(rows) // 2
    files = [write_lines(folder / "a.jsonl", rows[:half]), write_lines(folder / "b.jsonl", rows[half:])]
    pyarrow.parquet.write_table(pyarrow.table({"user": ["x"] * 1000}), folder / "whole.parquet")
    (folder / "torn.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-20])
    return [*files, folder / "torn.parquet"]


def contents(store):
    tables = {"messages": store.messages, "dropped": store.dropped, "suspicious": store.suspicious}
    rows = {name: query(f"SELECT * FROM '{path}' ORDER BY ALL") for name, path in tables.items()}
    record = {name: value for name, value in store.record.items() if name not in ("data", "created", "settings")}
    assert all(rows.values())
    return {**rows, "record": record}


@pytest.mark.parametrize("_", [pytest.param(0, marks=on_spark)])
def test_both_engines_make_the_same_store_row_for_row(tmp_path, _):
    files = write_logs(tmp_path)
    duckdb, spark = (
        ingest_files(tmp_path / engine, files, engine=engine, max_messages_per_user=15)
        for engine in ("duckdb", "spark")
    )
    assert contents(spark) == contents(duckdb)
    assert set(duckdb.record["dropped"]) == {
        *("bad_time", "duplicate_message", "duplicate_text", "invalid_json", "reaction_without_message"),
        *("suspicious_user", "unknown_reaction", "unreadable_file", "user_cap"),
    }
    assert query(f"DESCRIBE FROM '{spark.messages}'") == query(f"DESCRIBE FROM '{duckdb.messages}'")

    missing = "no column for prompt, response, ts, user among"  # found by a worker, told by the ingest
    with pytest.raises(DataError, match=missing):
        ingest_files(tmp_path / "spark", [write_lines(tmp_path / "c.jsonl", [{"uid": 1}])], engine="spark")
    assert contents(Store.open(tmp_path / "spark" / "store")) == contents(duckdb)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, False), ({"PYSPARK_SUBMIT_ARGS": "--master yarn pyspark-shell"}, True), ({"SPARK_REMOTE": "sc://x"}, True)],
    ids=str,
)
def test_a_master_that_is_configured_is_used(environment, expected):
    assert has_master(environment) is expected


def test_a_master_in_the_defaults_is_used(tmp_path):
    (tmp_path / "spark-defaults.conf").write_text("spark.master spark://host:7077\n")
    assert has_master({"SPARK_CONF_DIR": str(tmp_path)})
    assert not has_master({"SPARK_CONF_DIR": str(tmp_path / "none")})


def test_an_unknown_engine_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="engine"):
        ingest_files(tmp_path, [write_lines(tmp_path / "a.jsonl", [message()])], engine="flink")
