"""Executors as processes: the run survives `kill -9` of its generator, and of its trainer."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamarl.controller.ledger import Ledger
from llamarl.recipes import recipe_path
from llamarl.report.metrics import read_metrics

# not importorskip: importing monarch before the engine has set its variables would slow the engine's own tests down
pytestmark = pytest.mark.skipif(importlib.util.find_spec("monarch") is None, reason="needs the extra monarch")

FLAGS = [
    *("--engine", "monarch", "--schedule.prompts-per-step", "4", "--schedule.samples-per-prompt", "4"),
    *("--evaluation.num-prompts", "0", "--schedule.checkpoint-every", "2", "--sampling.max-tokens", "24"),
    *("--generator.slots", "16", "--data.limit", "120", "--data.epochs", "1", "--schedule.steps", "30"),
]


def steps_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return max((record["step"] for record in read_metrics(path)), default=0) if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["generator-0", "trainer"])
def test_a_run_survives_kill_9(tmp_path: Path, victim: str) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "llamarl", "train", str(recipe_path("demo")), "--plain"]
    with open(tmp_path / "log", "w") as log:
        child = subprocess.Popen([*command, "--run-dir", str(run_dir), *FLAGS], stdout=log, stderr=log)
        deadline = time.monotonic() + 600
        while steps_done(run_dir) < 3:
            assert child.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        (pid,) = json.loads((run_dir / "processes.json").read_text())[victim]
        assert pid != child.pid
        os.kill(pid, signal.SIGKILL)
        assert child.wait(timeout=600) == 0, (tmp_path / "log").read_text()
    with Ledger(run_dir / "ledger.sqlite") as ledger:
        assert ledger.counts() == {"issued": 120, "finished": 0, "trained": 120, "dropped": 0}
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 30
    assert f"{victim} lost" in (run_dir / "messages.log").read_text()
