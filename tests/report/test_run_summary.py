import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamarl.core.errors import DataError
from llamarl.report.summary import RunSummary, peak_memory_bytes, read_summary, resident_memory, write_summary

SUMMARY = RunSummary(steps=10, version=10, seconds=3.5, reward_after=float("nan"), peak_memory_bytes=5)


def test_written_summary_reads_back_with_null_for_nan(tmp_path: Path) -> None:
    path = write_summary(tmp_path / "run", SUMMARY)
    assert path == tmp_path / "run" / "summary.json"
    read = read_summary(tmp_path / "run")
    assert (read.steps, read.version, read.seconds, read.peak_memory_bytes) == (10, 10, 3.5, 5)
    assert read.reward_after is None and read.staleness_max is None


def test_a_later_versions_keys_are_left_out_and_missing_ones_named(tmp_path: Path) -> None:
    path = write_summary(tmp_path, SUMMARY)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"new_field": 1}))
    assert read_summary(tmp_path).steps == 10
    path.write_text(json.dumps({"steps": 1, "version": 1}))
    with pytest.raises(DataError, match=r"summary\.json: 'seconds' must be a number, got None"):
        read_summary(tmp_path)


SIZE = 64 * 2**20
SLACK = 2**21
"""The kernel counts resident pages in batches per thread."""


def test_peak_memory_remembers_what_was_freed() -> None:
    program = (
        "from llamarl.report.summary import peak_memory_bytes\n"
        f"before = peak_memory_bytes(); block = bytearray(b'x') * {SIZE}; del block\n"
        "print(peak_memory_bytes() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert SIZE - SLACK < int(grown.stdout) < SIZE + 16 * SLACK


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="children are seen through /proc only")
def test_peak_memory_counts_living_children_only() -> None:
    before = peak_memory_bytes()
    program = f"block = bytearray(b'x') * {SIZE}; print('ready', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        assert peak_memory_bytes() > before + SIZE - SLACK
        child.communicate(b"\n")
    assert peak_memory_bytes() < before + SIZE - SLACK


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="children are seen through /proc only")
def test_resident_memory_is_told_by_executor() -> None:
    program = f"block = bytearray(b'x') * {SIZE}; print('ready', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        found = resident_memory({"trainer": [child.pid], "inside": [os.getpid()], "elsewhere": [1], "none": []})
        child.communicate(b"\n")
    assert list(found) == ["main", "trainer"]  # process 1 is no child of ours, as none of another host is
    assert found["trainer"] > SIZE and found["main"] > 0
    assert list(resident_memory({"trainer": [child.pid]})) == ["main"]
