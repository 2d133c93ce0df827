import json
from pathlib import Path

import pytest

from llamarl.cli.main import main
from llamarl.models.tiny import build_tiny


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


def test_from_a_store_to_scores_of_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "user": f"user-{user}",
            "ts": f"2025-03-{1 + number:02d}T10:{user % 60:02d}:00Z",
            "prompt": f"ask {user} {number}",
            "response": "#abc" if (is_loved := (user + number) % 6 == 0) else "abc",
            "reaction": "love" if is_loved else None,
            "surface": ("web", "ios")[user % 2],
        }
        for user in range(50)
        for number in range(12)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store, model, love = (str(tmp_path / name) for name in ("store", "model", "love"))
    build_tiny("llama", model)
    run_json(capsys, "feedback", "ingest", str(tmp_path / "log.jsonl"), "--out", store, "--keep-suspicious")
    brief = ["--num-steps", "6", "--batch-size", "8", "--held-out", "0.2", "--device", "cpu"]
    fitted = run_json(capsys, "feedback", "fit", store, "--model", model, "--out", love, *brief)
    assert list(fitted)[:4] == ["auroc", "auroc_interval", "base_rate", "length_correlation"]
    assert 0.0 <= fitted["auroc"] <= 1.0 and fitted["base_rate"] == pytest.approx(1 / 6, abs=0.03)

    assert main(["feedback", "fit", store, "--model", model, "--out", f"{love}-2", *brief]) == 0
    shown = capsys.readouterr()
    assert "held out       AUROC" in shown.out and "AUROC by surface: ios" in shown.out
    assert "note: trained on messages before 2025-03-" in shown.err
    is_unproven = fitted["auroc_interval"] is None or fitted["auroc_interval"][0] <= 0.5
    assert ("warning: not shown to tell loved replies" in shown.out) == is_unproven

    for name, text in (("control", "abc"), ("new", "#abc")):
        answers = [{"prompt": f"ask {number}", "completion": text} for number in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, answers)))
    policies = [f"{name}={tmp_path / name}.jsonl" for name in ("control", "new")]
    scores = run_json(capsys, "feedback", "evaluate", *policies, "--reward-model", love, "--device", "cpu")
    assert scores["prompts"] == 5 and set(scores["policies"]) == {"control", "new"}
    assert main(["feedback", "evaluate", *policies, "--reward-model", love, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "5 prompts; P[Love] at a base rate of" in shown and "against control, prompt by prompt" in shown


def test_the_settings_of_a_fit_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["feedback", "fit", "--list-settings"]) == 0
    assert "positive_share" in capsys.readouterr().out


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
        (["fit", "store"], "STORE, --model or --out is missing"),
        (["fit", "store", "--model", "m", "--out", "o", "--positive-share", "2"], "--positive-share"),
        (["evaluate", "new", "--reward-model", "love"], "write NAME=FILE"),
        (["evaluate", "new=a", "new=b", "--reward-model", "love"], "new=a is given already"),
        (["evaluate", "new=nowhere.jsonl", "--reward-model", "love"], "nowhere.jsonl: no such file"),
        (["evaluate", "a=a.jsonl", "--reward-model", "love", "--online", "rates.csv"], "rates.csv: no such file"),
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
