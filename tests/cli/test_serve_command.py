"""`llamarl serve` as a user starts it, with the other commands as its clients; a run's checkpoints."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from llamarl.cli.main import main
from llamarl.controller.checkpoints import CheckpointStore
from llamarl.controller.directory import RECIPE_FILE
from llamarl.controller.export import Trained, load_trained
from llamarl.controller.following import RunWeights, load_newest
from llamarl.core.errors import CheckpointError
from llamarl.models.checkpoint import load_model
from llamarl.models.decoder import named_tensors
from llamarl.tasks.demo import DEMO_CHECKPOINT
from llamarl.training.checkpoints import WEIGHTS, write


@contextmanager
def serve(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-c", "from llamarl.cli.program import run; run()", "serve", *arguments]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json", "--look-seconds", "0.05"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    recipe = {"model": str(DEMO_CHECKPOINT), "data": {"source": "p.jsonl"}, "judges": [{"function": "rewards.py:f"}]}
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / RECIPE_FILE).write_text(json.dumps(recipe))
    return tmp_path / "first"


def save_step(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    weights = {name: tensor + 0.01 * step for name, tensor in named_tensors(load_model(DEMO_CHECKPOINT))}
    store = CheckpointStore(run_dir / "checkpoints")
    store.save(step, lambda path: write(path / "trainer", weights, {}, {"version": step}))
    return weights


@pytest.mark.slow
def test_a_served_model_answers_the_other_commands_and_ends_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(str(DEMO_CHECKPOINT), "--name", "demo") as (process, started):
        assert started == {"url": started["url"], "model": "demo", "version": 0}
        asked = ["--endpoint", started["url"], "--max-tokens", "8"]
        assert main(["generate", "demo", "write", "words", "--samples", "2", *asked, "--json"]) == 0
        records = json.loads(capsys.readouterr().out)
        assert [each["prompt"] for each in records] == ["write", "words"]
        assert all(len(each["completions"]) == 2 for each in records)
        assert {c["logprob"] for each in records for c in each["completions"]} == {None}
        assert main(["generate", "demo", "write", "words", "--samples", "2", *asked, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == records  # equal seeds
        out = str(tmp_path / "results")
        evaluation = ["eval", "ifeval", "--data", "builtin", "--limit", "2", "--sentence-splitter", "rules"]
        assert main([*evaluation, *asked, "--model", "demo", "--out", out, "--quiet"]) == 0
        assert main(["generate", "other", "write", *asked]) == 2
        assert "'other' is not served here" in capsys.readouterr().err
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["cut_off"] == 0


@pytest.mark.slow
def test_a_run_is_followed_from_checkpoint_to_checkpoint(run_dir: Path) -> None:
    save_step(run_dir, 2)
    with serve(str(run_dir), "--follow") as (_, started):
        assert (started["model"], started["version"]) == ("first", 2)
        save_step(run_dir, 5)
        health = started["url"].replace("/v1", "/health")
        while httpx.get(health, trust_env=False).json()["version"] != 5:
            time.sleep(0.02)
        answer = httpx.post(f"{started['url']}/completions", json={"prompt": "a"}, trust_env=False, timeout=30).json()
        assert answer["choices"][0]["weight_versions"][0]["version"] == "5"


def test_before_the_first_checkpoint_a_run_is_its_model(run_dir: Path) -> None:
    first = load_newest(run_dir)
    source = RunWeights(run_dir, first.step)
    assert first.step == 0 and source.look() is None
    weights = save_step(run_dir, 3)
    newer = source.look()
    assert newer is not None and newer[0] == 3
    assert all(torch.equal(newer[1][name], weights[name]) for name in weights)
    assert source.look() is None


def test_a_checkpoint_that_the_run_removes_while_it_is_read_is_replaced_by_a_newer_one(run_dir: Path) -> None:
    save_step(run_dir, 1)
    tries = []

    def load(*arguments: Any) -> Trained:
        tries.append(arguments)
        if len(tries) == 1:
            for step in (2, 3, 4):
                save_step(run_dir, step)
        return load_trained(run_dir, "1" if len(tries) == 1 else "latest")

    assert load_newest(run_dir, load=load).step == 4 and len(tries) == 2
    with pytest.raises(CheckpointError, match="step '1': not there"):
        load_newest(run_dir, load=lambda *arguments: load_trained(run_dir, "1"))


def test_a_damaged_checkpoint_is_not_taken_and_a_later_one_is(run_dir: Path) -> None:
    source = RunWeights(run_dir, 0)
    save_step(run_dir, 1)
    file = run_dir / "checkpoints" / "step_000001" / "trainer" / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        source.look()
    save_step(run_dir, 2)
    newer = source.look()
    assert newer is not None and newer[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(DEMO_CHECKPOINT), "--follow"], "so it is no run"),
        ([str(DEMO_CHECKPOINT), "--step", "best"], "so it is no run"),
        (["run", "--follow", "--step", "best"], "leave one out"),
        (["nowhere"], "nowhere"),
        ([str(DEMO_CHECKPOINT), "--host", "0.0.0.0"], "--token-env VARIABLE"),
        ([str(DEMO_CHECKPOINT), "--token-env", "LLAMARL_UNSET"], "LLAMARL_UNSET"),
        ([str(DEMO_CHECKPOINT), "--chat-template-args", '{"thinks": 1}'], "thinks"),
        ([str(DEMO_CHECKPOINT), "--chat-template", "chatmll"], "chatmll"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--endpoint", "http://127.0.0.1:1/v1", "--precision", "bf16"], "--precision does nothing with --endpoint"),
        (["--api-key-env", "KEY"], "--api-key-env: needs --endpoint"),
    ],
)
def test_settings_of_the_other_place_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "m", "a", *arguments]) == 2
    assert message in capsys.readouterr().err
