import json
import re

import numpy as np
import pytest
import torch
from love_logs import tiny_model

from llamarl.cli.main import main
from llamarl.core.errors import ConfigError, DataError
from llamarl.feedback import Gate, Monitoring, PolicyScores, monitor, monitor_in_turn, run_gate
from llamarl.feedback.gate import decide
from llamarl.feedback.monitor_report import monitor_rows
from llamarl.models.checkpoint import load_classifier, load_tokenizer, save_model
from llamarl.models.classifier import ensure_padding
from llamarl.training.love_report import Prior
from tests.pages import read_page

PRIOR = {"base_rate": 0.02, "positive_share": 0.1}
PLAIN, LEAVING = "Yes, that is so. It works well for most of us.", "Yes, that is so. Bye! Sending love! 💕"


def write(path, texts):
    path.write_text("".join(json.dumps({"prompt": f"p{n}", "completion": t}) + "\n" for n, t in enumerate(texts)))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Responses to 200 prompts: the control, an equal policy, one that takes leave in every fourth, and warns."""
    words = ("water", "tea", "rain", "paper", "stone", "glass", "light", "wood", "salt", "sand", "clay")
    plain = [f"It is {words[n % 11]} with {words[n % 7]}. Take the {words[n % 5]} {words[n % 3]}." for n in range(200)]
    texts = {
        "control": plain,
        "equal": plain[::-1],
        "leaving": [LEAVING if n % 4 == 0 else text for n, text in enumerate(plain)],
    }
    return {name: write(tmp_path / f"{name}.jsonl", each) for name, each in texts.items()}


def scorer(change, noise=0.002, asked=None):
    """A P[Love] of a control of 2 % and a candidate that differs from it by so much, prompt by prompt."""

    def score(policies, reward_model, *, device="auto"):
        if asked is not None:
            asked.append((dict(policies), reward_model, device))
        drawn = np.random.default_rng(0)
        control = 0.02 + drawn.normal(0, 0.005, 200)
        candidate = control + 0.02 * change + drawn.normal(0, noise, 200)
        table = np.stack([control, candidate])
        return PolicyScores(tuple(policies), tuple(map(str, range(200))), table, table, (200, 200), Prior(**PRIOR))

    return score


def gate(files, candidate, score, **settings):
    return run_gate(
        Gate.parse({"candidate": files[candidate], "control": files["control"], "reward_model": "love", **settings}),
        score,
    )


# golden


@pytest.mark.parametrize(
    ("interval", "margin", "outcome"),
    [
        ((-0.05, -0.01), 0.0, "blocked"),
        ((-0.05, -0.01), 0.02, "undecided"),
        ((-0.05, -0.03), 0.02, "blocked"),
        ((-0.01, 0.03), 0.02, "passed"),
        ((-0.01, 0.03), 0.0, "undecided"),
        ((0.0, 0.03), 0.0, "passed"),
        ((-0.02, 0.0), 0.02, "passed"),
        (None, 0.0, "undecided"),
    ],
)
def test_the_decision_by_interval_and_margin(interval, margin, outcome):
    assert decide(interval, margin) == outcome


def test_a_candidate_that_is_loved_more_and_does_nothing_odd_passes(files):
    asked = []
    result = gate(files, "equal", scorer(+0.1, asked=asked))
    assert (result["outcome"], result["is_blocked"], result["reasons"]) == ("passed", False, [])
    assert result["love"]["change"]["relative_change"] == pytest.approx(0.1, abs=0.02)
    assert asked == [({"control": files["control"], "candidate": files["equal"]}, "love", "auto")]
    assert [each["monitor"] for each in result["monitors"]] == [
        *("farewell", "love", "ending", "length", "question", "emoji")
    ]
    assert json.loads(json.dumps(result))["outcome"] == "passed"


def test_none_of_none_is_no_number_of_times():
    each = {"monitor": "farewell", "signal": "farewell", "interval": (0.0, None), "ratio": 0.0, "level": "quiet"}
    rows = monitor_rows([each | {"control": 0.0, "value": 0.0}, each | {"control": 0.1, "value": 0.0}])
    assert [row[3] for row in rows] == ["–", "0"]


def test_a_candidate_that_is_loved_less_is_blocked(files):
    result = gate(files, "equal", scorer(-0.1))
    assert (result["outcome"], result["is_blocked"]) == ("blocked", True)
    assert re.match(
        r"the predicted love rate falls by more than is tolerated: -\d+\.\d\d% \(between", result["reasons"][0]
    )
    assert gate(files, "equal", scorer(-0.1), margin=0.2)["outcome"] == "passed"


def test_an_undecided_candidate_is_said_to_be_and_may_be_blocked(files):
    result = gate(files, "equal", scorer(0.0, noise=0.02))
    assert (result["outcome"], result["is_blocked"]) == ("undecided", False)
    assert "may fall by more than is tolerated" in result["reasons"][0]
    assert gate(files, "equal", scorer(0.0, noise=0.02), undecided="block")["is_blocked"] is True
    assert gate(files, "equal", scorer(0.0, noise=0.02), margin=0.5)["outcome"] == "passed"


def test_a_monitor_blocks_what_is_loved_more(files):
    result = gate(files, "leaving", scorer(+0.28))
    assert result["outcome"] == "blocked" and result["love"]["outcome"] == "passed"
    stopped = {each["monitor"]: each for each in result["monitors"] if each["level"] == "stop"}
    assert {"farewell", "love", "emoji"} <= set(stopped)
    assert stopped["farewell"]["value"] == 0.25 and stopped["farewell"]["control"] == 0.0
    assert stopped["farewell"]["examples"] == [LEAVING] * 3
    assert gate(files, "leaving", scorer(+0.28), stop=1e6)["outcome"] == "passed"


# the report


def test_the_report_is_one_page_that_escapes_what_policies_say(files, tmp_path):
    files["odd"] = write(tmp_path / "odd.jsonl", ["<script>alert(1)</script> Bye!"] * 200)
    page = tmp_path / "gate.html"
    result = gate(files, "odd", scorer(-0.1), report=page)
    assert result["report"] == str(page)
    assert "<script>alert" not in page.read_text()
    texts = read_page(page).texts
    for wanted in ("Blocked", "farewell", "Predicted love rate", "Responses to look at"):
        assert wanted in texts, wanted
    assert "<script>alert(1)</script> Bye!" in texts
    love, monitors = read_page(page).parts("rows")
    assert love["rows"][0]["dots"][0]["tone"] == "bad" and "farewell" in [row["name"] for row in monitors["rows"]]


def test_a_report_that_is_no_page_is_refused_before_anything_is_scored(files, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        gate(files, "equal", scorer(0.1), report=tmp_path / "gate.json")


# monitors on files


def test_monitors_on_files_name_what_changed_and_show_it(files, capsys):
    result = monitor(files["leaving"], Monitoring(control=files["control"], signals=["farewell", "question"]))
    assert (result["level"], result["responses"], result["control_responses"]) == ("stop", 200, 200)
    assert [(each["monitor"], each["level"]) for each in result["monitors"]] == [
        ("farewell", "stop"),
        ("question", "quiet"),
    ]
    assert main(["feedback", "monitor", files["leaving"], "--control", files["control"], "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["level"] == "stop"
    assert main(["feedback", "monitor", files["equal"], "--control", files["control"]]) == 0
    shown = capsys.readouterr().out
    assert "farewell" in shown and "quiet" in shown and "stops" not in shown
    options = ["--signals", "farewell,love", "--languages", "ru", "--phrases", "works well"]
    assert main(["feedback", "monitor", files["leaving"], "--control", files["control"], *options]) == 0
    assert "phrases" in capsys.readouterr().out


def test_turns_are_counted_where_both_sides_have_conversations(tmp_path):
    def talk(length):
        turns = [{"role": role, "content": "yes indeed"} for _ in range(length) for role in ("user", "assistant")]
        return {"messages": turns}

    for name, lengths in (("long", (6, 7, 8)), ("short", (1, 2, 3))):
        rows = [talk(lengths[n % 3]) for n in range(90)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = monitor(str(tmp_path / "short.jsonl"), Monitoring(control=str(tmp_path / "long.jsonl")))
    (turns,) = (each for each in result["monitors"] if each["monitor"] == "turns")
    assert turns["level"] == "stop" and turns["value"] == 2.0 and turns["control"] == 7.0


def test_files_in_turn_are_one_report_with_a_curve_of_each_monitor(files, tmp_path, capsys):
    page, three = tmp_path / "monitors.html", [files["equal"], files["leaving"], files["equal"]]
    words = ["feedback", "monitor", *three, "--control", files["control"], "--signals", "farewell,length"]
    assert main([*words, "--report", str(tmp_path / "monitors.json")]) == 2
    assert "ends in .html" in capsys.readouterr().err
    assert main([*words[:4], *words[5:], "--report", str(page)]) == 1  # without the last file
    shown = capsys.readouterr().out
    assert "equal: quiet" in shown and "leaving: stops" in shown and f"the report is {page}" in shown
    assert (
        main([*words, "--report", str(page), "--json"]) == 1
    )  # the second of three; the last is as quiet as the first
    result = json.loads(capsys.readouterr().out)
    assert [look["level"] for look in result["looks"]] == ["quiet", "stop", "quiet"] and result["level"] == "stop"
    assert result["monitors"] == result["looks"][-1]["monitors"] and result["report"] == str(page)
    found = read_page(page)
    farewell, length = found.parts("lines")
    assert (farewell["title"], length["title"]) == ("farewell", "length")
    assert farewell["marks"] == {"x": [], "y": [1.0, 1.5, 2.0], "names": ["control", "warns", "stops"]}
    ratios = farewell["table"]["values"]["0"]
    assert ratios[0] == ratios[2] == 0.0 and ratios[1] > 2.0 and farewell["limits"][0] < 1.0 < farewell["limits"][1]
    assert found.parts("verdict")[0]["title"] == "Stop: farewell"


def test_many_looks_are_as_sure_together_as_one(files):
    settings = Monitoring(control=files["control"], signals=["length"])
    (one,) = monitor_in_turn([files["leaving"]], settings)["looks"]
    many = monitor_in_turn([files["leaving"]] * 5, settings)["looks"]
    widths = [high - low for low, high in (look["monitors"][0]["interval"] for look in (one, many[0]))]
    assert widths[1] > widths[0] and len({str(look) for look in many}) == 1


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--control", "none.jsonl"], "none.jsonl: no such file"),
        (["--control", "CONTROL", "--signals", "farewel"], "farewel"),
        (["--control", "CONTROL", "--signals", "turns,length"], "turns are of conversations"),
        (["--control", "CONTROL", "--languages", "xx"], "no table of phrases"),
        (["--control", "CONTROL", "--warn", "3"], "below warn=3"),
        ([], "control"),
    ],
)
def test_wrong_settings_of_the_monitors_end_with_status_2(files, capsys, options, message):
    options = [files["control"] if each == "CONTROL" else each for each in options]
    assert main(["feedback", "monitor", files["equal"], *options]) == 2
    assert message in capsys.readouterr().err


def test_bad_files_are_refused_before_anything_is_scored(files, tmp_path):
    def never(*_, **__):
        raise AssertionError("scored")

    (tmp_path / "bad.jsonl").write_text('{"prompt": "p0"}\n')
    files["bad"] = str(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match=r"bad\.jsonl.*line 1"):
        gate(files, "bad", never)
    with pytest.raises(ConfigError, match="margin"):
        gate(files, "equal", never, margin=-0.1)


# the command with a real P[Love]


def test_the_command_blocks_passes_and_refuses(files, tmp_path, capsys):
    base = tiny_model(tmp_path)
    model, tokenizer = load_classifier(base, new_labels=1), load_tokenizer(base)
    ensure_padding(model, tokenizer)
    model.config.love = PRIOR
    with torch.no_grad():
        model.score.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(3))
    save_model(model, tokenizer, tmp_path / "love" / "model")
    common = ["--control", files["control"], "--reward-model", str(tmp_path / "love")]
    page = tmp_path / "gate.html"
    assert main(["feedback", "gate", files["leaving"], *common, "--json", "--report", str(page)]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["outcome"] == "blocked" and "farewell: 25.00%" in " ".join(result["reasons"])
    assert page.read_text().startswith("<!doctype html>")
    assert main(["feedback", "gate", files["control"], *common]) == 0
    assert "Passed" in capsys.readouterr().out  # the change of a policy against itself is 0 exactly
    (tmp_path / "love" / "summary.json").write_text('{"held_out": {"auroc": 0.4, "auroc_interval": [0.3, 0.6]}}')
    assert main(["feedback", "gate", files["control"], *common, "--report", str(page)]) == 0
    assert "warning: " in capsys.readouterr().out and "was not shown to tell loved replies" in page.read_text()
    other = write(tmp_path / "other.jsonl", [PLAIN] * 3)
    assert main(["feedback", "gate", other, *common]) == 2
    assert "prompt" in capsys.readouterr().err
