import io
import json

import pytest
from released_rows import small_set
from rich.console import Console

from llamarl.core.errors import DataError
from llamarl.evals.comparison import ComparisonTable, compare, write_comparison
from llamarl.evals.conversations import read_conversations
from llamarl.evals.evaluation import evaluate
from llamarl.evals.groups import Bootstrap
from llamarl.evals.replies import Reply
from llamarl.evals.results import read_results
from llamarl.evals.verdicts import GraderSettings, places_of
from llamarl.report.files import write_json

FEW = Bootstrap(num_resamples=200)


def run(directory, text, *, data=None, modes=("fixed",), without=()):
    data = data or small_set()
    replies = {place: Reply(*place, text) for place in places_of(data) if place not in without}
    evaluate("multi-if", data, replies, directory, GraderSettings(modes, "rules"), bootstrap=FEW)
    return directory


def change(directory, edit):
    results = read_results(directory)
    edit(results)
    write_json(directory / "results.json", results)


def test_differences_are_b_minus_a(tmp_path):
    a, b = run(tmp_path / "a", "a comma, only"), run(tmp_path / "b", "no comma")
    turn = compare(a, b, FEW)["modes"]["fixed"]["pooled"]["turns"]["1"]["strict"]["conversation"]
    # Turn 1: three of four conversations ban commas, one wants a keyword that neither has.
    assert (turn["a"], turn["b"], turn["difference"]) == (0, 3 / 4, 3 / 4)
    assert turn["low"] <= 3 / 4 <= turn["high"]


def test_a_run_does_not_differ_from_itself(tmp_path):
    a = run(tmp_path / "a", "the river, the sun", modes=("official", "fixed"))
    comparison = compare(a, a, FEW)
    for found in comparison["modes"].values():
        for group in (found["pooled"], found["macro"], *found["languages"].values()):
            assert group["mean_over_turns"]["difference"] == group["mean_over_turns"]["low"] == 0
            assert group["mean_over_turns"]["high"] == 0
    assert comparison["notes"] == []


def test_only_turns_that_both_have_count(tmp_path):
    a = run(tmp_path / "a", "no comma", without=[("1:0:en", 2), ("1:0:en", 3)])
    b = run(tmp_path / "b", "no comma", without=[("2:0:en", 1), ("2:0:en", 2), ("2:0:en", 3)])
    found = compare(a, b, FEW)["modes"]["fixed"]
    assert found["pooled"]["conversations"] == 3
    # English: turn 1 of 1:0:en (no comma: followed) in both; it has not all its turns in both.
    english = found["languages"]["en"]
    assert english["turns"]["1"]["strict"]["instruction"]["a"] == 1
    assert english["turns"]["2"]["strict"]["instruction"]["a"] is None
    assert english["all_turns_passed"]["strict"]["a"] is None


def test_pairing_narrows_the_interval(tmp_path):
    rows = [
        {"key": str(n), "language": "en", "turns": [{"prompt": "p", "instructions": [{"id": "punctuation:no_comma"}]}]}
        for n in range(60)
    ]
    data = read_conversations(rows)
    settings = GraderSettings(("fixed",))
    for name, extra in (("a", 0), ("b", 3)):  # b follows what a follows, and three more
        replies = {(str(n), 1): Reply(str(n), 1, "yes" if n < 30 + extra else "no, no") for n in range(60)}
        evaluate("multi-if", data, replies, tmp_path / name, settings, bootstrap=FEW)
    rate = compare(tmp_path / "a", tmp_path / "b", FEW)["modes"]["fixed"]["pooled"]["turns"]["1"]["overall"]
    alone = read_results(tmp_path / "a")["modes"]["fixed"]["pooled"]["turns"]["1"]["overall"]
    assert rate["difference"] == pytest.approx(0.05)
    assert 0 <= rate["low"] < rate["high"] < 0.15
    # Apart, the difference of two such shares has an interval wider than either's; paired, about half as wide.
    assert rate["high"] - rate["low"] < 0.7 * (alone["high"] - alone["low"])


def test_table_and_files(tmp_path):
    a, b = run(tmp_path / "a", "a comma, only"), run(tmp_path / "b", "no comma")
    comparison = compare(a, b, FEW)
    console = Console(width=120, file=io.StringIO())
    console.print(ComparisonTable(comparison))
    text = console.file.getvalue()
    assert "mean of languages" in text
    assert "English" in text
    files = write_comparison(tmp_path / "difference", comparison)
    assert [path.name for path in files] == ["comparison.json", "comparison.png", "comparison.html"]
    assert json.loads(files[0].read_text())["modes"]["fixed"]["pooled"]["conversations"] == 4
    assert files[1].read_bytes().startswith(b"\x89PNG")


def other_splitter(results):
    results["modes"]["fixed"]["grader"]["sentence_splitter"] = "punkt"


REFUSED = {
    "other data": (lambda results: results["data"].update(revision="sha256:0"), "evaluated on other data"),
    "other benchmark": (lambda results: results.update(benchmark="ifeval"), "compare one benchmark"),
    "other grader": (other_splitter, "sentence_splitter is 'rules'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared(tmp_path, name):
    edit, message = REFUSED[name]
    a, b = run(tmp_path / "a", "x"), run(tmp_path / "b", "x")
    change(b, edit)
    with pytest.raises(DataError, match=message):
        compare(a, b, FEW)


def test_no_mode_in_common(tmp_path):
    with pytest.raises(DataError, match="no mode in common"):
        compare(run(tmp_path / "a", "x", modes=("official",)), run(tmp_path / "b", "x"), FEW)


def test_no_turn_in_common(tmp_path):
    places = list(places_of(small_set()))
    a, b = run(tmp_path / "a", "x", without=places[1:]), run(tmp_path / "b", "x", without=places[:1])
    with pytest.raises(DataError, match="no turn in common"):
        compare(a, b, FEW)


def test_other_versions_are_noted(tmp_path):
    a, b = run(tmp_path / "a", "x"), run(tmp_path / "b", "x")
    change(b, lambda results: results["modes"]["fixed"]["grader"].update(nltk="0.1"))
    assert any("nltk" in note and "0.1" in note for note in compare(a, b, FEW)["notes"])
