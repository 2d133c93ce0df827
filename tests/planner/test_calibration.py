"""Four runs of the demo's recipe on one core that other programs used too, taken in turns of six steps.

`base` is synchronous; `batch` has twice the prompts, `length` at most 12 tokens a completion, `stale` a staleness of 2.
"""

import json
from pathlib import Path

import pytest

from llamarl.cli.main import main
from llamarl.core.errors import ConfigError, DataError
from llamarl.planner.calibration import Machine, MeasuredRun, calibrate, machine_toml, read_machine, this_machine
from llamarl.planner.devices import find_device
from llamarl.planner.shapes import ModelShape
from llamarl.tasks.demo import DEMO_CHECKPOINT

RUNS = Path(__file__).parent / "recorded"
DEMO = ModelShape.from_config("demo", json.loads((Path(DEMO_CHECKPOINT) / "config.json").read_text()))
PROMPT_TOKENS = 32.0


@pytest.fixture(scope="module")
def machine() -> Machine:
    return calibrate(DEMO, find_device("cpu"), MeasuredRun.read(RUNS / "base"), PROMPT_TOKENS)


# golden


def test_the_run_itself_within_15_percent(machine: Machine) -> None:
    run = MeasuredRun.read(RUNS / "base")
    assert machine.predict(DEMO, run, PROMPT_TOKENS).step == pytest.approx(run.step_seconds, rel=0.15)


@pytest.mark.parametrize("name", ["batch", "length", "stale"])
def test_other_batches_lengths_and_staleness_within_25_percent(machine: Machine, name: str) -> None:
    run = MeasuredRun.read(RUNS / name)
    assert machine.predict(DEMO, run, PROMPT_TOKENS).step == pytest.approx(run.step_seconds, rel=0.25)


def test_what_a_run_was_set_to_do() -> None:
    run = MeasuredRun.read(RUNS / "batch")
    assert (run.prompts, run.samples, run.slots, run.staleness, run.engine) == (32, 8, 128, 0, "inprocess")
    assert MeasuredRun.read(RUNS / "length").signal_share == pytest.approx(0.2, abs=0.02)  # most were cut off


# invariance


def test_a_machine_survives_its_file(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(machine_toml(machine, ["runs/base"]))
    assert read_machine(path) == machine


def test_this_machine_has_as_many_cores_as_it_may_use() -> None:
    assert this_machine(4, []).device.peak("fp32") == 4 * find_device("cpu").peak("fp32")
    assert this_machine(4, ["NVIDIA H200"]).device.name == "h200"
    assert this_machine(4, ["NVIDIA A100-SXM4-80GB"]).device.name == "a100-80gb"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    out = tmp_path / "machine.toml"
    words = ["plan", "--calibrate", str(RUNS / "base"), "--gpu", "cpu", "--prompt-tokens", "32"]
    words += ["--model", str(DEMO_CHECKPOINT), "--out", str(out)]
    for name in ("batch", "length", "stale"):
        words += ["--compare", str(RUNS / name)]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [each["run"] for each in result["runs"]] == ["base", "batch", "length", "stale"]
    assert max(abs(each["error"]) for each in result["runs"]) < 0.25
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "fitted on base" in text and "off by" in text
    plan = ["plan", "--model", str(DEMO_CHECKPOINT), "--machine", str(out), "--tokens", "18,48", "--json"]
    assert main(plan) == 0
    assert json.loads(capsys.readouterr().out)["step_seconds"] > 0


# rejects


def test_too_few_steps_and_no_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    lines = (RUNS / "base" / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:4]) + "\n")
    with pytest.raises(DataError, match="3 steps after the first; a calibration needs at least 4"):
        MeasuredRun.read(run)
    with pytest.raises(DataError, match="no such directory"):
        MeasuredRun.read(tmp_path / "none")


def test_a_file_that_is_no_machine(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text("[device]\nname = 'x'\n")
    with pytest.raises(ConfigError, match="write one with llamarl plan --calibrate RUN"):
        read_machine(path)
