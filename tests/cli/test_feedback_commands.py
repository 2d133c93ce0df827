import json
from pathlib import Path

import pytest

from llamarl.cli.main import main


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_from_simulation_to_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, store = str(tmp_path / "log"), str(tmp_path / "store")
    simulated = run_json(capsys, "feedback", "simulate", "--out", log, "--users", "60", "--days", "14", "--seed", "1")
    assert simulated["rows"] == len((tmp_path / "log" / "logs.jsonl").read_text().splitlines())
    ingested = run_json(capsys, "feedback", "ingest", f"{log}/logs.jsonl", "--out", store)
    assert ingested["rows"] == simulated["rows"] == ingested["kept"] + sum(ingested["dropped"].values())
    assert {"rows", "kept", "dropped", "users", "suspicious_users"} <= ingested.keys()
    assert 0 < ingested["users"] <= 60
    described = run_json(capsys, "feedback", "describe", store)
    assert described["messages"] == ingested["kept"]

    assert main(["feedback", "ingest", f"{log}/logs.jsonl", "--out", store, "--keep-suspicious"]) == 0
    assert "rows kept, of 60 users" in capsys.readouterr().out
    assert main(["feedback", "describe", store]) == 0
    text = capsys.readouterr().out
    assert "model_version" in text and "r with outcome" in text and "sentiment" in text


def test_a_bad_row_is_shown_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"user": "u", "ts": "2025-03-01T10:00:00Z", "prompt": "p", "response": "r"}
    log = tmp_path / "log.jsonl"
    log.write_text(f"{json.dumps(row)}\n{json.dumps({**row, 'ts': 'never'})}\n")
    assert main(["feedback", "ingest", str(log), "--out", str(tmp_path / "store")]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 rows kept" in out
    assert "dropped: 1 bad_time" in out
    assert f"{log}, line 2, field ts: bad_time" in out
    assert "note: no message has a love reaction" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ingest", "nowhere.jsonl", "--out", "store"], "nowhere.jsonl: no such file"),
        (["ingest", "log.jsonl"], "--out"),
        (["describe", "nothing"], "no store of messages"),
        (["simulate", "--out", "x", "--users", "0"], "--users: must be at least 1"),
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
    assert main(["feedback", *arguments]) == 2
    assert words in capsys.readouterr().err
