import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import Benchmark, Contender, paired_ratio, spread, table, take_turns


def test_every_round_begins_with_another_contender() -> None:
    calls: list[str] = []

    def call(name: str) -> int:
        calls.append(name)
        return len(calls)

    results = take_turns({name: partial(call, name) for name in "abc"}, repeats=2, warm_up=1)
    assert calls == [*"abc", *"bca", *"cab"]
    assert results == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}  # call numbers; the first round is not kept


def test_spread_and_paired_ratio() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0, "repeats": 4}
    # ratios of the rounds 2/1, 9/3, 4/4: their median is 2, though the medians' ratio is 4/3
    assert paired_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "repeats": 3}


def test_table_aligns_and_shortens() -> None:
    rows: list[dict[str, Any]] = [{"who": "ours", "seconds": spread([0.25])}, {"who": "b", "seconds": 1234.5678}]
    assert table(rows).splitlines() == ["who   seconds", "ours  0.25 [0.25, 0.25]", "b     1235"]


def finish(path: Path, *options: str, max_load: float = 1e9) -> bool:
    benchmark = Benchmark("example", None, repeats=7, max_load=max_load)
    benchmark.start(["--output", str(path), *options])
    return benchmark.finish([{"who": "ours", "repeats": benchmark.options.repeats}], {"speed-up": 2.0})


def test_result_holds_what_a_reader_needs(tmp_path: Path) -> None:
    path = tmp_path / "results" / "example.json"
    assert finish(path)
    record = json.loads(path.read_text())
    assert record["headlines"] == {"speed-up": 2.0} and record["rows"] == [{"who": "ours", "repeats": 7}]
    assert record["command"] == "python -m benchmarks.example --output example.json"  # no folder of this machine
    assert {"date", "load", "environment"} <= record.keys()


def test_quick_tries_and_busy_machines_publish_nothing(tmp_path: Path) -> None:
    assert not finish(tmp_path / "a.json", "--quick")
    assert not finish(tmp_path / "b.json", max_load=-1.0)
    assert not list(tmp_path.glob("*.json"))


ECHO = """
import os
from benchmarks.common import Turns
turns = Turns()
for number in range(2):
    turns.wait()
    print("chatter that must not reach the report")
    turns.report(number=number, threads=float(os.environ["OMP_NUM_THREADS"]))
raise SystemExit(3)
"""


def test_contender_works_turn_by_turn_and_its_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_contender.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    contender = Contender("echo_contender", threads=1)
    try:
        assert contender.turn() == {"number": 0, "threads": 1.0}
        assert contender.turn() == {"number": 1, "threads": 1.0}
        with pytest.raises(RuntimeError, match="echo_contender ended with status 3"):
            contender.turn()
    finally:
        contender.close()
