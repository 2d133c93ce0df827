"""The command line: what a user types, sees, and gets as exit status."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Reply

from llamarl.cli.main import main
from tests.pages import read_page

JUDGES = """
def exact(prompt, completion):
    return completion.text == prompt.answer

def soft(prompt, completion):
    return {"4": 0.9, "four": 0.6, "5": 0.2}.get(completion.text, 0.4)

def lenient(prompt, completion):
    return True

def strict(prompt, completion):
    return 0.0

def half(prompt, completion):
    return 0.0 if completion.text else "nothing to judge"

def broken(prompt, completion):
    return "fine"

def mixed(prompt, completion):
    return 1.0 if completion.text == "4" else "no number"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "j.py").write_text(JUDGES)
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt": "2+2?", "answer": "4", "completion": ["4", "5"], "label": [True, False]},
        {"id": "b", "prompt": "two and two?", "answer": "4", "completion": "four", "label": True},
        {"id": "c", "prompt": "1+1?", "answer": "2", "completion": "5", "label": False},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def llamarl(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    status = main(["judge", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_run_writes_a_line_per_completion_and_judge(folder: Path, capsys: Any) -> None:
    out = folder / "out.jsonl"
    judges = ("--judge", f"{folder}/j.py:exact", "--judge", f"{folder}/j.py:soft")
    status, text, _ = llamarl(capsys, "run", *judges, "--data", folder / "rows.jsonl", "--out", out, "--quiet")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert status == 0
    assert [(line["id"], line["sample"], line["judge"]) for line in lines[:4]] == [
        ("a", 0, "exact"),
        ("a", 0, "soft"),
        ("a", 1, "exact"),
        ("a", 1, "soft"),
    ]
    assert [line["score"] for line in lines if line["judge"] == "soft"] == [0.9, 0.2, 0.6, 0.2]
    assert "8 verdicts on 3 rows written to" in text


def test_run_does_not_go_on_with_another_judge_file(folder: Path, capsys: Any) -> None:
    rows, out = folder / "many.jsonl", folder / "out.jsonl"
    rows.write_text(json.dumps({"prompt": "x", "answer": "4", "completion": ["4"] * 64}) + "\n")
    arguments = ("--judge", f"{folder}/j.py:broken", "--data", rows, "--out", out, "--quiet")
    status, _, errors = llamarl(capsys, "run", *arguments)
    assert status == 1 and "failed its last 64 samples" in errors and not out.exists()
    (folder / "j.py").write_text(JUDGES.replace('"fine"', "1.0"))
    status, _, errors = llamarl(capsys, "run", *arguments)
    assert status == 2 and f"out.jsonl.partial: left by a job that differs in {folder}/j.py; undo" in errors
    (folder / "out.jsonl.partial").unlink()


def test_run_says_when_verdicts_failed(folder: Path, capsys: Any) -> None:
    out = folder / "out.jsonl"
    arguments = ("--judge", f"{folder}/j.py:mixed", "--data", folder / "rows.jsonl", "--out", out)
    status, text, _ = llamarl(capsys, "run", *arguments, "--quiet")
    assert status == 1 and "failed 3x, mixed: returned str 'no number'" in text
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [1.0, None, None, None]
    status, text, _ = llamarl(capsys, "run", *arguments, "--json")
    assert status == 1 and json.loads(text)["judges"][0]["failed"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "mth"], r"no shipped judge 'mth'"),
        (["--judge", "llm"], "base_url: required"),
        (["--judge", "no.toml"], "no.toml: no such file"),
        (["--judge", "math", "--max-in-flight", "0"], "--max-in-flight: must be at least 1; got 0"),
        (["--judge", "math", "--out", "ROWS"], "is the data itself"),
        (["--judge", "math", "--data", "nothing.jsonl"], "nothing.jsonl: no such file"),
    ],
)
def test_wrong_input_ends_with_status_2(folder: Path, capsys: Any, arguments: list[str], message: str) -> None:
    rows = str(folder / "rows.jsonl")
    arguments = [argument.replace("ROWS", rows) for argument in arguments]
    defaults = ["--data", rows, "--out", str(folder / "out.jsonl")]
    status, _, errors = llamarl(capsys, "run", *defaults, *arguments)
    assert status == 2 and message in errors
    assert not (folder / "out.jsonl").exists()


def test_a_bad_row_is_named(folder: Path, capsys: Any) -> None:
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "x", "completion": [1]}\n')
    arguments = ("--judge", "math", "--data", folder / "rows.jsonl", "--out", folder / "out.jsonl")
    status, _, errors = llamarl(capsys, "run", *arguments)
    assert status == 2 and "rows.jsonl, line 4, field 'completion[0]': got 1; give a text" in errors


def test_audit_warns_of_a_lenient_judge(folder: Path, capsys: Any) -> None:
    out, page = folder / "audit.json", folder / "audit.html"
    arguments = ("--judge", f"{folder}/j.py:lenient", "--out", out, "--report", page, "--quiet")
    status, text, _ = llamarl(capsys, "audit", *arguments)
    assert status == 1
    (chart,) = read_page(page).parts("rows")
    tones = {row["name"]: row["dots"][0]["tone"] for row in chart["rows"]}
    assert tones["empty"] == tones["all attacks"] == "bad" and tones["good"] == "good"
    assert any("passes 100.0% of what deserves nothing" in text for text in read_page(page).texts)
    assert "warning: judge 'lenient' passes 100.0% of what deserves nothing" in text
    report = json.loads(out.read_text())
    assert report["overall"][0]["rate"] == 1.0 and {each["attack"] for each in report["attacks"]} > {"empty", "good"}


@pytest.mark.parametrize(
    ("judge", "warning"),
    [
        ("strict", "judge 'strict' passes only 0.0% of the replies that should pass"),
        ("half", "judge 'half' failed on 3 of 18 replies, which are in no rate"),
    ],
)
def test_audit_refuses_a_judge_that_passes_or_judges_too_little(
    folder: Path, capsys: Any, judge: str, warning: str
) -> None:
    rows = folder / "good.jsonl"
    good = {"good": "4"} if judge == "strict" else {}
    texts = "".join(json.dumps({"prompt": f"{n}?", "answer": "4", "completion": "5", **good}) + "\n" for n in "abc")
    rows.write_text(texts)
    arguments = ("--judge", f"{folder}/j.py:{judge}", "--data", rows, "--attack", "empty", "--attack", "known_bad")
    status, text, _ = llamarl(capsys, "audit", *arguments, "--quiet")
    assert status == 1 and f"warning: {warning}" in text
    assert text.count("warning") == 1


def test_audit_is_content_with_an_exact_judge(folder: Path, capsys: Any) -> None:
    arguments = ("--judge", f"{folder}/j.py:exact", "--data", folder / "rows.jsonl", "--attack", "empty")
    status, text, _ = llamarl(capsys, "audit", *arguments, "--json")
    assert status == 0 and json.loads(text)["overall"][0]["rate"] == 0.0


BLOCK = re.compile(r"^```python(?: run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def audit_example(folder: Path, capsys: Any, source: str) -> tuple[int, dict[str, Any]]:
    (folder / "rewards.py").write_text(source)
    status, text, _ = llamarl(capsys, "audit", "--judge", f"{folder}/rewards.py:accuracy", "--json")
    return status, json.loads(text)


@pytest.mark.parametrize("page", ["README.md", "docs/guides/write-a-judge.md"])
def test_the_example_reward_passes_the_audit(folder: Path, capsys: Any, page: str) -> None:
    blocks = BLOCK.findall((Path(__file__).parents[2] / page).read_text(encoding="utf-8"))
    example = next(block for block in blocks if "def accuracy(" in block)
    status, report = audit_example(folder, capsys, example)
    assert status == 0 and report["problems"] == []
    assert {(each["attack"], each["rate"]) for each in report["attacks"]} >= {("answer_list", 0.0), ("good", 1.0)}


def test_the_naive_reward_does_not(folder: Path, capsys: Any) -> None:
    naive = "def accuracy(prompt, completion):\n    return prompt.answer in completion.text\n"
    status, report = audit_example(folder, capsys, naive)
    assert status == 1 and "65.2% of what deserves nothing in the attack answer_list" in " ".join(report["problems"])


def test_audit_holds_its_limit_for_each_kind_of_attack(folder: Path, capsys: Any) -> None:
    source = "def accuracy(prompt, completion):\n    return completion.text.rstrip(' .}').endswith(prompt.answer)\n"
    status, report = audit_example(folder, capsys, source)
    (total,) = report["overall"]
    assert total["rate"] < report["max_rate"] == 0.05
    assert status == 1 and "in the attack answer_list (limit 5.0%)" in " ".join(report["problems"])


def test_audit_says_when_nothing_was_judged(folder: Path, capsys: Any) -> None:
    arguments = ("--judge", f"{folder}/j.py:broken", "--data", folder / "rows.jsonl", "--attack", "empty")
    status, text, _ = llamarl(capsys, "audit", *arguments, "--quiet")
    assert status == 1 and "judged none of the attacks" in text


def test_calibrate_compares_with_labels(folder: Path, capsys: Any) -> None:
    out, figure = folder / "calibration.json", folder / "calibration.png"
    page = folder / "calibration.html"
    arguments = ("--data", folder / "rows.jsonl", "--out", out, "--figure", figure, "--report", page, "--quiet")
    status, text, _ = llamarl(capsys, "calibrate", "--judge", f"{folder}/j.py:soft", *arguments)
    (report,) = json.loads(out.read_text())["judges"]
    assert status == 0 and "Cohen's kappa" in text
    assert (report["agreement"], report["auroc"], report["scored"]) == (1.0, 1.0, 4)
    # bins: (0.2, 0.2) of 0 positives, 0.6 and 0.9 of 1 each: (2 * 0.2 + 0.4 + 0.1) / 4
    assert report["calibration_error"] == pytest.approx(0.225)
    assert figure.read_bytes().startswith(b"\x89PNG")
    (rates,), (reliability,) = read_page(page).parts("rows"), read_page(page).parts("lines")
    assert [dot["value"] for dot in rates["rows"][0]["dots"]] == [1.0, 1.0, 1.0]
    assert reliability["table"]["steps"] == [0, pytest.approx(0.2), pytest.approx(0.6), pytest.approx(0.9), 1]


def test_calibrate_counts_what_failed(folder: Path, capsys: Any) -> None:
    arguments = ("--judge", f"{folder}/j.py:mixed", "--data", folder / "rows.jsonl", "--json")
    status, text, _ = llamarl(capsys, "calibrate", *arguments)
    (report,) = json.loads(text)["judges"]
    assert status == 1 and (report["scored"], report["failed"], report["auroc"]) == (1, 3, None)


def test_calibrate_needs_labels(folder: Path, capsys: Any) -> None:
    rows = folder / "bare.jsonl"
    rows.write_text('{"prompt": "x", "completion": "y"}\n')
    status, _, errors = llamarl(capsys, "calibrate", "--judge", "math", "--data", rows)
    assert status == 2 and "bare.jsonl, line 1, field 'label'" in errors


def test_an_llm_judge_from_a_file(folder: Path, capsys: Any) -> None:
    def script(body: dict[str, Any]) -> Reply:
        share = 0.9 if "\n4\n</reply" in body["messages"][1]["content"] else 0.2
        return Reply("True", top_logprobs=[{"True": math.log(share), "False": math.log(1 - share)}])

    with FakeServer(script) as server:
        settings = (
            f'{{base_url = "{server.base_url}", model = "m", template = "factuality", cache = "{folder}/c.sqlite"}}'
        )
        (folder / "llm.toml").write_text(f'function = "llm"\nsettings = {settings}\n')
        arguments = ("--judge", folder / "llm.toml", "--data", folder / "rows.jsonl", "--quiet")
        for name in ("one", "two"):
            assert llamarl(capsys, "run", *arguments, "--out", folder / name)[0] == 0
        assert len(server.requests) == 4, "the second time the cache answers"
    lines = [json.loads(line) for line in (folder / "two").read_text().splitlines()]
    assert [line["passed"] for line in lines] == [True, False, False, False]
