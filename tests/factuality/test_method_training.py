"""`detect train` with the methods that train no adapter, from the files of a build to a detector that loads."""

import json
import os

import pytest
from tiny_detectors import write_tiny

from llamarl.core.errors import CheckpointError, DataError
from llamarl.factuality.detectors.files import load_detector
from llamarl.factuality.detectors.method import METHODS, find_method
from llamarl.factuality.labelled import read_data
from llamarl.factuality.settings import Train
from llamarl.factuality.training import train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("tiny") / "model"))


def write_claims(place, names=("prompt_text",)):
    """Claims of answers of two sentences; files as `detect build` leaves them."""
    place.mkdir()
    number, answers = 0, []
    for split, size in (("train", 40), ("validation", 16), ("test", 16)):
        rows = []
        for _ in range(size):
            label = number % 2 == 0
            text = f"It is old. City {number}{'A' if label else 'Z'}"
            answers.append({"id": f"p{number}", "result": {"text": text, "finish_reason": "stop"}})
            row = {"id": f"p{number}/0", "prompt": f"p{number}", "claim": text[11:], "span": [11, len(text)]}
            known = {"prompt_text": f"Tell me about city {number}."} if names else {}
            rows.append({**row, **known, "label": label, "rationale": "So it is.", "question": None})
            number += 1
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return place


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("token_probability", {"pool": "worst-3"}),
        ("token_entropy", {"tokens": "values"}),
        ("probe", {"learning_rates": [1e-2], "max_epochs": 5}),
    ],
)
def test_from_claims_to_a_detector(model, tmp_path, method, settings):
    claims, notes = write_claims(tmp_path / "claims"), []
    setup = Train(data=claims, model=model, method=method, out=tmp_path / "out", device="cpu")
    summary = train(setup, settings, tell=notes.append)
    assert summary["method"] == method and summary["unscored"] == {}
    assert not (tmp_path / "out" / "training").exists()
    detector = load_detector(tmp_path / "out", device="cpu")
    data = read_data(claims)
    scores = detector.score([each.claim for each in data.test])
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    stored = [row["score"] for row in rows if row["split"] == "test"]
    assert [score.p_factual for score in scores] == pytest.approx(stored, rel=1e-3)
    assert detector.threshold == summary["threshold"]
    if method == "probe":
        assert "4 probes tried" in notes[-1] and summary["test"]["auc"] > 0.9


def test_a_killed_probe_training_does_not_read_states_again(model, tmp_path):
    claims = write_claims(tmp_path / "claims")
    setup = Train(data=claims, model=model, method="probe", out=tmp_path / "out", device="cpu")
    seen = []

    def stop(note):
        seen.append({file.name for file in (tmp_path / "out" / "training").iterdir()})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(setup, {"max_epochs": 2}, tell=stop)
    file = tmp_path / "out" / "training" / seen[0].pop()
    os.utime(file, (1, 1))  # would be new if it were written again
    ages = []
    train(setup, {"max_epochs": 2}, tell=lambda note: ages.append(file.stat().st_mtime))
    assert ages == [1.0]


def test_a_method_that_scores_nothing_says_why(model, tmp_path):
    setup = Train(
        data=write_claims(tmp_path / "c"), model=model, method="prompt_prob", out=tmp_path / "o", device="cpu"
    )
    with pytest.raises(DataError, match="'states no probability': 32"):
        train(setup, {"max_new_tokens": 4})


@pytest.mark.parametrize("method", ["token_probability", "token_entropy", "selfcheck"])
def test_methods_that_read_the_prompt_need_it(model, tmp_path, method):
    claims = write_claims(tmp_path / "c", names=())
    with pytest.raises(DataError, match="'no prompt': 32"):
        train(Train(data=claims, model=model, method=method, out=tmp_path / "o", device="cpu"))


@pytest.mark.parametrize("method", METHODS)
def test_settings_read_back_as_they_were_written(method):
    kind = find_method(method)
    plain = json.loads(json.dumps(kind.Settings().model_dump(mode="json")))
    assert kind.Settings.parse(plain) == kind.Settings() and kind.name == method


def test_settings_of_several_values_take_one():
    probe, check = find_method("probe").Settings, find_method("selfcheck").Settings
    assert probe.parse({"variants": "last", "learning_rates": 0.01}).variants == ("last",)
    assert check.parse({"facts": "facts.csv"}).facts == ("facts.csv",)


def test_a_probe_without_its_weights_is_refused(model, tmp_path):
    claims = write_claims(tmp_path / "claims")
    train(
        Train(data=claims, model=model, method="probe", out=tmp_path / "out", device="cpu"),
        {"max_epochs": 1, "variants": ["last"], "learning_rates": [1e-3]},
    )
    (tmp_path / "out" / "probe.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no probe\.safetensors"):
        load_detector(tmp_path / "out", device="cpu")
