import json

import pytest

from llamarl.cli.main import main
from llamarl.data.prompts import read_prompts
from llamarl.models.tiny import build_tiny

ROWS = [
    {"prompt": "easy", "group": "short", "correct": True, "tokens": 10},
    {"prompt": "easy", "group": "long", "correct": True, "tokens": 90},
    {"prompt": "hard", "group": "short", "correct": False, "tokens": 12, "note": "kept"},
    {"prompt": "hard", "group": "long", "correct": True, "tokens": 80},
    {"prompt": "hopeless", "group": None, "correct": False, "tokens": 1},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "pool.jsonl", ROWS)


def test_solve_writes_the_rows_in_order_with_z(data, tmp_path, capsys):
    out = tmp_path / "chosen.jsonl"
    assert main(["budget", "solve", "--data", data, "--q-plus", "0.5", "--out", str(out)]) == 0
    assert read(out) == [{**row, "z": z} for row, z in zip(ROWS, [1, 0, 0, 1, 0], strict=True)]
    text = capsys.readouterr().out
    assert "3 prompts, 5 responses (1 malformed)" in text
    assert "1 short, 1 long; 1 prompts rejected" in text
    assert "long share of the chosen 0.5, at most 0.5 (slack 0)" in text
    assert "optimal" in text and "milp" in text


def test_solve_reports_as_json(data, tmp_path, capsys):
    command = ["budget", "solve", "--data", data, "--out", str(tmp_path / "o.jsonl"), "--json"]
    assert main([*command, "--cost-field", "tokens", "--mean-cost", "45"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["spending"]["mean_cost"] == {"used": 45.0, "bound": 45.0, "slack": 0.0}
    assert record["num_accepted"] == {"short": 1, "long": 1} and record["num_rejected"] == 1
    assert record["status"] == "optimal"


def test_solve_takes_further_groups_and_other_names(tmp_path):
    rows = [{**row, "group": {"short": "0", "long": "+", None: None}[row["group"]]} for row in ROWS]
    data, out = write(tmp_path / "p.jsonl", [*rows, {**ROWS[3], "prompt": "x", "group": "tool"}]), tmp_path / "o.jsonl"
    command = ["budget", "solve", "--data", data, "--out", str(out), "--q-plus", "0.5", "--long-group", "+"]
    assert main([*command, "--short-group", "0", "--cap", "tool=0.3"]) == 0
    assert [row["z"] for row in read(out)] == [1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--q-plus", "1.25"], "the cap of group 'long' is 1.25; a share lies between 0 and 1"),
        ([], "give a budget: --q-plus Q"),
        (["--mean-cost", "4"], "give both or neither"),
        (["--q-plus", "0.5", "--cost-field", "tokens"], "give both or neither"),
        (["--q-plus", "0.5", "--cap", "tool"], "--cap tool: write NAME=Q"),
        (["--q-plus", "0.5", "--time-limit", "0"], "time_limit_seconds"),
        (["--q-plus", "0.5", "--long-group", "lon"], "pool.jsonl, line 2, field 'group': 'long' is no group"),
    ],
)
def test_solve_refuses_wrong_input_and_writes_nothing(options, message, data, tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    assert main(["budget", "solve", "--data", data, "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


PROBLEMS = [
    {"id": "a", "prompt": "3 + 4?", "answer": "7", "completions": [f"it is \\boxed{{{n}}}" for n in (7, 8, 7, 7)]},
    {"id": "b", "prompt": "3 + 5?", "answer": 8, "solution": "3 + 5 is \\boxed{8}"},
    {"id": "c", "prompt": "3 + 6?", "answer": "9", "completions": ["no idea"]},
]


def test_build_sv_writes_rows_for_sft_and_prompts_for_rl(tmp_path, capsys):
    data, out, prompts = write(tmp_path / "p.jsonl", PROBLEMS), tmp_path / "sft.jsonl", tmp_path / "rl.jsonl"
    assert main(["budget", "build-sv", "--data", data, "--out", str(out), "--rl-prompts", str(prompts)]) == 0
    assert [(row["id"], row["num_trials"]) for row in read(out)] == [("a", 4), ("b", 3)]
    assert [prompt.id for prompt in read_prompts(prompts)] == ["a", "b", "c"]
    assert "3 prompts: 2 voting, 1 no right voting answer; 2 rows written" in capsys.readouterr().out


def test_build_asv_mixes_by_share(tmp_path, capsys):
    data, out = write(tmp_path / "p.jsonl", PROBLEMS), tmp_path / "sft.jsonl"
    assert main(["budget", "build-asv", "--data", data, "--out", str(out), "--voting-share", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["short"] == 2
    assert [row["group"] for row in read(out)] == ["short", "short"]


def test_a_model_makes_the_attempts(tmp_path, capsys):
    model = build_tiny("llama", tmp_path / "model", max_position_embeddings=1024)
    data = write(tmp_path / "p.jsonl", PROBLEMS[:1])
    command = ["budget", "build-sv", "--data", data, "--out", str(tmp_path / "o.jsonl"), "--model", str(model)]
    assert main([*command, "--samples", "2", "--max-tokens", "4"]) == 2
    assert "no demonstration can be made of it: 1 no right voting answer" in capsys.readouterr().err
    assert main([*command, "--samples", "0"]) == 2


def test_building_refuses_rows_without_answers(tmp_path, capsys):
    data = write(tmp_path / "p.jsonl", [{"id": "a", "prompt": "3 + 4?", "completions": ["7"]}])
    assert main(["budget", "build-asv", "--data", data, "--out", str(tmp_path / "o.jsonl")]) == 2
    assert "prompt 'a': no answer" in capsys.readouterr().err
