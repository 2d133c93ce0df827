"""Runs whose trainer is several processes: they end as with one, and survive the loss of a rank."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llamarl.controller.checkpoints import CheckpointStore
from llamarl.controller.export import export_run
from llamarl.controller.ledger import Ledger
from llamarl.models.checkpoint import load_model, load_tokenizer, new_config, new_model, save_model
from llamarl.models.decoder import named_tensors
from llamarl.recipes import recipe_path
from llamarl.report.metrics import read_metrics

# not importorskip: importing monarch before the engine has set its variables would slow the engine's own tests down
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("monarch") is None, reason="needs the extra monarch"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # processes that start take their time on a busy machine
]

FLAGS = [
    *("--engine", "monarch", "--schedule.prompts-per-step", "4", "--schedule.samples-per-prompt", "4"),
    *("--evaluation.num-prompts", "0", "--schedule.checkpoint-every", "2", "--sampling.max-tokens", "24"),
    *("--generator.slots", "16", "--plain"),
]
PATIENCE = 600


def begin(run_dir: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "llamarl", "train", str(recipe_path("demo")), "--run-dir", str(run_dir)]
    with open(f"{run_dir}.log", "w") as log:  # the process has it open for itself
        return subprocess.Popen([*command, *FLAGS, *flags], stdout=log, stderr=log, text=True)


def log_of(run_dir: Path) -> str:
    return Path(f"{run_dir}.log").read_text()


def steps_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return max((record["step"] for record in read_metrics(path)), default=0) if path.is_file() else 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the demo's tokenizer and heads that can be cut in two."""
    demo = recipe_path("demo").parent.parent / "tasks" / "assets" / "format"
    tokenizer = load_tokenizer(demo)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    ids = {"vocab_size": 98, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}
    config = new_config("llama", **sizes, **heads, **ids, max_position_embeddings=512, tie_word_embeddings=True)
    return save_model(new_model(config, 0), tokenizer, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pays for early letters of the alphabet, so that random texts differ in their reward."""
    file = tmp_path_factory.mktemp("judge") / "judge.py"
    file.write_text("def pay(prompt, completion):\n    return sum(c < 'i' for c in completion.text) / 24\n")
    return file


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(
        CheckpointStore(run_dir / "checkpoints").load_latest().path / "trainer" / "model.safetensors"
    )
    return found


@pytest.fixture(scope="module")
def of_one_rank(tmp_path_factory: pytest.TempPathFactory, model: Path, judge: Path) -> dict[str, torch.Tensor]:
    """The weights with which a trainer of one rank ends."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    child = begin(run_dir, *short(model, judge))
    assert child.wait(timeout=PATIENCE) == 0, log_of(run_dir)
    return weights_of(run_dir)


def short(model: Path, judge: Path) -> list[str]:
    sync = ["--schedule.max-staleness", "0", "--schedule.steps", "3"]
    return ["--model", str(model), "--judges.0.function", f"{judge}:pay", *sync]


@pytest.mark.parametrize("layout", ["fsdp", "tp"])
def test_a_run_of_two_ranks_ends_with_the_weights_of_one(
    tmp_path: Path, model: Path, judge: Path, of_one_rank: dict[str, torch.Tensor], layout: str
) -> None:
    run_dir = tmp_path / "run"
    child = begin(run_dir, *short(model, judge), f"--placement.trainer.{layout}", "2")
    assert child.wait(timeout=PATIENCE) == 0, log_of(run_dir)
    found, start = weights_of(run_dir), dict(named_tensors(load_model(model)))
    assert found.keys() == start.keys()
    assert all((found[key] - tensor).abs().max() <= 1e-5 for key, tensor in of_one_rank.items())
    assert any((found[key] - start[key]).abs().max() > 1e-4 for key in start)
    export_run(run_dir, tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").named_parameters()
    assert all(torch.equal(tensor, found[key]) for key, tensor in exported)


def test_adapters_of_two_ranks_are_those_of_one(tmp_path: Path, model: Path, judge: Path) -> None:
    """With a reference, so that both ranks score completions between steps."""
    adapters = [*short(model, judge), "--trainer.lora.rank", "3", "--trainer.learning-rate", "1e-3"]
    adapters += ["--algorithm.type", "grpo", "--algorithm.kl-coef", "0.1"]
    layouts = {"one": [], "two": ["--placement.trainer.fsdp", "2", "--placement.trainer.gradient-sync", "last"]}
    for name, layout in layouts.items():
        child = begin(tmp_path / name, *adapters, *layout)
        assert child.wait(timeout=PATIENCE) == 0, log_of(tmp_path / name)
    one, two = (weights_of(tmp_path / name) for name in layouts)
    assert one.keys() == two.keys() and all("lora_" in name for name in two)
    assert all((two[name] - tensor).abs().max() <= 1e-5 for name, tensor in one.items())
    assert any(tensor.abs().max() > 1e-4 for name, tensor in two.items() if "lora_B" in name)
    assert export_run(tmp_path / "two", tmp_path / "adapter", adapter=True) == 3
    exported = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(exported[f"base_model.model.{name}"], tensor) for name, tensor in two.items())


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_survives_the_loss_of_one_rank(tmp_path: Path, stop: signal.Signals) -> None:
    run_dir = tmp_path / "run"
    length = ["--data.limit", "40", "--data.epochs", "1", "--schedule.steps", "10", "--schedule.call-seconds", "45"]
    child = begin(run_dir, "--placement.trainer.fsdp", "2", *length)
    deadline = time.monotonic() + PATIENCE
    while steps_done(run_dir) < 3:
        assert child.poll() is None and time.monotonic() < deadline, log_of(run_dir)
        time.sleep(0.05)
    _, second = json.loads((run_dir / "processes.json").read_text())["trainer"]
    os.kill(second, stop)
    assert child.wait(timeout=PATIENCE) == 0, log_of(run_dir)
    with Ledger(run_dir / "ledger.sqlite") as ledger:
        assert ledger.counts() == {"issued": 40, "finished": 0, "trained": 40, "dropped": 0}
    assert steps_done(run_dir) == 10
    assert "trainer lost (trainer rank 1 of 2 no longer answers" in (run_dir / "messages.log").read_text()


def test_what_cannot_be_cut_is_refused_before_anything_starts(tmp_path: Path) -> None:
    child = begin(tmp_path / "run", "--placement.trainer.tp", "2")
    assert child.wait(timeout=PATIENCE) == 2
    assert "3 query heads, 3 key/value heads cannot be cut into 2 equal parts" in log_of(tmp_path / "run")
    assert not (tmp_path / "run").exists()
