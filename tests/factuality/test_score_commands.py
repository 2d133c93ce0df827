"""detect score and detect serve as a user types them, with a tiny model's Prompt-TF."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted_models import FACTS, RELATIONS
from tiny_detectors import write_tiny

from llamarl.cli.main import main
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.files import save_detector
from llamarl.factuality.detectors.prompt_tf import PromptTF
from tests.pages import read_page

ANSWER = "Lyon is a city in Spain. It has many bridges.\n\n- Nice lies by the sea.\n"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tiny")
    backbone = Backbone.load(write_tiny(directory / "model"), device="cpu", max_tokens=200)
    save_detector(PromptTF(backbone, threshold=0.5), directory / "detector")
    return str(directory / "detector")


@pytest.fixture
def answer(tmp_path: Path) -> str:
    (tmp_path / "answer.txt").write_text(ANSWER)
    return str(tmp_path / "answer.txt")


def score(*arguments: str, capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    assert main(["detect", "score", *arguments]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def test_json_is_exactly_the_list(detector: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    claims = json.loads(score("--text", answer, "--detector", detector, "--subject", "Lyon", "--json", capsys=capsys))
    assert [(each["claim"], each["span"]) for each in claims] == [
        ("Lyon is a city in Spain.", [0, 24]),
        ("Lyon has many bridges.", [25, 45]),
        ("Nice lies by the sea.", [49, 70]),
    ]
    assert all(list(each) == ["claim", "span", "p_factual", "mass"] for each in claims)
    assert all(0 <= each["p_factual"] <= 1 and 0 <= each["mass"] <= 1 for each in claims)


def test_text_on_the_terminal_and_a_page(detector: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(answer).with_name("page.html")
    out = score("--text", answer, "--detector", detector, "--threshold", "1", "--out", str(page), capsys=capsys)
    assert re.match(r"\[Lyon is a city in Spain\. [01]\.\d\d[^\]]*\] \[It has many bridges\. ", out)
    assert "3 of 3 claims doubtful" in out and "prompt_tf: a claim is doubtful at 1.000 or below" in out
    assert f"written: {page}" in out
    (marked,) = read_page(page).parts("marked")
    assert [mark["tone"] for mark in marked["pieces"] if mark["tone"]] == ["bad"] * 3


def test_several_texts_are_an_object_by_file(
    detector: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    pattern = str(tmp_path / "*.txt")
    found = json.loads(score("--text", pattern, "--detector", detector, "--json", capsys=capsys))
    assert {name: len(claims) for name, claims in found.items()} == {answer: 3, str(tmp_path / "empty.txt"): 0}
    out = score("--text", pattern, "--detector", detector, capsys=capsys)
    assert f"== {answer}" in out and "no claims" in out


def test_evidence_from_a_table(detector: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "facts.csv").write_text(FACTS)
    (tmp_path / "relations.toml").write_text(RELATIONS)
    options = ["--facts", str(tmp_path / "facts.csv"), "--relations", str(tmp_path / "relations.toml")]
    claims = json.loads(score("--text", answer, "--detector", detector, *options, "--json", capsys=capsys))
    assert [each["ruling"]["finding"] for each in claims] == ["contradicted", "undetermined", "undetermined"]
    assert "contradicted\n" in score("--text", answer, "--detector", detector, *options, capsys=capsys)


def test_a_claim_of_ten_thousand_tokens_has_no_score(
    detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text("Lyon is in Spain. It is " + "very " * 10_000 + "old.")
    short, long = json.loads(
        score("--text", str(tmp_path / "long.txt"), "--detector", detector, "--json", capsys=capsys)
    )
    assert short["p_factual"] is not None and long["p_factual"] is None and "tokens" in long["problem"]


def test_labelled_claims_go_through_to_detect_eval(
    detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {
            "id": f"p{number}/0",
            "prompt": f"p{number}",
            "claim": f"City {number} lies in {'Spain' if number % 2 else 'France'}.",
            "label": number % 2 == 0,
            "split": "test" if number % 3 else "validation",
        }
        for number in range(24)
    ]
    claims, out = tmp_path / "claims.jsonl", str(tmp_path / "scores.jsonl")
    claims.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = score("--claims-file", str(claims), "--detector", detector, "--out", out, capsys=capsys)
    assert "24 of 24 claims scored" in said and f"written: {out}" in said
    assert main(["detect", "eval", "--scores", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["prompt_tf"]["test"]["claims"] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "nothing.txt"], "--text nothing.txt: no such file"),
        (["--text", "{answer}", "--detector", "nowhere"], "nowhere: no such directory"),
        (["--text", "{answer}", "--out", "page.txt"], "give a name that ends in .html"),
        (["--text", "{answer}", "--facts", "nothing.csv"], "nothing.csv"),
        ([], "give --text FILE or --claims-file FILE"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    options: list[str], message: str, detector: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [each.replace("{answer}", answer) for each in options]
    given += [] if "--detector" in given else ["--detector", detector]
    said = score(*given, capsys=capsys, status=2)
    assert message in said and "Traceback" not in said


def test_a_service_says_what_the_command_says_and_ends_in_order(
    detector: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads(score("--text", answer, "--detector", detector, "--json", capsys=capsys))
    program = "from llamarl.cli.program import run; run()"
    command = [sys.executable, "-c", program, "detect", "serve", "--detector", detector, "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[2].removesuffix(";")
        with httpx.Client(trust_env=False, timeout=60) as client:
            claims = client.post(url, json={"text": ANSWER}).json()
            assert client.post(url, json={}).status_code == 400
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.returncode == 0 and rest == "answered 2 requests\n"
    assert [each["claim"] for each in claims] == [each["claim"] for each in expected]
    for ours, theirs in zip(claims, expected, strict=True):
        assert ours["p_factual"] == pytest.approx(theirs["p_factual"], abs=1e-5)
        assert ours["mass"] == pytest.approx(theirs["mass"], abs=1e-5)


def test_a_service_for_others_needs_a_token(detector: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "serve", "--detector", detector, "--host", "0.0.0.0"]) == 2
    assert "--token-env VARIABLE" in capsys.readouterr().err


def test_a_page_replaces_no_text(detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "answer.html"
    text.write_text(ANSWER)
    for name in (str(text), str(tmp_path / "*.html")):
        error = score("--text", name, "--detector", detector, "--out", str(text), capsys=capsys, status=2)
        assert "holds the text" in error and text.read_text() == ANSWER


def test_a_path_that_takes_no_file_is_one_line(detector: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = score("--text", answer, "--detector", detector, "--out", f"{answer}/page.html", capsys=capsys, status=1)
    assert error.startswith("error: ") and "answer.txt" in error and error.count("\n") == 1
    assert Path(answer).read_text() == ANSWER
    error = score("--text", "a" * 5000, "--detector", detector, capsys=capsys, status=2)
    assert "no such file" in error and "Traceback" not in error
