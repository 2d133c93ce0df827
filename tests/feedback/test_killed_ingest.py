"""An ingest is killed at each step that shows, and the same command then ends with the same store."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from feedback_logs import ENVIRONMENT, NOW, ingest_files, message, query, stored, write_lines

from llamarl.core.errors import DataError
from llamarl.feedback import Store
from llamarl.feedback.ingestion import STAGING

PROGRAM = """
import os, signal, sys
from datetime import datetime
from llamarl.feedback import Ingest, ingest

event, left, out, now, *logs = sys.argv[1:]
left = int(left)

def kill_at(name, details):
    global left
    if name == event:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_at)
settings = Ingest.parse({"logs": logs, "out": out, "threads": 1, "key_env": "FEEDBACK_KEY"})
ingest(settings, environment=dict(ENVIRONMENT), now=datetime.fromisoformat(now))
"""

STEPS = {
    "the first part": ("os.rename", 0),
    "the last part": ("os.rename", 2),
    "the first file of messages": ("os.rename", 3),
    "the rows that were dropped": ("os.rename", 6),
    "the suspicious users": ("os.rename", 7),
    "the store's record": ("os.rename", 8),
    "the old data going": ("shutil.rmtree", 0),
    "the parts going": ("shutil.rmtree", 1),
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> list[Path]:
    """Three logs with rows of every fate, and reactions that another log tells."""
    folder = tmp_path_factory.mktemp("logs")
    rows = [message(index, reaction="❤️" if index % 5 == 0 else None) for index in range(30)]
    rows[3] = message(3, ts="never")
    rows[7] = message(6)
    late = {"message_id": "m1", "reaction": "❤️", "ts": "2025-03-01T11:00:00Z"}
    return [
        write_lines(
            folder / f"{number}.jsonl", [*rows[10 * number : 10 * number + 10], *([late] if number == 2 else [])]
        )
        for number in range(3)
    ]


def contents(store: Store) -> list[object]:
    """Every row of a store."""
    rows: list[object] = [stored(store)]
    rows += [query(f"SELECT * FROM '{path}' ORDER BY ALL") for path in (store.dropped, store.suspicious)]
    return [*rows, {name: value for name, value in store.record.items() if name not in ("data", "created")}]


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_ingest_leaves_the_store_and_goes_on(tmp_path, logs, step):
    before = contents(ingest_files(tmp_path, [write_lines(tmp_path / "old.jsonl", [message(99)])]))
    expected = contents(ingest_files(tmp_path / "clean", logs))
    event, place = STEPS[step]
    program = PROGRAM.replace("ENVIRONMENT", repr(ENVIRONMENT))
    arguments = [event, place, tmp_path / "store", NOW.isoformat(), *logs]
    killed = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    is_published = event == "shutil.rmtree"
    assert contents(Store.open(tmp_path / "store")) == (expected if is_published else before)
    assert contents(ingest_files(tmp_path, logs)) == expected
    left = sorted(path.name.split("-")[0] for path in (tmp_path / "store").iterdir())
    assert left == [".lock", "data", "store.json"]


def test_a_first_ingest_that_is_killed_is_no_store(tmp_path, logs):
    program = PROGRAM.replace("ENVIRONMENT", repr(ENVIRONMENT))
    arguments = ["os.rename", 4, tmp_path / "store", NOW.isoformat(), *logs]
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True)
    assert len(list((tmp_path / "store" / STAGING).glob("*.parquet"))) == 3
    with pytest.raises(DataError, match="no store of messages"):
        Store.open(tmp_path / "store")
    assert contents(ingest_files(tmp_path, logs)) == contents(ingest_files(tmp_path / "clean", logs))
