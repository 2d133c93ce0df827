"""view and runs on a disk that takes no file: a mount that is read-only to root too."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamarl.controller.ledger import Ledger
from llamarl.report.files import encode

MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
STATES = ("finished", "being written", "cut off")


def on_read_only(folder: Path, *command: str) -> list[str]:
    """The command in a mount namespace of its own, in which the folder is read-only."""
    own = ["--map-root-user"] if os.getuid() else []
    return ["unshare", "--mount", *own, "sh", "-c", MOUNT, str(folder), *command]


@pytest.fixture(scope="module", autouse=True)
def _require_mounts(tmp_path_factory: pytest.TempPathFactory) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on this machine (util-linux)")
    folder = tmp_path_factory.mktemp("probe")
    tried = subprocess.run(on_read_only(folder, "touch", f"{folder}/x"), capture_output=True, text=True)
    if "ead-only" not in tried.stderr:
        pytest.skip(f"this machine does not let us mount a folder read-only: {tried.stderr.strip()}")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """Three runs, one of them with its ledger in use and no checkpoint of its log."""
    ledgers = []
    for state in STATES:
        run_dir = tmp_path / "runs" / state
        run_dir.mkdir(parents=True)
        (run_dir / "recipe.json").write_bytes(encode({"model": "m/tiny", "schedule": {"steps": 9}}))
        metrics = [encode({"step": step, "time": float(step), "rollout/reward/mean": 0.5}) for step in range(1, 10)]
        tokens = {
            "token_ids": [7],
            "logprobs": [-0.5],
            "trainer_logprobs": [-0.5],
            "versions": [[0, 1]],
            "staleness": 0,
        }
        samples = [{"text": "moon", "reward": 1.0, "finish_reason": "stop", "verdicts": {}, **tokens}]
        messages = [{"role": "user", "content": "name it"}]
        group = {"step": 1, "version": 0, "group": 1, "epoch": 0, "task": "t", "prompt_id": "p", "answer": None}
        group |= {"messages": messages, "samples": samples}
        tail = b'{"step": 10, "ti' if state == "cut off" else b""
        (run_dir / "metrics.jsonl").write_bytes(b"\n".join(metrics) + b"\n" + tail)
        (run_dir / "rollouts.jsonl").write_bytes(encode(group) + b"\n" + tail)
        if state == "finished":
            (run_dir / "summary.json").write_bytes(encode({"steps": 9, "version": 9, "seconds": 9.0}))
        ledgers.append(Ledger(run_dir / "ledger.sqlite"))
        ledgers[-1].issue(0, "p")
        ledgers[-1].commit()
        if state != "being written":
            ledgers.pop().close()
    yield tmp_path / "runs"
    for ledger in ledgers:
        ledger.close()


def llamarl(folder: Path, *words: str) -> tuple[int, str, str]:
    """Status, output and errors of the command, which sees the folder read-only."""
    command = on_read_only(folder, sys.executable, "-m", "llamarl", *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("state", STATES)
def test_a_run_is_shown_and_says_what_was_not_drawn(runs: Path, state: str) -> None:
    status, shown, errors = llamarl(runs, "view", str(runs / state))
    assert status == 0 and "tiny" in shown and "step 9/9" in shown, errors
    assert "no figure: " in errors and "--out FILE.png" in errors and "Traceback" not in errors
    assert not list(runs.rglob("*.png"))


@pytest.mark.parametrize("state", STATES)
def test_a_page_goes_elsewhere(runs: Path, state: str, tmp_path: Path) -> None:
    status, shown, errors = llamarl(runs, "view", str(runs / state), "--page")
    assert (status, shown) == (2, "")
    assert f"{runs / state}/index.html: the page cannot be written (Read-only file system); --out FILE.html" in errors
    assert llamarl(runs, "view", str(runs / state), "--page", "--out", str(tmp_path))[0] == 0
    assert '"issued":1' in (tmp_path / "index.html").read_text().replace(" ", "")
    assert sorted(path.name for path in (runs / state).iterdir() if not path.name.startswith(("ledger", "summ"))) == [
        "metrics.jsonl", "recipe.json", "rollouts.jsonl",
    ]  # fmt: skip


def test_runs_are_listed(runs: Path) -> None:
    status, shown, errors = llamarl(runs, "runs", str(runs), "--json")
    assert (status, errors) == (0, "")
    assert {row["name"]: row["step"] for row in json.loads(shown)} == dict.fromkeys(STATES, 9)


def test_all_runs_are_served(runs: Path) -> None:
    command = on_read_only(runs, sys.executable, "-m", "llamarl", "view", str(runs), "--serve", "--json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = json.loads("".join(server.stdout.readline() for _ in range(3)))["url"]
            for state in STATES:
                address = f"{url}run/{state.replace(' ', '%20')}/"
                with opener.open(f"{address}api/run", timeout=60) as answer:
                    assert json.load(answer)["ledger"]["counts"]["issued"] == 1
                with opener.open(f"{address}api/rollouts/find?text=MOON", timeout=60) as answer:
                    assert len(json.load(answer)["heads"]) == 1
        finally:
            server.terminate()
    assert not list(runs.rglob("*.index.sqlite"))
