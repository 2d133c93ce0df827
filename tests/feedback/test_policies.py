import json

import numpy as np
import pytest
import torch
from love_logs import MARKER, tiny_model

from llamarl.core.errors import ConfigError, DataError
from llamarl.feedback import Evaluate, PolicyScores, correlate_online, evaluate, score_policies
from llamarl.feedback.policies import find_doubts, read_online, read_responses
from llamarl.functional.preference import calibrated_reward
from llamarl.models.checkpoint import load_classifier, load_tokenizer, save_model
from llamarl.models.classifier import PaddedClassifier, conversation_ids, ensure_padding
from llamarl.training.love_report import Prior
from tests.pages import read_page

PRIOR = {"base_rate": 0.02, "positive_share": 0.1}
PROMPTS = [f"ask {number}" for number in range(12)]


@pytest.fixture(scope="module")
def love(tmp_path_factory):
    """A P[Love] of random weights."""
    folder = tmp_path_factory.mktemp("love")
    base = tiny_model(folder)
    model, tokenizer = load_classifier(base, new_labels=1), load_tokenizer(base)
    ensure_padding(model, tokenizer)
    model.config.love = PRIOR
    with torch.no_grad():
        model.score.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(3))
    save_model(model, tokenizer, folder / "model")
    return folder


def answers(text, prompts=PROMPTS):
    return [{"prompt": prompt, "completion": text} for prompt in prompts]


# golden


def scores_of(probabilities, names=("control", "new")):
    table = np.array(probabilities)
    return PolicyScores(
        tuple(names), tuple(map(str, range(table.shape[1]))), table, table, (1,) * len(table), Prior(**PRIOR)
    )


def test_means_and_changes_by_hand():
    scores = scores_of([[0.01, 0.03, 0.02], [0.02, 0.04, 0.03]])
    summary = scores.summarize()
    assert summary["control"]["score"] == pytest.approx(0.02) and summary["new"]["score"] == pytest.approx(0.03)
    low, high = summary["control"]["interval"]
    assert 0.01 <= low < 0.02 < high <= 0.03
    change = scores.compare("control")["new"]
    assert change["relative_change"] == pytest.approx(0.5) and change["difference"] == pytest.approx(0.01)
    # prompt by prompt each answer is better by the same 0.01, so that the difference is certain where the means are not
    assert change["difference_interval"] == pytest.approx((0.01, 0.01))


def test_the_score_of_a_response_is_its_corrected_probability(love):
    scores = score_policies({"one": answers("abc"), "other": answers("ab#")}, love)
    tokenizer, model = load_tokenizer(love / "model"), PaddedClassifier(load_classifier(love / "model"))
    ids = conversation_ids(tokenizer, [{"role": "user", "content": "ask 3"}], [{"role": "assistant", "content": "ab#"}])
    expected = calibrated_reward(model([ids])[0, 0].item() + Prior(**PRIOR).offset)
    assert scores.probabilities[1][3] == pytest.approx(expected, rel=1e-4)
    assert scores.prior == Prior(**PRIOR) and scores.lengths[0][0] == 3.0


def test_several_responses_to_a_prompt_count_as_their_mean(love):
    both = [{"prompt": prompt, "completion": ["abc", "ab#"]} for prompt in PROMPTS]
    told: list[tuple[int, int]] = []
    policies = {"a": answers("abc"), "b": answers("ab#"), "both": both}
    scores = score_policies(policies, love, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 48), (48, 48)]
    assert np.allclose(scores.probabilities[2], scores.probabilities[:2].mean(axis=0))
    assert scores.responses == (12, 12, 24)


def test_r_with_love_rates_online():
    scores = scores_of([[0.01, 0.01], [0.02, 0.02], [0.03, 0.03], [0.04, 0.04]], "abcd")
    linear = correlate_online(scores, {"a": 0.011, "b": 0.012, "c": 0.013, "d": 0.014, "e": 0.5})
    assert linear["pearson"] == pytest.approx(1.0) and linear["unused"] == ["e"] and linear["policies"] == 4
    noisy = correlate_online(scores, {"a": 0.011, "b": 0.013, "c": 0.012, "d": 0.014})
    low, high = noisy["pearson_interval"]
    assert noisy["pearson"] == pytest.approx(0.8) and low < 0 < high


# formats


def test_what_generate_prints_is_read(tmp_path):
    printed = [{"prompt": "hi", "completions": [{"text": "a", "finish_reason": "stop"}, {"text": "b"}]}]
    (tmp_path / "responses.json").write_text(json.dumps(printed, indent=2))
    key = json.dumps([{"content": "hi", "role": "user"}])
    assert read_responses(tmp_path / "responses.json") == {key: ["a", "b"]}
    messages = [{"role": "user", "content": "hi"}]
    assert read_responses([{"prompt": messages, "completion": "c"}, {"prompt": "hi", "completion": "d"}]) == {
        key: ["c", "d"]
    }


def test_rates_are_read_from_lines_and_tables(tmp_path):
    (tmp_path / "rates.csv").write_text("policy,rate\na,0.01\nb,0.02\n")
    (tmp_path / "rates.jsonl").write_text('{"policy": "a", "rate": 0.01}\n{"policy": "b", "rate": 0.02}\n')
    assert read_online(tmp_path / "rates.csv") == read_online(tmp_path / "rates.jsonl") == {"a": 0.01, "b": 0.02}


def test_evaluate_writes_numbers_a_figure_and_a_page(love, tmp_path):
    files = {}
    for name, text in (("a", "abc"), ("b", "ab#"), ("c", "fed##")):
        files[name] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, answers(text))))
    (tmp_path / "rates.csv").write_text("policy,rate\na,0.01\nb,0.02\nc,0.03\n")
    settings = Evaluate(
        policies=files, reward_model=str(love), online=tmp_path / "rates.csv", out=tmp_path / "out", device="cpu"
    )
    result = evaluate(settings)
    written = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert result["policies"]["a"]["prompts"] == 12 and result["online"]["policies"] == 3
    scores = score_policies(files, love, device="cpu")
    assert result["changes"] == {"against": "a", "policies": scores.compare("a", settings.seed)}
    assert result["online"]["pearson_interval"] == (-1.0, 1.0)  # of three policies nothing is known
    assert (tmp_path / "out/evaluation.png").read_bytes().startswith(b"\x89PNG")
    page = read_page(tmp_path / "out/report.html")
    assert [row["name"] for row in page.parts("rows")[0]["rows"]] == ["a", "b", "c"]
    changes = page.parts("rows")[1]["rows"]
    assert [row["dots"][0]["value"] for row in changes] == pytest.approx(
        [result["changes"]["policies"][name]["relative_change"] for name in ("b", "c")], rel=1e-4
    )
    (online,) = page.parts("lines")
    assert [curve["label"] for curve in online["curves"]] == ["a", "b", "c"] and len(page.parts("verdict")) == 2
    assert evaluate(settings.model_copy(update={"online": None, "out": None}))["policies"] == result["policies"]


# rejects


def test_policies_that_answered_other_prompts_are_named(love):
    with pytest.raises(DataError, match=r"policy 'b' did not answer 2 of 12 prompts .*: 'ask 10'; 'ask 11'"):
        score_policies({"a": answers("x"), "b": answers("x", PROMPTS[:10])}, love)


def test_a_reward_model_of_another_kind_is_refused(love, tmp_path):
    model = load_classifier(love / "model")
    del model.config.love
    save_model(model, load_tokenizer(love / "model"), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"no P.Love.: its config.json has no 'love'.* llamarl feedback fit"):
        score_policies({"a": answers("x")}, tmp_path / "other")


def test_a_response_that_is_too_long_is_named(love):
    with pytest.raises(DataError, match=r"policy 'a', prompt .*ask 0.*the model takes at most 256; shorten"):
        score_policies({"a": answers(MARKER * 300)}, love)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"control": 0.1, "new": 0.2}, "2 policies, and a correlation takes at least 3"),
        ({"control": 0.1, "other": 0.2}, "2 policies"),
    ],
)
def test_too_few_policies_have_no_correlation(rates, words):
    with pytest.raises(ConfigError, match=words):
        correlate_online(scores_of([[0.1, 0.2], [0.2, 0.3]]), rates)


def test_a_policy_without_rate_is_named():
    with pytest.raises(ConfigError, match="no love rate of 'c', only of a, b; add it"):
        correlate_online(scores_of([[0.1], [0.2], [0.3]], "abc"), {"a": 0.1, "b": 0.2})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"completion": "x"}, r"rows, line 1, field 'prompt'"),
        ({"prompt": "p"}, r"field 'completion': got None"),
        ({"prompt": "p", "completions": [{"finish_reason": "stop"}]}, "give the response"),
    ],
)
def test_bad_responses_are_named_with_their_place(row, words):
    with pytest.raises(DataError, match=words):
        read_responses([row])


@pytest.mark.parametrize("row", ["a,1.5", "a,often", ",0.1"])
def test_bad_rates_are_named_with_their_place(tmp_path, row):
    (tmp_path / "rates.csv").write_text(f"policy,rate\n{row}\n")
    with pytest.raises(DataError, match=r"rates.csv, row 1: .* rate, from 0 to 1"):
        read_online(tmp_path / "rates.csv")


def test_the_control_is_one_of_them():
    with pytest.raises(ConfigError, match="control='old': the policies are control, new"):
        scores_of([[0.1], [0.2]]).compare("old")


@pytest.mark.parametrize(
    ("held_out", "doubt"),
    [
        ({"auroc": 0.7, "auroc_interval": [0.6, 0.8]}, ""),
        ({"auroc": 0.4, "auroc_interval": [0.2, 0.6]}, "AUROC 0.200 to 0.600"),
        ({"auroc": None, "auroc_interval": None}, "could not be measured"),
        (None, ""),
    ],
)
def test_a_reward_model_that_tells_nothing_is_doubted(tmp_path, held_out, doubt):
    assert find_doubts(tmp_path) == []  # a checkpoint alone
    (tmp_path / "model").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps({"held_out": held_out}))
    for place in (tmp_path, tmp_path / "model"):
        found = find_doubts(place)
        assert len(found) == bool(doubt) and all(doubt in each for each in found)
