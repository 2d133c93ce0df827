"""view --page and --serve, runs: what they print, what they write, what they refuse."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from llamarl.cli.main import main
from llamarl.controller.ledger import Ledger, read_account
from llamarl.controller.page import account_of


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run_dir = tmp_path / "runs" / "one"
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.json").write_text('{"model": "m/tiny", "algorithm": {"type": "grpo"}, "schedule": {"steps": 9}}')
    (run_dir / "metrics.jsonl").write_text(
        '{"step": 0, "time": 1.0, "eval/reward/mean": 0.25}\n{"step": 1, "time": 2.0, "rollout/reward/mean": 0.5}\n'
    )
    return run_dir


def test_a_page_is_written_and_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run_dir), "--page"]) == 0
    page = run_dir / "index.html"
    assert capsys.readouterr().out == f"page {page}\n" and "<!doctype html>" in page.read_text()
    assert not (run_dir / "run.png").exists()
    assert main(["view", str(run_dir), "--page", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(page)}


def test_runs_are_listed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(run_dir.parent)]) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("one", "stopped", "1/9", "0.500", "0.250", "tiny, grpo"))
    assert main(["runs", str(run_dir.parent), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["state"], row["step"], row["held_out_before"], row["held_out"]) == (
        "one", "stopped", 1, 0.25, None,
    )  # fmt: skip
    assert main(["runs", str(run_dir.parent / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "llamarl demo" in capsys.readouterr().out


def test_a_served_page_answers_until_it_is_ended(run_dir: Path) -> None:
    command = [sys.executable, "-m", "llamarl", "view", str(run_dir), "--serve", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads("".join(process.stdout.readline() for _ in range(3)))["url"]
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{url}api/run", timeout=20) as answer:
                assert json.load(answer)["step"] == 1
        finally:
            process.terminate()


def test_the_account_names_reasons_and_a_damaged_one_hides_no_page(run_dir: Path) -> None:
    assert account_of(run_dir) is None
    with Ledger(run_dir / "ledger.sqlite") as ledger:
        for prompt in ("a", "b", "c"):
            ledger.issue(0, prompt)
        ledger.drop(0, "a", 1, "unscored")
        ledger.drop(0, "b", 1, "no_signal")
        ledger.commit()
    account = read_account(run_dir / "ledger.sqlite")
    assert account["reasons"] == {"no_signal": 1, "unscored": 1}
    assert account["counts"]["issued"] == 3 and account["counts"]["dropped"] == 2
    assert account_of(run_dir) == account
    (run_dir / "ledger.sqlite").write_bytes(b"no ledger")
    assert account_of(run_dir) is None
    assert main(["view", str(run_dir), "--page"]) == 0
