import json

import pytest
from released_rows import small_set

from llamarl.core.errors import DataError
from llamarl.evals.evaluation import evaluate, generation_record
from llamarl.evals.groups import Bootstrap
from llamarl.evals.replies import Reply
from llamarl.evals.results import MISSING, build_results, read_results
from llamarl.evals.verdicts import GraderSettings, TurnVerdict, grade_replies, places_of
from tests.pages import read_page

FIXED = GraderSettings(("fixed",))
FEW = Bootstrap(num_resamples=50)


def replies_to(data, text="the river, the sun", **fields):
    return {place: Reply(*place, text, **fields) for place in places_of(data)}


def results_of(replies, verdicts=None, generation=None, settings=FIXED):
    data = small_set()
    if verdicts is None:
        verdicts = grade_replies(data, {p: r.response for p, r in replies.items() if r.response is not None}, settings)
    return build_results("multi-if", data, replies, verdicts, settings, generation=generation, bootstrap=FEW)


# rates


def test_groups_hold_values_intervals_and_denominators():
    found = results_of(replies_to(small_set()))["modes"]["fixed"]
    # "the river, the sun" follows river (1:0:en) and sun (2:0:en), and no ban of commas.
    turn = found["languages"]["en"]["turns"]["1"]
    assert turn["strict"]["conversation"]["value"] == 1 / 2
    assert turn["strict"]["conversation"]["of"] == 2
    assert found["languages"]["fr"]["turns"]["1"]["strict"]["conversation"]["value"] == 0
    pooled = found["pooled"]["turns"]["2"]["strict"]["instruction"]
    assert (pooled["value"], pooled["of"]) == (2 / 8, 8)
    assert pooled["low"] <= pooled["value"] <= pooled["high"]
    assert found["pooled"]["conversations"] == 4
    assert found["pooled"]["turns"]["3"]["strict"]["conversation"]["of"] == 3  # one conversation has two turns


def test_macro_is_the_mean_of_languages():
    found = results_of(replies_to(small_set()))["modes"]["fixed"]
    means = [found["languages"][code]["turns"]["1"]["overall"]["value"] for code in ("en", "fr")]
    assert found["macro"]["turns"]["1"]["overall"]["value"] == pytest.approx(sum(means) / 2)


def test_by_instruction_type_and_turn():
    found = results_of(replies_to(small_set()))["modes"]["fixed"]["instructions"]
    # Turn 3 asks for keywords river, sun, moon, mer.
    assert found["keywords:existence"]["3"] == {"strict": 2 / 4, "loose": 2 / 4, "of": 4}
    assert found["punctuation:no_comma"]["all"]["of"] == 3 + 4 + 4


def test_rates_without_a_denominator_are_null():
    transition = results_of(replies_to(small_set(), ""))["modes"]["fixed"]["pooled"]["transitions"]["1-2"]["strict"]
    assert transition["ifr_percent"] == {"value": None, "low": None, "high": None, "of": 0}
    assert transition["ecr_percent"]["value"] == 0


def test_one_conversation_has_no_interval():
    data = small_set()[:1]
    results = build_results("multi-if", type(small_set())(data), replies_to(data), [], FIXED, bootstrap=FEW)
    verdicts = [TurnVerdict(data[0].key, 1, "fixed", (True,), (True,))]
    results = build_results("multi-if", type(small_set())(data), replies_to(data), verdicts, FIXED, bootstrap=FEW)
    assert results["modes"]["fixed"]["pooled"]["turns"]["1"]["overall"] == {"value": 1.0, "low": None, "high": None}


# beside the rates


def test_failures_are_counted_by_reason_and_in_no_denominator():
    data = small_set()
    replies = replies_to(data)
    replies["1:0:en", 2] = Reply("1:0:en", 2, None, "error", "status 500")
    del replies["1:0:en", 3]
    replies["2:0:en", 1] = Reply("2:0:en", 1, "")
    results = results_of(replies)
    assert results["failures"] == {
        "turns": 2,
        "by_reason": {"status 500": 1, MISSING: 1},
        "by_turn": {"2": 1, "3": 1},
        "keys": ["1:0:en"],
    }
    turns = results["modes"]["fixed"]["languages"]["en"]["turns"]
    assert turns["1"]["strict"]["conversation"] | {"low": 0, "high": 0} == {"value": 0, "low": 0, "high": 0, "of": 2}
    assert turns["2"]["strict"]["conversation"]["of"] == 1


def test_truncation_is_known_where_replies_were_recorded():
    data = small_set()
    replies = replies_to(data)
    assert results_of(replies)["truncation"]["rate"] is None
    assert results_of(replies, generation={"seed": 1})["truncation"]["rate"] == 0
    replies["1:0:en", 1] = Reply("1:0:en", 1, "x", "length")
    truncation = results_of(replies)["truncation"]
    assert truncation["rate"] == 1 / 11
    assert truncation["by_turn"] == {"1": 1 / 4, "2": 0, "3": 0}


def test_ungradable_slots_are_named():
    verdicts = [TurnVerdict("3:0:fr", 2, "fixed", (True, None), (True, None), {1: "no letter '#'"})]
    assert results_of(replies_to(small_set()), verdicts)["modes"]["fixed"]["ungradable"] == [
        {"key": "3:0:fr", "turn": 2, "position": 1, "id": "keywords:existence", "reason": "no letter '#'"}
    ]


def test_what_the_numbers_depend_on():
    results = results_of({**replies_to(small_set()), ("other", 1): Reply("other", 1, "x")})
    assert results["data"]["source"] == "rows"
    assert results["data"]["revision"].startswith("sha256:")
    assert results["data"]["unused_replies"] == 1
    assert results["modes"]["fixed"]["grader"]["language_detector"] == "lingua"
    assert results["keys"] == {"en": ["1:0:en", "2:0:en"], "fr": ["3:0:fr", "4:0:fr"]}
    assert results["bootstrap"] == {"seed": 0, "num_resamples": 50, "confidence": 0.95, "unit": "conversation"}


# files


def test_an_evaluation_leaves_numbers_verdicts_a_figure_and_a_page(tmp_path):
    data = small_set()
    results = evaluate("multi-if", data, replies_to(data), tmp_path / "out", FIXED, bootstrap=FEW)
    assert read_results(tmp_path / "out") == json.loads(json.dumps(results))
    assert len((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()) == 11
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    page = read_page(tmp_path / "out" / "report.html")
    accuracy, forgotten, recovered = page.parts("rows")
    assert [row["name"] for row in accuracy["rows"]][2:] == ["mean of languages", "all conversations"]
    overall = results["modes"]["fixed"]["pooled"]["turns"]["2"]["overall"]["value"]
    assert accuracy["rows"][-1]["dots"][1]["value"] == pytest.approx(overall, abs=1e-6)
    percent = results["modes"]["fixed"]["pooled"]["transitions"]["1-2"]["strict"]["ifr_percent"]["value"]
    assert forgotten["rows"][-1]["dots"][0]["value"] == pytest.approx(percent / 100, abs=1e-6)
    assert [part["title"] for part in page.parts("section")] == ["fixed mode", "To know"]
    assert len(page.parts("table")) == 2 and recovered["scale"] == "%"


def test_replies_to_other_data_are_an_error(tmp_path):
    replies = {("zzz", 1): Reply("zzz", 1, "x")}
    with pytest.raises(DataError, match="none of the 1 replies belongs to a turn of rows"):
        evaluate("multi-if", small_set(), replies, tmp_path, FIXED)
    assert not list(tmp_path.iterdir())


def test_how_replies_were_made_is_known_only_beside_its_record(tmp_path):
    assert generation_record(tmp_path) is None
    (tmp_path / "settings.json").write_text('{"seed": 7}')
    assert generation_record(tmp_path) == {"seed": 7}


@pytest.mark.parametrize("content", [None, "{}", "[]", "{"])
def test_a_directory_without_results(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"results\.json"):
        read_results(tmp_path)
