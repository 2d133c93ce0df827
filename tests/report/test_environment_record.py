import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamarl.report.environment import VARIABLES, environment_record
from llamarl.report.plots import plot_run

CANARY = "canary-7f3a91"


def test_record_says_what_ran_where() -> None:
    record = environment_record()
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["packages"]["torch"].startswith("2.")
    assert record["cpu_count"] >= record["cpu_count_usable"] >= 1
    assert record["memory_bytes"] > 2**28


def test_git_commit_and_whether_files_differ(tmp_path: Path) -> None:
    assert environment_record(tmp_path)["git"] is None
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    clean = environment_record(tmp_path)["git"]
    assert len(clean["commit"]) == 40 and clean["is_dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment_record(tmp_path)["git"] == {"commit": clean["commit"], "is_dirty": True}


def test_only_listed_variables_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LLAMARL_SOMETHING", "5")
    variables = environment_record()["variables"]
    assert variables["OMP_NUM_THREADS"] == "3" and set(variables) <= set(VARIABLES)


def test_no_secret_of_the_environment_reaches_any_file(
    monkeypatch: pytest.MonkeyPatch, example_run: Callable[..., Path]
) -> None:
    for name in (
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "LLAMARL_TOKEN",
        "MY_VARIABLE",
    ):
        monkeypatch.setenv(name, CANARY)
    run_dir = example_run(steps=20)
    plot_run(run_dir, run_dir / "run.png")
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "recipe.json", "environment.json", "metrics.jsonl", "rollouts.jsonl", "timeline.jsonl", "summary.json",
        "run.png",
    }  # fmt: skip
    assert os.environ["HF_TOKEN"] == CANARY
    assert [path.name for path in files if CANARY.encode() in path.read_bytes()] == []
