"""Inspect's scripted model answers with the shipped replies; the rates must be those of `llamarl eval`."""

import gc
import json
import math
import subprocess
import sys
from importlib import resources
from itertools import pairwise

import pytest

pytest.importorskip("inspect_ai")
pytest.importorskip("langdetect")
pytest.importorskip("lingua")
pytest.importorskip("emoji")

from inspect_ai import eval as inspect_eval
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput, ModelUsage, get_model

from llamarl.cli.main import main
from llamarl.core.errors import ConfigError, DataError
from llamarl.evals.conversations import read_conversations
from llamarl.evals.inspect_task import multi_if

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # what Inspect and its packages do is their own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LINES = (resources.files("llamarl.evals") / "assets" / "replies.jsonl").read_text(encoding="utf-8").splitlines()
REPLIES = {}
for line in map(json.loads, LINES):
    REPLIES.setdefault((line["key"], line["turn"], line["kind"]), line["response"])
CONVERSATIONS = read_conversations("builtin")
KEYS = {each.turns[0].prompt: each.key for each in CONVERSATIONS}
KINDS = {
    "pass": lambda key, turn: "pass",
    "fail": lambda key, turn: "fail",
    "some": lambda key, turn: "pass" if (len(key) + turn) % 3 else "fail",
}


def scripted(kind, wrap=str, seen=None):
    """Answers by the first message and the turn."""

    def answer(messages, tools, tool_choice, config):
        if seen is not None:
            seen.append(messages)
        key, turn = KEYS[messages[0].text], sum(isinstance(m, ChatMessageUser) for m in messages)
        output = ModelOutput.from_content("mockllm", wrap(REPLIES[key, turn, KINDS[kind](key, turn)]))
        output.usage = ModelUsage()  # else the model counts tokens with a vocabulary that it downloads
        return output

    return get_model("mockllm/model", custom_outputs=answer, memoize=False)


def run(tmp_path, model, epochs=1, **arguments):
    """The log of the task."""
    task = multi_if(**{"sentence_splitter": "rules"} | arguments)
    (log,) = inspect_eval(task, model, epochs=epochs, log_dir=str(tmp_path / "logs"), display="none")
    gc.collect()  # streams that Inspect leaves open warn now, while these warnings are ignored, and not in other tests
    assert log.status == "success", log.error
    return log


def metrics(log):
    return {each.name: {name: one.value for name, one in each.metrics.items()} for each in log.results.scores}


def ours(tmp_path, kind, *options):
    """The same replies, graded by `llamarl eval multi-if`."""
    responses = tmp_path / "responses.jsonl"
    rows = [
        {"key": each.key, "turn": turn, "response": REPLIES[each.key, turn, KINDS[kind](each.key, turn)]}
        for each in CONVERSATIONS
        for turn in range(1, len(each.turns) + 1)
    ]
    responses.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    command = ["eval", "multi-if", "--data", "builtin", "--grade", str(responses), "--out", str(out), "--quiet"]
    assert main([*command, "--sentence-splitter", "rules", *options]) == 0
    return json.loads((out / "results.json").read_text())["modes"]


def at(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree["value"]


NAMED = """
from inspect_ai import eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model

def answer(messages, tools, tool_choice, config):
    output = ModelOutput.from_content("mockllm", "No")
    output.usage = ModelUsage()
    return output

if __name__ == "__main__":
    model = get_model("mockllm/model", custom_outputs=answer)
    arguments = {"languages": "en,fr", "turns": 1, "mode": "fixed"}
    (log,) = eval("llamarl/multi_if", model, task_args=arguments, log_dir="logs", display="none")
    print(log.status, log.eval.task, len(log.samples))
"""


def test_inspect_finds_the_task_by_its_name(tmp_path):
    """In a fresh interpreter and folder, as `inspect eval llamarl/multi_if` would: through the entry point."""
    (tmp_path / "named.py").write_text(NAMED)
    done = subprocess.run([sys.executable, "named.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    languages = [each.language for each in CONVERSATIONS]
    expected = f"success llamarl/multi_if {languages.count('en') + languages.count('fr')}"
    assert done.stdout.splitlines()[-1:] == [expected], done.stderr[-2000:]


def test_rates_are_those_of_llamarl_eval(tmp_path):
    modes = ours(tmp_path, "some")
    found = metrics(run(tmp_path, scripted("some")))
    assert list(found) == ["official", "fixed"]
    for mode, rates in found.items():
        assert 0.3 < rates["pooled/mean_over_turns"] < 0.95  # neither all nor nothing
        for name, value in rates.items():
            assert value == pytest.approx(at(modes[mode], name), abs=1e-12), (mode, name)
        groups = {"pooled", "macro", *(f"languages/{code}" for code in modes[mode]["languages"])}
        levels = [f"{kind}/{level}" for kind in ("strict", "loose") for level in ("conversation", "instruction")]
        per_turn = {f"turns/{turn}/{rate}" for turn in (1, 2, 3) for rate in ("overall", *levels)}
        assert {f"{group}/{rate}" for group in groups for rate in per_turn} <= rates.keys()
        assert next(iter(rates)) == "pooled/mean_over_turns"  # what Inspect shows while it runs


def test_passing_replies_score_1_and_failing_ones_less(tmp_path):
    arguments = {"mode": "fixed", "languages": "en"}
    best = metrics(run(tmp_path, scripted("pass"), **arguments))["fixed"]
    accuracies = {name: value for name, value in best.items() if "transitions" not in name}
    assert set(accuracies.values()) == {1.0}
    worst = metrics(run(tmp_path, scripted("fail"), **arguments))["fixed"]
    assert worst["pooled/turns/1/strict/conversation"] == 0.0


def test_the_history_holds_the_model_s_own_answers(tmp_path):
    seen = []
    log = run(tmp_path, scripted("pass", seen=seen), mode="fixed", limit=2)
    for earlier, later in pairwise(sorted((m for m in seen if KEYS[m[0].text] == CONVERSATIONS[0].key), key=len)):
        assert [m.text for m in later[: len(earlier)]] == [m.text for m in earlier]
        assert isinstance(later[-2], ChatMessageAssistant)
        assert later[-2].text == REPLIES[CONVERSATIONS[0].key, len(later) // 2, "pass"]
    assert [len(sample.messages) for sample in log.samples] == [2 * len(each.turns) for each in CONVERSATIONS[:2]]
    assert log.eval.metadata["data"]["revision"] == CONVERSATIONS.revision
    assert log.eval.metadata["graders"]["fixed"]["mode"] == "fixed"


def test_thinking_is_neither_graded_nor_kept(tmp_path):
    seen = []
    model = scripted("pass", wrap=lambda text: f"<think>,,,</think>\n{text}", seen=seen)
    log = run(tmp_path, model, mode="fixed", languages=["fr"], strip_thinking="think")
    assert metrics(log)["fixed"]["pooled/turns/1/overall"] == 1.0
    assert not any("<think>" in message.text for messages in seen for message in messages)


def test_epochs_are_further_conversations(tmp_path):
    calls = []

    def first_wrong(messages, tools, tool_choice, config):
        calls.append(messages)
        key = KEYS[messages[0].text]
        output = ModelOutput.from_content("mockllm", REPLIES[key, 1, "fail" if len(calls) == 1 else "pass"])
        output.usage = ModelUsage()
        return output

    model = get_model("mockllm/model", custom_outputs=first_wrong, memoize=False)
    log = run(tmp_path, model, epochs=4, mode="fixed", turns=1, limit=1)
    assert metrics(log)["fixed"]["pooled/turns/1/strict/conversation"] == 3 / 4


def test_a_score_says_what_is_missing(tmp_path):
    log = run(tmp_path, scripted("fail"), mode="fixed", limit=1)
    (sample,) = log.samples
    score = sample.scores["fixed"]
    assert "turn 1 does not follow punctuation:no_comma" in score.explanation  # a comma after "neighbours"
    assert score.metadata["strict"][0] == [True, False]
    assert 0 < score.value < 1


def test_what_cannot_be_graded_is_not_scored(tmp_path):
    broken, comma = {"id": "keywords:existence", "kwargs": {}}, {"id": "punctuation:no_comma", "kwargs": {}}
    prompt = CONVERSATIONS[0].turns[0].prompt
    turns = [{"prompt": prompt, "instructions": [broken]}, {"prompt": "Go on.", "instructions": [broken, comma]}]
    rows = [{"key": "1", "language": "en", "turns": turns[:1]}, {"key": "2", "language": "en", "turns": turns}]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = run(tmp_path, scripted("pass"), mode="fixed", data=str(data))
    nothing, half = (sample.scores["fixed"] for sample in log.samples)
    assert math.isnan(nothing.value)
    assert "turn 1 cannot be graded: keywords:existence" in nothing.explanation
    assert half.value == 1.0
    assert log.results.scores[0].unscored_samples == 1
    found = metrics(log)["fixed"]
    assert "pooled/turns/1/overall" not in found  # no denominator
    assert found["pooled/turns/2/overall"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "strict"}, ConfigError, "choose official, fixed or both"),
        ({"languages": "en,xx"}, ConfigError, "'xx' is unknown"),
        ({"data": "nowhere.csv"}, DataError, "nowhere.csv"),
        ({"turns": 4}, ConfigError, "turns=4"),
        ({"strip_thinking": "maybe"}, ConfigError, "thinking rule 'maybe'"),
        ({"mode": "official", "sentence_splitter": "commas"}, ConfigError, "commas"),
    ],
)
def test_wrong_arguments_are_refused_at_the_start(arguments, error, message):
    with pytest.raises(error, match=message):
        multi_if(**{"sentence_splitter": "rules"} | arguments)
