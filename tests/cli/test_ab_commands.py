import json
import subprocess
import sys
from pathlib import Path

import pytest

from llamarl.cli.main import main, split_command


def write_rows(path: Path, users: int = 200) -> Path:
    """Two arms of as many users, with four messages each; of every fifth message of warm one more is loved."""
    rows = [
        {
            "user": who,
            "arm": ("base", "warm")[who % 2],
            "reacted": (who + 3 * index) % (8 if who % 2 else 16) < 2,
            "ts": f"2025-03-0{1 + index}T10:00:00Z",
            "turns": 1 + (who * index) % 3,
        }
        for who in range(users)
        for index in range(4)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_what_others_script_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_rows(tmp_path / "test.jsonl")
    assert main(["feedback", "ab", str(log), "--control", "base", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["arms"].keys() == {"base", "warm"}
    for arm in result["arms"].values():
        assert {"rate", "relative_change", "interval", "p", "always_valid_interval"} <= arm.keys()
        assert len(arm["interval"]) == len(arm["always_valid_interval"]) == 2
    assert result["sample_ratio_p"] == 1.0


def test_tables_and_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    log, report = write_rows(tmp_path / "test.jsonl"), tmp_path / "report.html"
    words = ["feedback", "ab", str(log), "--control", "base", "--margins", "turns=-0.1", "--report", str(report)]
    assert main(words) == 0
    out = capsys.readouterr().out
    for text in ("love rate", "for one look", "always valid", "turns", "The arms are as large as planned"):
        assert text in out
    assert f"the report is {report}" in out and report.exists()


def test_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["feedback", "ab", "plan", "--base-rate", "0.02", "--change", "0.1", "--users-per-day", "2000"]
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {"users", "users_per_arm", "days", "messages", "power", "curve"} <= plan.keys()
    assert main(words) == 0
    assert f"{plan['days']} days find a change of +10.0% with power 80%" in capsys.readouterr().out


def test_a_file_named_like_the_subcommand_is_given_with_its_folder() -> None:
    assert split_command(["feedback", "ab", "plan", "--json"]) == ("feedback ab plan", ["--json"])
    assert split_command(["feedback", "ab", "./plan"]) == ("feedback ab", ["./plan"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ab", "nowhere.jsonl", "--control", "a"], "nowhere.jsonl: no such file"),
        (["ab", "test.jsonl"], "--control"),
        (["ab", "test.jsonl", "--control", "cold"], "control: no row is of arm 'cold'"),
        (["ab", "test.jsonl", "--control", "base", "--report", "test.jsonl"], "ends in .html"),
        (["ab", "test.jsonl", "--control", "base", "--margins", "turns=0"], "a relative change above -1"),
        (
            ["ab", "plan", "--base-rate", "2", "--change", "0.1", "--users-per-day", "9"],
            "--base-rate: must be less than 1",
        ),
        (["ab", "plan", "--base-rate", "0.1"], "--change"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_with_status_2(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    log = write_rows(tmp_path / "test.jsonl")
    before = log.read_bytes()
    assert main(["feedback", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert log.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["test.jsonl"]


@pytest.mark.parametrize("command", [["ab"], ["ab", "plan"]])
def test_help_is_quick(command: list[str]) -> None:
    program = (
        "import sys; from llamarl.cli.main import main\n"
        "try: main(['feedback', *sys.argv[1:], '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'duckdb', 'pyarrow', 'matplotlib', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"llamarl feedback {' '.join(command)}" in done.stdout
