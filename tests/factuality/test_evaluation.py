"""`detect eval` from files to numbers, figures and a page."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from llamarl.cli.main import main
from llamarl.core.errors import DataError
from llamarl.factuality import Evaluation, evaluate, read_scores
from tests.pages import read_page

Row = dict[str, Any]


def draw_rows(seed: int = 0, prompts: int = 60, noise: float = 1.0) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for prompt in range(prompts):
        for claim in range(4):
            label = claim % 2 == 0
            logit = (1.0 if label else -1.0) + noise * rng.normal()
            row = {"id": f"p{prompt}/{claim}", "prompt": f"p{prompt}", "label": label}
            rows.append({**row, "score": 1 / (1 + np.exp(-logit)), "split": "test" if prompt % 3 else "validation"})
    return rows


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write_rows(rows: Iterable[Any], name: str = "scores.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write_rows


def test_golden_rows_give_the_numbers_others_script_against(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    # validation as in test_detection: threshold .5, band (.2, .5)
    validation = [(0.8, True), (0.1, False), (0.4, False), (0.3, True), (0.6, True)]
    # test at .5: .9 F and .55 F right, .4 F wrong; .05 H right, .45 H right, .7 H wrong: (2/3 + 2/3)/2
    # band: .4 F unknown, .45 H unknown, so (3/3 + 2/3)/2, and 2 of 6 unknown
    test = [(0.9, True), (0.55, True), (0.4, True), (0.05, False), (0.45, False), (0.7, False)]
    rows = [
        {"id": number, "label": label, "score": score, "split": split}
        for number, (score, label, split) in enumerate(
            [(*each, "validation") for each in validation] + [(*each, "test") for each in test]
        )
    ]
    assert main(["detect", "eval", "--scores", write(rows), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threshold"] == pytest.approx(0.5)
    assert found["bacc"] == pytest.approx(2 / 3)
    assert found["bacc_interval"][0] <= found["bacc"] <= found["bacc_interval"][1]
    # pairs of factual and hallucinated: .9 wins 3, .55 wins 2, .4 wins 1 of 9
    assert found["auc"] == pytest.approx(6 / 9)
    hybrid = found["hybrid"]
    assert (hybrid["low"], hybrid["high"]) == pytest.approx((0.2, 0.5))
    assert hybrid["bacc_unknown"] == pytest.approx(5 / 6) and hybrid["unknown_share"] == pytest.approx(2 / 6)
    assert found["notes"] == [
        # influence 1/9, 0, -1/9 of each class: 6/9 -+ 1.96 sqrt(6/5 * 4/81) = .190 and 1.144, wider than the score's
        "3 factual and 3 hallucinated test claims, which is few: the AUC, 0.667, may be anything from 0.190 to "
        "1.000 (95%)",
        "3 factual and 2 hallucinated validation claims, which is few: the thresholds hang on single claims",
        "no row names its prompt, so claims are taken for independent and the intervals are too narrow",
    ]


def test_the_numbers_are_those_of_an_oracle(write: Callable[..., str]) -> None:
    rows = draw_rows()
    found = evaluate(Evaluation(scores=(write(rows),)))
    test = [row for row in rows if row["split"] == "test"]
    labels, scores = ([row[name] for row in test] for name in ("label", "score"))
    decisions = [score > found["threshold"] for score in scores]
    assert found["bacc"] == pytest.approx(balanced_accuracy_score(labels, decisions))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["validation"] | {"bacc": 0} == {
        "claims": 80, "factual": 40, "hallucinated": 40, "prompts": 20, "bacc": 0
    }  # fmt: skip


def test_thresholds_never_read_test_scores(write: Callable[..., str]) -> None:
    rows = draw_rows()
    changed = [row if row["split"] == "validation" else {**row, "score": 1 - row["score"]} for row in rows]
    before, after = (evaluate(Evaluation(scores=(write(each),))) for each in (rows, changed))
    for name in ("threshold", "validation"):
        assert before[name] == after[name]
    assert [before["hybrid"][name] for name in ("low", "high")] == [after["hybrid"][name] for name in ("low", "high")]
    assert before["bacc"] != after["bacc"]


def test_claims_of_one_prompt_count_as_one(write: Callable[..., str]) -> None:
    """Ten copies of every claim under its prompt say no more than one; without prompts they would."""
    rows = draw_rows(prompts=30)
    copies = [{**row, "id": f"{row['id']}/{copy}"} for row in rows for copy in range(10)]
    alone = [{name: value for name, value in row.items() if name != "prompt"} for row in copies]
    widths = {}
    for name, each in (("rows", rows), ("copies", copies), ("alone", alone)):
        found = evaluate(Evaluation(scores=(write(each),)))
        widths[name] = [np.ptp(found[key]) for key in ("bacc_interval", "auc_interval")]
    assert widths["copies"] == pytest.approx(widths["rows"])
    assert all(a < 0.5 * b for a, b in zip(widths["alone"], widths["rows"], strict=True))


def test_methods_are_compared_in_pairs(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = draw_rows(noise=0.8), draw_rows(seed=1, noise=3.0)
    files = [write(good, "a/good.jsonl"), write(bad[:-1], "a/bad.jsonl")]
    assert main(["detect", "eval", "--scores", files[0], "--scores", files[1]]) == 0
    text = capsys.readouterr().out
    assert "bad - good" in text and "159 claims in common, 1 only in good" in text
    (pair,) = evaluate(Evaluation(scores=tuple(files)))["differences"]
    assert pair["bacc"] < 0 and pair["bacc_interval"][1] < 0 and pair["auc_interval"][1] < 0
    (same,) = evaluate(Evaluation(scores=(files[0], write(good, "b/good.jsonl"))))["differences"]
    assert (same["a"], same["b"]) == ("a/good", "b/good")
    assert same["bacc_interval"] == (0.0, 0.0) and same["auc_interval"] == (0.0, 0.0)


def test_methods_may_be_columns_or_rows(write: Callable[..., str]) -> None:
    wide = [{**row, "weak": 0.5 + 0.1 * row["score"]} for row in draw_rows()]
    by_column = evaluate(Evaluation(scores=(write(wide),), columns=("score", "weak")))
    assert list(by_column["methods"]) == ["score", "weak"]
    long = [
        {"method": name, **{key: row[key] for key in ("id", "prompt", "label", "split")}, "score": row[name]}
        for row in wide
        for name in ("score", "weak")
    ]
    by_row = evaluate(Evaluation(scores=(write(long),)))
    assert by_row["differences"] == by_column["differences"]


def test_tables_are_read_too(write: Callable[..., str], tmp_path: Path) -> None:
    rows = draw_rows()
    names = list(rows[0])
    (tmp_path / "scores.csv").write_text(
        "\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)])
    )
    from_table = evaluate(Evaluation(scores=(str(tmp_path / "scores.csv"),)))
    assert from_table["bacc"] == evaluate(Evaluation(scores=(write(rows),)))["bacc"]


def test_a_report_is_written(write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "evil<b>": row["score"]} for row in draw_rows(prompts=12)]
    out = tmp_path / "report"
    assert main(["detect", "eval", "--scores", write(rows), "--columns", "score,evil<b>", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["detection.png", "report.html", "results.json"]
    assert "evil<b>" not in (out / "report.html").read_text()
    page = read_page(out / "report.html")
    assert [part["title"] for part in page.parts("lines")] == ["ROC", "Calibration", "Accuracy against coverage"]
    assert "evil<b>" in page.texts
    assert (out / "detection.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "results.json").read_text())["methods"].keys() == {"score", "evil<b>"}


def test_a_detector_at_chance_has_no_hybrid(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "score": 0.25 + 0.5 * (number % 4 < 2)} for number, row in enumerate(draw_rows())]
    assert main(["detect", "eval", "--scores", write(rows)]) == 0
    assert "no two thresholds reach a validation BAcc above 0.7 of the decided claims" in capsys.readouterr().out
    hybrid = evaluate(Evaluation(scores=(write(rows),)))["hybrid"]
    assert set(hybrid.values()) == {None} and {"low", "high", "bacc_unknown", "unknown_share"} <= hybrid.keys()


def test_prompts_in_both_splits_are_named(write: Callable[..., str]) -> None:
    rows = [{**row, "prompt": "p0" if number < 20 else row["prompt"]} for number, row in enumerate(draw_rows())]
    (note,) = evaluate(Evaluation(scores=(write(rows),)))["notes"]
    assert note.startswith("1 prompts have claims in both splits") and note.endswith("'p0'")


def test_few_claims_in_perfect_order_prove_little(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    def keep(count: int) -> list[Row]:
        rows = [{**row, "score": 0.9 if row["label"] else 0.1} for row in draw_rows()]
        spared = {row["id"] for row in [row for row in rows if row["split"] == "test" and not row["label"]][:count]}
        return [row for row in rows if row["split"] == "validation" or row["label"] or row["id"] in spared]

    assert main(["detect", "eval", "--scores", write(keep(5))]) == 0
    assert "80 factual and 5 hallucinated test claims, which is few: the AUC, 1.000, may" in capsys.readouterr().out
    few, enough = (evaluate(Evaluation(scores=(write(keep(count)),))) for count in (5, 30))
    assert few["auc"] == enough["auc"] == few["auc_interval"][1] == 1.0
    assert few["auc_interval"][0] < 0.8 and enough["auc_interval"] == (1.0, 1.0)
    assert few["notes"] and not enough["notes"]


def change(**fields: Any) -> Callable[[list[Row]], list[Any]]:
    return lambda rows: [*rows[:2], {**rows[2], **fields}, *rows[3:]]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change(score=1.5), "line 3, field 'score': 1.5 is not in [0, 1]"),
        (change(score=-0.1), "line 3, field 'score': -0.1 is not in [0, 1]"),
        (change(score=float("nan")), "line 3, field 'score': nan is not in [0, 1]"),
        (change(score=None), "line 3, field 'score': missing"),
        (change(score="high"), "line 3, field 'score': 'high' is no number"),
        (change(score=True), "line 3, field 'score': True is no number"),
        (change(label="maybe"), "line 3, field 'label': 'maybe' is neither true nor false"),
        (change(label=1), "line 3, field 'label': 1 is neither true nor false"),
        (change(split="dev"), "line 3, field 'split': 'dev' is no split; use validation or test"),
        (change(split=None), "line 3, field 'split': missing"),
        (change(id="p0/0"), "line 3, field 'id': 'p0/0' is also the id of line 1"),
        (change(id=None), "line 3, field 'id': missing"),
        (change(prompt=["p"]), "line 3, field 'prompt': ['p'] is neither text nor a whole number"),
        (lambda rows: [*rows[:2], "{no json", *rows[2:]], "line 3: no JSON"),
        (lambda rows: [row for row in rows if row["split"] == "test"], "has no rows with split 'validation'"),
        (lambda rows: [row for row in rows if row["split"] != "test"], "has no rows with split 'test'"),
        (
            lambda rows: [row for row in rows if row["split"] == "test" or row["label"]],
            "all 40 rows with split 'validation' have the label true",
        ),
        (lambda rows: [row for row in rows if row["split"] != "test" or not row["label"]], "have the label false"),
        (lambda rows: [], "no rows"),
    ],
)
def test_bad_rows_are_named(
    spoil: Callable[[list[Row]], list[Any]],
    words: str,
    write: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path, out = write(spoil(draw_rows())), tmp_path / "report"
    assert main(["detect", "eval", "--scores", path, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert path in error and words in error
    assert not out.exists()


def test_mistakes_on_the_command_line(write: Callable[..., str]) -> None:
    path = write(draw_rows())
    with pytest.raises(DataError, match="field 'probe': missing"):
        read_scores([path], ["probe"])
    assert [method.name for method in read_scores([path, path])] == ["scores"]
    assert main(["detect", "eval"]) == 2
    assert main(["detect", "eval", "--scores", "nowhere.jsonl"]) == 2
    assert main(["detect", "eval", "--scores", path, "--hybrid-min-bacc", "1.0"]) == 2


def test_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'transformers', 'matplotlib', 'duckdb', 'bm25s', 'numpy', 'httpx'} & set(sys.modules)"
    program = f"import sys, llamarl.factuality, llamarl.cli.detect_commands; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_evaluation_needs_no_torch(write: Callable[..., str], tmp_path: Path) -> None:
    program = (
        "import sys; from llamarl.cli.main import main; "
        f"main(['detect', 'eval', '--scores', {write(draw_rows())!r}, '--out', {str(tmp_path / 'o')!r}]); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("score", 10**400, "is not in"), ("id", "\ud800", "half a surrogate"), ("prompt", "\ud800", "half a surrogate")],
)
def test_numbers_and_texts_beyond_what_machines_take_are_named(
    write: Callable[..., str], field: str, value: Any, message: str
) -> None:
    rows = draw_rows()
    rows[-1][field] = value
    with pytest.raises(DataError, match=f"line {len(rows)}, field '{field}': .*{message}"):
        evaluate(Evaluation(scores=(write(rows),)))
