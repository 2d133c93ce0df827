import ctypes
import json
import os

import pytest

from llamarl.cli.budget_commands import _silence_stdout
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
        (["--q-plus", "1.25"], "--q-plus: must be at most 1.0; got 1.25"),
        ([], "no budget given: use --q-plus Q"),
        (["--mean-cost", "4"], "give both or neither"),
        (["--q-plus", "0.5", "--cost-field", "tokens"], "give both or neither"),
        (["--q-plus", "0.5", "--cap", "tool"], "--cap tool: write NAME=Q"),
        (["--q-plus", "0.5", "--cap", "=0.1"], "--cap =0.1: write NAME=Q"),
        (["--q-plus", "0.5", "--cap", "long=0.1"], "--cap long: the group has a cap by --q-plus already"),
        (["--q-plus", "0.5", "--cap", "a=.1", "--cap", "a=.9"], "--cap a=.9: a=0.1 is given already"),
        (["--q-plus", "0.5", "--time-limit", "0"], "--time-limit: must be greater than 0.0; got 0"),
        (["--q-plus", "0.5", "--long-group", "lon"], "pool.jsonl, line 2, field 'group': 'long' is no group"),
    ],
)
def test_solve_refuses_wrong_input_and_writes_nothing(options, message, data, tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    assert main(["budget", "solve", "--data", data, "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_solve_refuses_a_directory_as_its_file(data, tmp_path, capsys):
    assert main(["budget", "solve", "--data", data, "--q-plus", "0.5", "--out", str(tmp_path)]) == 2
    assert "a directory; name a file in it" in capsys.readouterr().err


def test_solve_reads_csv(tmp_path):
    data, out = tmp_path / "pool.csv", tmp_path / "o.jsonl"
    data.write_text("prompt,group,correct\neasy,short,True\neasy,long,1\nhard,short,0\nhard,long,true\nhard,,false\n")
    assert main(["budget", "solve", "--data", str(data), "--q-plus", "0.5", "--out", str(out)]) == 0
    assert [row["z"] for row in read(out)] == [1, 0, 0, 1, 0]


def test_what_native_code_prints_is_dropped_while_solving(capfd):
    with _silence_stdout():
        ctypes.CDLL(None).puts(b"from C")
        os.write(1, b"past its buffer")
    print("after")
    assert capfd.readouterr().out == "after\n"


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
    shown = capsys.readouterr().out
    assert "3 prompts: 2 voting, 1 no right voting answer\n2 rows, 100.0% of them votes, written to" in shown


def test_build_asv_mixes_by_share(tmp_path, capsys):
    data, out = write(tmp_path / "p.jsonl", PROBLEMS), tmp_path / "sft.jsonl"
    assert main(["budget", "build-asv", "--data", data, "--out", str(out), "--voting-share", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["counts"]["short"] == 2 and record["voting_share"] == 0
    assert [row["group"] for row in read(out)] == ["short", "short"]


def test_a_model_makes_the_attempts(tmp_path, capsys):
    model = build_tiny("llama", tmp_path / "model", max_position_embeddings=1024)
    data = write(tmp_path / "p.jsonl", PROBLEMS[:1])
    command = ["budget", "build-sv", "--data", data, "--out", str(tmp_path / "o.jsonl"), "--model", str(model)]
    assert main([*command, "--samples", "2", "--max-tokens", "4"]) == 2
    shown = capsys.readouterr().err
    assert "no demonstration can be made of it: 1 no right voting answer" in shown and "2/2 replies" in shown
    command[1] = "build-asv"
    assert main([*command, "--samples", "3", "--max-tokens", "4"]) == 2
    assert "3 replies, 2 of them there already" in capsys.readouterr().err  # one store for both kinds
    assert main([*command, "--samples", "0"]) == 2


@pytest.mark.parametrize("kind", ["build-sv", "build-asv"])
def test_math_style_rows_are_read_as_they_are(kind, tmp_path):
    rows = [
        {"problem": "3 + 4?", "solution": "3 + 4 is \\boxed{7}", "level": "Level 1"},
        {"problem": "3 + 5?", "answer": "8", "solution": "it is \\boxed{8}"},
        {"question": "3 + 6?", "answer": "9", "completions": ["\\boxed{9}"] * 3},
    ]
    data, out = write(tmp_path / "p.jsonl", rows), tmp_path / "sft.jsonl"
    for row in rows:
        data = write(tmp_path / "p.jsonl", [row])
        assert main(["budget", kind, "--data", data, "--out", str(out)]) == 0
        (found,) = read(out)
        assert next(iter(row.values())) in found["messages"][0]["content"]
        assert found["num_trials"] in (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "."], "--out .: a directory; name a file in it"),
        (
            ["--out", "o.jsonl", "--rl-prompts", "p.jsonl/rl.jsonl"],
            "--rl-prompts p.jsonl/rl.jsonl: no directory p.jsonl can",
        ),
        (["--out", "o.jsonl", "--rl-prompts", "."], "--rl-prompts .: a directory"),
        (["--out", "o.jsonl", "--rl-prompts", "./o.jsonl"], "--out and --rl-prompts name the same file"),
    ],
)
def test_files_that_cannot_be_written_are_refused_at_once(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.jsonl", PROBLEMS)
    assert main(["budget", "build-asv", "--data", "p.jsonl", *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_building_refuses_rows_without_answers(tmp_path, capsys):
    data = write(tmp_path / "p.jsonl", [{"id": "a", "prompt": "3 + 4?", "completions": ["7"]}])
    assert main(["budget", "build-asv", "--data", data, "--out", str(tmp_path / "o.jsonl")]) == 2
    assert "prompt 'a': no answer" in capsys.readouterr().err
