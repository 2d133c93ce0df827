"""Runs that copy their metrics to a tracker."""

import json
from pathlib import Path

import pytest

from llamarl.controller.recipe import Recipe
from llamarl.controller.run import resume, train
from llamarl.recipes import recipe_path
from llamarl.report.metrics import read_metrics

SMALL = [
    *("--schedule.prompts-per-step", "2", "--schedule.samples-per-prompt", "2", "--evaluation.num-prompts", "2"),
    *("--sampling.max-tokens", "8", "--generator.slots", "8", "--threads", "1", "--schedule.steps", "2"),
]


def test_a_tracker_that_cannot_be_opened_costs_a_run_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at-all")
    summary, _ = train(Recipe.load(recipe_path("demo"), [*SMALL, "--report.mlflow", "tests"]), tmp_path)
    assert summary.steps == 2 and read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 2
    messages = (tmp_path / "messages.log").read_text()
    assert messages.count("tracker mlflow: cannot be opened") == 1


def test_a_resumed_run_goes_on_with_its_run_of_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(Recipe.load(recipe_path("demo"), [*SMALL, "--report.wandb", "tests"]), tmp_path)
    resume(tmp_path, ["--schedule.steps", "3"])
    wandb.teardown()  # as at the exit of the process: waits until its own process has written
    identity = json.loads((tmp_path / "wandb" / "run.json").read_text())["id"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{identity}.wandb"] * 2
    assert all(b"rollout/reward/mean" in file.read_bytes() for file in files)
    assert "tracker" not in (tmp_path / "messages.log").read_text()
