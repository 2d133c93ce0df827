import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from feedback_logs import ingest_rows
from love_logs import BRIEF, log_rows, love_store, tiny_model

from llamarl.core.errors import CheckpointError, ConfigError, DataError
from llamarl.core.records import Prompt, text_completion
from llamarl.feedback import Fit, fit
from llamarl.functional.preference import calibrated_reward
from llamarl.functional.statistics import auroc
from llamarl.judges.reward_model import RewardModel
from llamarl.models.checkpoint import load_classifier, load_tokenizer, quiet, save_model
from llamarl.models.classifier import conversation_ids
from llamarl.report.files import read_jsonl
from llamarl.report.metrics import read_metrics


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Equal numbers need equal thread counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return love_store(tmp_path_factory.mktemp("logs"), users=90)


@pytest.fixture(scope="module")
def finished(model, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("fits") / "love"
    return out, fit(Fit(store=store.path, model=model, out=out), BRIEF)


class StopError(Exception):
    """Stands for what ends a training between two steps."""


def numbers(out):
    """What a training says, without the time it took and where it lies."""
    records = read_metrics(out / "metrics.jsonl")
    timeless = [{k: v for k, v in each.items() if k not in ("time", "time/step")} for each in records]
    return timeless, json.loads((out / "report.json").read_text()), (out / "model/model.safetensors").read_bytes()


def test_what_users_love_is_learned_on_other_users_later(finished):
    out, summary = finished
    report = summary["held_out"]
    assert report["auroc"] > 0.8 and report["auroc_interval"][0] > 0.6
    assert report["auroc_interval"][0] < report["auroc"] < report["auroc_interval"][1]
    assert report["mean_probability"] == pytest.approx(report["base_rate"], abs=0.05)
    assert 0.03 < report["base_rate"] < 0.1 and report["positive_share"] == 0.2
    assert report["brier"] < report["observed_rate"] * (1 - report["observed_rate"]) + 0.01
    assert set(report["by"]) == {"surface", "language", "model_version"}
    assert set(report["by"]["surface"]) == {"ios", "web"} and set(report["by"]["language"]) == {""}
    assert sum(part["messages"] for part in report["by"]["surface"].values()) == report["messages"]
    assert {path.name for path in out.iterdir()} == {
        *("model", "metrics.jsonl", "summary.json", "recipe.json", "environment.json"),
        *("report.json", "love.png", "held-out.jsonl"),
    }
    assert (out / "love.png").read_bytes().startswith(b"\x89PNG")
    shares = [record["train/positive_frac"] for record in read_metrics(out / "metrics.jsonl")]
    assert sum(shares) / len(shares) == pytest.approx(report["positive_share"], abs=0.01)


def test_raw_logits_are_kept_and_are_those_of_the_checkpoint(finished):
    out, summary = finished
    rows, report = read_jsonl(out / "held-out.jsonl"), summary["held_out"]
    assert len(rows) == report["messages"]
    assert auroc([row["logit"] for row in rows], [row["is_loved"] for row in rows]) == pytest.approx(report["auroc"])
    with quiet() as transformers:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out / "model")
    assert theirs.config.num_labels == 1 and theirs.config.id2label == {0: "love"}
    assert theirs.config.love == {name: report[name] for name in ("base_rate", "positive_share")}


def test_it_is_a_reward_model_also_in_its_calibrated_form(finished):
    out, _ = finished
    prompt = Prompt("p", ({"role": "user", "content": "ask 1"},), info={"baseline": "abcdef"})
    answers = [text_completion(text) for text in ("abc#def", "fedcba", "abcdef")]
    raw = asyncio.run(RewardModel(str(out / "model")).judge(prompt, answers))
    margins = asyncio.run(RewardModel(str(out / "model"), calibrated=True).judge(prompt, answers))
    assert raw[0].score > raw[1].score
    assert [m.score for m in margins] == pytest.approx([r.score - raw[2].score for r in raw], abs=1e-5)
    assert calibrated_reward(margins[2].score) == 0.5


def test_a_stopped_fit_ends_with_the_numbers_of_an_uninterrupted_one(finished, model, store, tmp_path):
    def interrupt(step, total, metrics):
        if step == 12:
            raise StopError

    settings = Fit(store=store.path, model=model, out=tmp_path / "love")
    with pytest.raises(StopError):
        fit(settings, BRIEF, on_step=interrupt)
    fit(settings, BRIEF)
    assert numbers(tmp_path / "love") == numbers(finished[0])


def test_a_killed_fit_ends_with_the_numbers_of_an_uninterrupted_one(finished, model, store, tmp_path):
    program = (
        "import os, signal, sys, torch\n"
        "from llamarl.feedback import Fit, fit\n"
        "from llamarl.training.objectives import LoveConfig\n"
        "torch.set_num_threads(1)\n"
        "kill = lambda step, *_: step == 7 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "settings = Fit(store=sys.argv[1], model=sys.argv[2], out=sys.argv[3])\n"
        "fit(settings, LoveConfig.model_validate_json(sys.argv[4]), on_step=kill)\n"
    )
    arguments = [str(store.path), model, str(tmp_path / "love"), BRIEF.model_dump_json()]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    fit(Fit(store=store.path, model=model, out=tmp_path / "love"), BRIEF)
    assert numbers(tmp_path / "love") == numbers(finished[0])


def test_a_store_that_changed_is_refused_and_the_same_logs_again_are_not(model, tmp_path):
    def interrupt(step, total, metrics):
        if step == 6:
            raise StopError

    store = love_store(tmp_path / "logs")
    settings = Fit(store=store.path, model=model, out=tmp_path / "love")
    with pytest.raises(StopError):
        fit(settings, BRIEF, on_step=interrupt)
    ingest_rows(tmp_path / "logs", log_rows(seed=1))
    with pytest.raises(CheckpointError, match=r"training with other rows .* give the data as it was, or choose"):
        fit(settings, BRIEF)
    love_store(tmp_path / "logs")  # with the same key
    assert fit(settings, BRIEF)["steps"] > 6


def test_what_is_left_out_is_counted_and_told(finished, store):
    _, summary = finished
    rows = summary["rows"]
    assert rows["train"] + rows["held_out"] + sum(rows["skipped"].values()) == store.record["kept"]
    assert {"later_of_trained_user", "earlier_of_held_out_user", "user_never_reacted"} <= rows["skipped"].keys()
    assert "measured on later ones of other users" in summary["notes"][0]


def test_rows_that_are_too_long_are_left_out_and_counted(model, store, tmp_path):
    turns = [{"role": "user", "content": "ask 123456"}], [{"role": "assistant", "content": "abcdefabcdef"}]
    most = len(conversation_ids(load_tokenizer(model), *turns))
    config = BRIEF.model_copy(update={"max_tokens": most, "num_steps": 1, "num_epochs": None})
    skipped = fit(Fit(store=store.path, model=model, out=tmp_path / "love"), config)["rows"]["skipped"]
    assert skipped["too_long"] > 0 and skipped["held out: too_long"] > 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lambda: log_rows(love_rate=0.0), "none of 1,200 messages has a love reaction"),
        (lambda: log_rows(love_rate=0.02), "loved messages to train on and .* it takes 10 of each; add days or users"),
        (lambda: log_rows(days=0.5), "all 1,200 messages are of one day, 2025-03-01"),
    ],
)
def test_a_log_that_teaches_nothing_is_refused_before_anything_is_written(model, tmp_path, rows, words):
    store = ingest_rows(tmp_path, rows())
    with pytest.raises(DataError, match=words):
        fit(Fit(store=store.path, model=model, out=tmp_path / "love"), BRIEF)
    assert not (tmp_path / "love").exists()


def test_a_model_without_chat_template_is_refused(model, store, tmp_path):
    tokenizer = load_tokenizer(model)
    tokenizer.backend.chat_template = None
    save_model(load_classifier(model, new_labels=1), tokenizer, tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"no chat template.* put a chat_template.jinja beside its tokenizer.json"):
        fit(Fit(store=store.path, model=str(tmp_path / "bare"), out=tmp_path / "love"), BRIEF)
