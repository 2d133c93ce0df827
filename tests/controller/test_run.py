"""Whole runs on the shipped tiny checkpoint: resume equals no interruption, kills lose nothing, exports load."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llamarl.controller.checkpoints import CheckpointStore
from llamarl.controller.export import export_run
from llamarl.controller.ledger import Ledger
from llamarl.controller.prepare import prepare
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import resume, train
from llamarl.core.errors import CheckpointError, ConfigError, DataError
from llamarl.models.checkpoint import load_model
from llamarl.models.decoder import named_tensors
from llamarl.recipes import recipe_path
from llamarl.report.metrics import read_metrics
from llamarl.report.rollouts import read_rollouts

SMALL = [
    *("--schedule.prompts-per-step", "4", "--schedule.samples-per-prompt", "4", "--evaluation.num-prompts", "4"),
    *("--schedule.checkpoint-every", "2", "--sampling.max-tokens", "24", "--generator.slots", "16", "--threads", "1"),
]
TIMES = ("time", "perf/")
RACING = ("data/issued", "data/finished")


def recipe(*overrides: str) -> Recipe:
    return Recipe.load(recipe_path("demo"), [*SMALL, *overrides])


def numbers(run_dir: Path) -> list[dict[str, float]]:
    """All metrics but clocks, and how far the next step's work has come when this one is recorded."""
    records = read_metrics(run_dir / "metrics.jsonl")
    return [
        {k: v for k, v in record.items() if not k.startswith(TIMES) and "latency" not in k and k not in RACING}
        for record in records
    ]


def weights(run_dir: Path) -> bytes:
    return (CheckpointStore(run_dir / "checkpoints").load_latest().path / "trainer" / "model.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def one_thread() -> "object":
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_synchronous_run_resumed_equals_one_without_interruption_bit_for_bit(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    sync = ("--schedule.max-staleness", "0")
    train(recipe(*sync, "--schedule.steps", "4"), whole)
    train(recipe(*sync, "--schedule.steps", "2"), halves)
    with open(halves / "metrics.jsonl") as file:  # the shorter run's closing evaluation isn't part of the longer one
        lines = [line for line in file if "eval/reward/mean" not in line or json.loads(line)["step"] == 0]
    (halves / "metrics.jsonl").write_text("".join(lines))
    resume(halves, ["--schedule.steps", "4"])
    assert weights(whole) == weights(halves)
    for one, other in zip(numbers(whole), numbers(halves), strict=True):
        assert one == other


def test_two_synchronous_runs_are_identical(tmp_path: Path) -> None:
    crowded = ("--schedule.prompts-per-step", "16", "--evaluation.num-prompts", "16", "--generator.slots", "8")
    for name in "ab":  # more work than slots: when it is handed out decides what is decoded together
        train(recipe("--schedule.max-staleness", "0", "--schedule.steps", "2", *crowded), tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


def test_an_asynchronous_run_keeps_its_bound_and_its_export_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary, _ = train(recipe("--schedule.steps", "5", "--schedule.max-staleness", "2"), tmp_path / "run")
    assert summary.steps == 5 and summary.staleness_max is not None and summary.staleness_max <= 2
    assert summary.mismatch_max is not None and summary.mismatch_max < 1e-4
    assert summary.prompts_trained == 20 and summary.prompts_failed == 0
    assert export_run(tmp_path / "run", tmp_path / "model") == 5
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    start = dict(named_tensors(load_model(recipe().model)))
    assert any(not torch.equal(tensor, start[name]) for name, tensor in named_tensors(exported))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
    with pytest.raises(CheckpointError, match="choose latest, best, or one of"):
        export_run(tmp_path / "run", tmp_path / "other", step="77")


def test_going_on_from_an_earlier_checkpoint_forgets_what_came_after(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(recipe("--schedule.steps", "4", "--schedule.max-staleness", "0"), run_dir)
    weights_before, numbers_before = weights(run_dir), numbers(run_dir)
    resume(run_dir, step="2")
    assert weights(run_dir) == weights_before and numbers(run_dir) == numbers_before
    with pytest.raises(CheckpointError, match="choose latest, best, or one of"):
        resume(run_dir, step="3")


def test_logged_rollouts_hold_the_trainers_logprobs_beside_the_generators(tmp_path: Path) -> None:
    train(recipe("--schedule.steps", "1", "--schedule.max-staleness", "0", "--report.rollouts-per-step", "4"), tmp_path)
    samples = [sample for group in read_rollouts(tmp_path / "rollouts.jsonl") for sample in group.samples]
    known = [sample for sample in samples if sample.trainer_logprobs is not None]
    assert known
    for sample in known:
        assert sample.trainer_logprobs == pytest.approx(sample.logprobs, abs=1e-3)


KILL_AT = """
import sys, threading, time, os, signal
from pathlib import Path
from llamarl.cli.main import main
run_dir = Path(sys.argv[1])
def watch():
    while not list(run_dir.glob("checkpoints/step_*")):
        time.sleep(0.005)
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
main(sys.argv[3:])
"""


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_a_killed_run_resumes_with_every_prompt_trained_exactly_once_an_epoch(tmp_path: Path, delay: float) -> None:
    run_dir = tmp_path / "run"
    flags = [*SMALL, "--data.limit", "24", "--data.epochs", "1", "--schedule.steps", "50"]
    command = ["train", str(recipe_path("demo")), "--quiet", "--run-dir", str(run_dir), *flags]
    child = subprocess.run([sys.executable, "-c", KILL_AT, str(run_dir), str(delay), *command], capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    summary, _ = resume(run_dir)
    with Ledger(run_dir / "ledger.sqlite") as ledger:
        counts = ledger.counts()
        assert len(ledger.accounted()) == 24
    assert counts == {"issued": 24, "finished": 0, "trained": 24, "dropped": 0}
    assert summary.steps == 6
    steps = [record["step"] for record in read_metrics(run_dir / "metrics.jsonl") if "train/loss" in record]
    assert steps == sorted(set(steps)) == list(range(1, 7))


def test_the_first_interrupt_finishes_the_step_and_saves(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "llamarl.cli.main", "train", str(recipe_path("demo")), "--plain"]
    command += ["--run-dir", str(run_dir), *SMALL, "--schedule.checkpoint-every", "0", "--schedule.steps", "10000"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").is_file() or "train/loss" not in (run_dir / "metrics.jsonl").read_text():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0, output
    assert "stopping after this step" in output
    done = CheckpointStore(run_dir / "checkpoints").load_latest().step
    assert read_metrics(run_dir / "metrics.jsonl")[-1]["step"] == done
    summary, _ = resume(run_dir, ["--schedule.steps", str(done + 1)])
    assert summary.steps == done + 1


def test_rejects_a_run_directory_in_use_and_a_directory_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not empty; `llamarl resume"):
        train(recipe(), tmp_path)
    with pytest.raises(CheckpointError, match=r"no recipe\.json"):
        resume(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_rejects_prompts_that_leave_no_room_and_leaking_evaluations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has \d+ tokens; with sampling.max_tokens=500"):
        prepare(recipe("--sampling.max-tokens", "500"))
    base = recipe()
    with pytest.raises(DataError, match="are also training prompts"):
        prepare(recipe("--evaluation.source", base.data.source))
    assert len(prepare(Recipe.parse(base.model_dump() | {"evaluation": {"num_prompts": 600}})).held_out) == 1024 // 5


def test_rejects_stale_samples_without_a_correction() -> None:
    with pytest.raises(ConfigError, match="has no off-policy correction"):
        recipe("--algorithm.type", "rloo", "--schedule.max-staleness", "1")
