"""What a dry run shows to people."""

from typing import Any

import pytest
from rich.console import Console

from llamarl.cli.main import main
from llamarl.recipes import recipe_path
from llamarl.report.dry_run import render_dry_run

RECIPE = {"model": "m", "sampling": {"max_tokens": 96}, "judges": [{"function": "file.py:f"}], "seed": None}
TASK = {
    "prompts": 1200,
    "held_out": 80,
    "skipped_rows": 3,
    "epochs": 0.5,
    "completions_per_step": 32,
    "algorithm": "aipo",
    "judges": ["f", "g"],
    "weight": 1.0,
}
ESTIMATE = {"step_seconds": 2.0, "train_seconds": 1.5, "generate_seconds": 0.5, "run_seconds": 200.0, "assumed": "much"}
PLAN: dict[str, Any] = {
    "steps": 100,
    "max_staleness": 1,
    "engine": "inprocess",
    "executors": ["trainer", "judge"],
    "notes": ["device: cpu", "held-out prompts: 80"],
    "memory": {"trainer weights": "1.00 GiB", "together": "1.00 GiB of 2.0 GiB: fits"},
    "estimate": ESTIMATE,
}


def show(plan: dict[str, Any], changes: list[dict[str, Any]]) -> list[str]:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render_dry_run(RECIPE, plan, changes))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_all_that_would_run_is_told_once() -> None:
    changes = [
        {"name": "sampling.max_tokens", "default": 256},
        {"name": "judges.0.function"},
        {"name": "seed", "default": 0},
    ]
    lines = show(PLAN | TASK, changes)
    for line in (
        "model m",
        "steps 100; max_staleness 1",
        "task 32 completions a step, by aipo",
        "prompts 1,200 to train on (0.5 epochs), 80 held out, 3 rows skipped",
        "judges f, g",
        "executors trainer, judge; engine inprocess",
        "note device: cpu",
        "note held-out prompts: 80",
        "together 1.00 GiB of 2.0 GiB: fits",
        "a step 2 s (generate 500 ms, train 1.5 s)",
        "the run 3m 20s",
        "sampling.max_tokens 96 (default 256)",
        "judges.0.function file.py:f",
        "seed null (default 0)",
    ):
        assert lines.count(line) == 1, line


def test_each_of_several_tasks_has_its_lines() -> None:
    lines = show(
        PLAN | {"tasks": {"a": TASK | {"coverage": {"long": 4}}, "b": TASK | {"prompts": 7, "weight": 0.5}}}, []
    )
    assert "task a 32 completions a step, by aipo, weight 1" in lines and "coverage long x 4" in lines
    assert "task b 32 completions a step, by aipo, weight 0.5" in lines
    assert [line.split()[1] for line in lines if line.startswith("prompts")] == ["1,200", "7"]


def test_the_command_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe_path("demo")), "--dry-run", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "would run" in shown and "fits" in shown and "nothing was run" in shown and "{" not in shown
