import json
from pathlib import Path

import pytest

from llamarl.cli.main import main
from llamarl.models.tiny import build_tiny


def write_claims(place: Path) -> None:
    place.mkdir()
    for split, start, size in (("train", 0, 8), ("validation", 8, 6), ("test", 14, 6)):
        rows = [
            {
                "id": f"p{number}/0",
                "prompt": f"p{number}",
                "claim": f"City {number} is in France.",
                "label": number % 2 == 0,
                "rationale": "Because.",
                "question": {"question": f"Where is city {number}?", "answer": "France", "explanation": "So it is."},
            }
            for number in range(start, start + size)
        ]
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_from_claims_to_a_detector_and_its_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, claims, out = (str(tmp_path / name) for name in ("model", "claims", "detector"))
    build_tiny("llama", model, max_position_embeddings=512)
    write_claims(Path(claims))
    brief = ["--num-steps", "2", "--warmup-steps", "0", "--lora.rank", "2", "--device", "cpu"]
    assert main(["detect", "train", claims, "--model", model, "--out", out, *brief, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["method"] == "rate_ft" and summary["claims"] == {"train": 8, "validation": 6, "test": 6}
    assert json.loads((tmp_path / "detector" / "detector.json").read_text())["settings"]["lora"]["rank"] == 2
    assert main(["detect", "eval", "--scores", f"{out}/scores.jsonl", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["threshold"] == summary["threshold"] and results["auc"] == summary["test"]["auc"]

    zero = str(tmp_path / "zero")
    chosen = ["--method", "prompt_tf", "--out", zero, "--device", "cpu", "--quiet"]
    assert main(["detect", "train", claims, "--model", model, *chosen]) == 0
    text = capsys.readouterr().out
    assert "threshold" in text and "test AUC" in text and f"the detector is {zero}" in text

    again = ["--out", str(tmp_path / "again"), "--plain", *brief]
    assert main(["detect", "train", claims, "--model", model, *again]) == 0
    told = capsys.readouterr().err
    assert "2 steps" in told and "12/12 claims" in told and "there already" not in told


def test_what_is_missing_or_wrong_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "train", "--method", "rate_ft", "--list-settings"]) == 0
    assert "auxiliary = True" in capsys.readouterr().out
    assert main(["detect", "train", "claims"]) == 2
    assert "DATA, --model or --out is missing" in capsys.readouterr().err
    assert main(["detect", "train", "nowhere", "--model", "m", "--out", "d"]) == 2
    assert "nowhere: no such directory" in capsys.readouterr().err
    assert main(["detect", "train", "claims", "--model", "m", "--method", "rate", "--out", "d"]) == 2
    assert "method='rate': unknown" in capsys.readouterr().err
