import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llamarl.cli.main import main
from llamarl.models.tiny import build_tiny


def test_what_others_script_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "llama-3.1-8b", "--gpus", "16", "--gpu", "h100", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["fits"] is True and result["mode"] in ("asynchronous", "synchronous")
    assert {"step_seconds", "synchronous_step_seconds", "placement"} <= result.keys()
    assert result["memory_gib"]["trainer"]["weights"] > 0 and result["memory_gib"]["generator"]["cache"] > 0
    trainer = result["placement"]["trainer"]
    assert trainer["ranks"] == trainer["fsdp"] * trainer["tp"]
    assert {"device", "precision"} <= trainer.keys() and result["placement"]["generators"]


def test_what_cannot_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "llama-3.1-405b", "--gpus", "16", "--gpu", "h100"]
    assert main([*words, "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["fits"] is False and "GiB" in result["reason"] and result["nearest"]["gpus"] > 16
    assert main(words) == 1
    assert f"nearest: --gpus {result['nearest']['gpus']}" in capsys.readouterr().out


def test_large_and_small_numbers_read_as_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "llama-3.1-70b", "--gpus", "2048"]) == 0
    text = capsys.readouterr().out
    assert "on 2,048 x h100" in text
    assert "e+" not in text


def test_words_and_the_placement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "placement.toml"
    assert main(["plan", "--model", "qwen3-30b-a3b", "--gpus", "32", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for part in ("30,532,122,624 parameters", "synchronous step", "gathered weights", "together", "assumed:", str(out)):
        assert part in text
    record = tomllib.loads(out.read_text())["placement"]
    assert record["trainer"]["fsdp"] * record["trainer"]["tp"] == record["trainer"]["ranks"]
    assert record["generators"][0]["replicas"] >= 1


def test_adapters_fit_where_the_whole_model_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "llama-3.1-8b", "--gpus", "1", "--json"]
    assert main(words) == 1
    capsys.readouterr()
    assert main([*words, "--lora-rank", "16"]) == 0
    result = json.loads(capsys.readouterr().out)
    numbers = result["model"]["adapter_parameters"]
    assert numbers == 41_943_040 and result["published_gib"] == pytest.approx(4 * numbers / 2**30)
    assert result["checkpoint_gib"] == pytest.approx(12 * numbers / 2**30)
    (generators,) = result["placement"]["generators"]
    assert (generators["kind"], generators["tp"]) == ("native", 1)
    assert result["settings"]["trainer.lora.rank"] == 16
    assert main([*words[:-1], "--lora-rank", "16"]) == 0
    assert "41,943,040 in adapters, which alone are trained" in capsys.readouterr().out
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'model = "llama-3.1-8b"\ndata = {source = "prompts.jsonl"}\njudges = [{function = "format"}]\n'
        "trainer = {lora = {rank = 8}}\n"
    )
    assert main(["plan", str(recipe), "--gpus", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["adapter_parameters"] == 41_943_040 // 2


def test_a_models_own_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_tiny("qwen2", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()  # the config is enough
    assert main(["plan", "--model", str(model), "--gpus", "2", "--gpu", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["placement"]["trainer"]["device"] == "cpu" and result["model"]["parameters"] > 0


def test_a_config_with_a_size_that_cannot_be_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_tiny("qwen2", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": 0}))
    assert main(["plan", "--model", str(model)]) == 2
    assert "hidden_size=0, which must be a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "8"], "no model given"),
        (["--model", "llama-3.1-9b"], "Did you mean 'llama-3.1-8b'"),
        (["--model", "llama-3.1-8b", "--gpu", "h101"], "Did you mean 'h100'"),
        (["--model", "llama-3.1-8b", "--tokens", "4096"], "give MEAN,MAX"),
        (["--model", "llama-3.1-8b", "--tokens", "4096,512"], "at most the longest"),
        (["--model", "llama-3.1-8b", "--gpus", "0"], "must be at least 1"),
        (
            ["--model", "llama-3.1-8b", "--report", "x.html"],
            "is the page of a simulation; add --simulate",
        ),
        (["--model", "llama-3.1-8b", "--figure", "x.png"], "is the picture of a simulation; add --simulate"),
        (["--model", "llama-3.1-8b", "--simulate", "--report", "x.png"], "give a name that ends in .html"),
        (["--model", "llama-3.1-8b", "--gpus", "8", "--simulate", "--figure", "x.xyz"], "no figure is written as .xyz"),
    ],
)
def test_bad_input_names_the_option_and_the_remedy(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_simulation_writes_only_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", "--model", "llama-3.1-8b", "--gpus", "8", "--simulate", "--simulated-steps", "6"]
    assert main(words) == 0
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--figure", "run.png"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.png"]


def test_a_plan_needs_no_torch() -> None:
    program = (
        "import sys; from llamarl.cli.main import main; main(['plan', '--model', 'llama-3.1-8b', '--gpus', '8']);"
        "print(sorted({'torch', 'transformers', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
