import json
from pathlib import Path

import pytest

from llamarl.cli.main import main
from llamarl.data import read_prompts
from llamarl.evals.conversations import read_conversations
from llamarl.tasks.instructions import LANGUAGES


def test_rows_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "train.jsonl"
    assert main(["data", "instructions", "--languages", "fr", "--count", "4", "--turns", "3", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"4 rows in fr written to {out}\n"
    prompts = read_prompts(out, format="llamarl")
    assert [prompt.id for prompt in prompts] == ["fr-0-0", "fr-0-1", "fr-0-2", "fr-0-3"]
    assert all(3 <= len(prompt.info["instructions"]) <= 5 for prompt in prompts)


def test_conversations_to_evaluate_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "held_out.jsonl"
    options = ["--languages", "all", "--count", "2", "--turns", "2", "--format", "conversations", "--json"]
    assert main(["data", "instructions", *options, "--out", str(out)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == {"file": str(out), "lines": 16, "format": "conversations", "languages": list(LANGUAGES)}
    conversations = read_conversations(out)
    assert [one.language for one in conversations] == [code for code in LANGUAGES for _ in range(2)]
    assert all(len(one.turns) == 2 for one in conversations)


def test_standard_output_and_several_languages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "instructions", "--languages", "hi,zh", "--languages", "hi", "--count", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["info"]["language"] for row in rows] == ["hi", "zh"]


def test_other_counts_and_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    written = []
    for options in (["--count", "2"], ["--count", "5"], ["--count", "2", "--seed", "1"]):
        main(["data", "instructions", *options])
        written.append(capsys.readouterr().out.splitlines())
    assert written[1][:2] == written[0] != written[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--languages", "xx"], "language='xx'"),
        (["--count", "0"], "count=0; give at least 1"),
        (["--turns", "4"], "turns=4; give 1 to 3"),
        (["--json"], "give --out FILE"),
    ],
)
def test_wrong_options(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [] if options == ["--json"] else ["--out", str(tmp_path / "out.jsonl")]
    assert main(["data", "instructions", *options, *out]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
