import json

import pytest
import torch

from llamarl.cli.main import main
from llamarl.data import read_prompts
from llamarl.judges.config import JudgeConfig, build_judge
from llamarl.models.tiny import build_tiny


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build_tiny("llama", tmp_path_factory.mktemp("models") / "lm"))


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"say {n}", "chosen": "#" * (n % 5 + 1), "rejected": "a" * (n % 7 + 1)} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "pairs.jsonl")


def run(*words):
    return main([str(word) for word in words])


def test_a_reward_model_from_the_command_line(model, pairs, tmp_path, capsys):
    out = tmp_path / "out"
    settings = ("--batch-size", 8, "--learning-rate", "3e-3", "--held-out", "0.3", "--num-epochs", 3)
    assert run("reward", "train", pairs, "--model", model, "--out", out, "--quiet", *settings) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["trained", "held", "length", "model", "figure"]
    assert "accuracy" in lines[1] and f"{out}/model (weights of step" in lines[3]
    judge = build_judge(JudgeConfig(function="reward_model", settings={"model": f"{out}/model"}))
    assert judge.name == "reward_model"
    assert run("reward", "train", pairs, "--model", model, "--out", out, *settings) == 1
    assert "holds a finished training" in capsys.readouterr().err


def test_its_result_as_json(model, pairs, tmp_path, capsys):
    words = ("--out", tmp_path / "out", "--json", "--batch-size", 20, "--held-out", 0.3)
    assert run("reward", "train", pairs, "--model", model, *words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["rows"]["train"] + summary["rows"]["held_out"] == 40


def test_settings_are_listed_and_wrong_ones_refused(model, pairs, tmp_path, capsys):
    assert run("reward", "train", "--list-settings") == 0
    assert "num_epochs = 1  # Times each row is seen; instead of `num_steps`." in capsys.readouterr().out
    assert run("reward", "train", pairs, "--model", model, "--out", tmp_path / "o", "--num-epoch", 2) == 2
    assert "--num-epoch: unknown key. Did you mean 'num_epochs'?" in capsys.readouterr().err
    assert run("reward", "train", pairs) == 2
    assert "DATA, --model or --out is missing: use llamarl reward train" in capsys.readouterr().err


def test_baselines_are_sampled_once_per_prompt_and_reproducible(model, tmp_path, capsys):
    rows = [{"prompt": f"say {n}", "answer": n} for n in range(5)] + [{"prompt": "mine", "info": {"baseline": "own"}}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for file, slots in zip(files, (64, 2), strict=True):
        words = ("--data", tmp_path / "prompts.jsonl", "--out", file, "--max-tokens", 6, "--slots", slots, "--quiet")
        assert run("reward", "baselines", "--model", model, *words) == 0
    out = capsys.readouterr().out
    assert "5 baselines" in out and "1 kept theirs; written to" in out
    made = read_prompts(files[0])
    assert [prompt.id for prompt in made] == [prompt.id for prompt in read_prompts(tmp_path / "prompts.jsonl")]
    assert made[5].info["baseline"] == "own" and "baseline_finish_reason" not in made[5].info
    assert {prompt.info["baseline_finish_reason"] for prompt in made[:5]} <= {"length", "stop"}
    assert len({prompt.info["baseline"] for prompt in made[:5]}) == 5
    assert [p.info["baseline"] for p in made] == [p.info["baseline"] for p in read_prompts(files[1])]
    judge = build_judge(JudgeConfig(function="reward_model", settings={"model": model, "calibrated": True}))
    assert all(isinstance(judge._baseline_text(prompt), str) for prompt in made)


def test_the_result_of_baselines_as_json(model, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hi"}\n')
    words = ("--data", tmp_path / "prompts.jsonl", "--out", tmp_path / "o.jsonl", "--max-tokens", 2, "--json")
    assert run("reward", "baselines", "--model", model, *words) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["prompts"], result["made"], result["kept"]) == (1, 1, 0)
