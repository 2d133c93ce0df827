import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from tiny_rewards import language_model, marker_pairs

from llamarl.core.errors import CheckpointError, CollapseError, DataError
from llamarl.models.checkpoint import load_classifier, quiet
from llamarl.models.decoder import named_tensors
from llamarl.models.lora_config import LoraConfig
from llamarl.report.metrics import read_metrics
from llamarl.training.fit import fit
from llamarl.training.objectives import RewardConfig, reward_objective

SHORT = RewardConfig(
    batch_size=8, learning_rate=3e-3, warmup_steps=2, schedule="linear", num_epochs=2, evaluate_every=4,
    checkpoint_every=3, held_out=0.25,
)  # fmt: skip


def train(model, rows, out, config, kind="pairs", **options):
    return fit(reward_objective(kind, config), model, rows, out, **options)


@pytest.fixture(scope="module", autouse=True)
def _one_thread_also_for_fixtures():
    """Equal numbers need equal thread counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(model, marker_pairs(60), out, SHORT)


def test_steps_instead_of_epochs(model, tmp_path):
    config = SHORT.model_copy(update={"num_steps": 7, "num_epochs": None, "schedule": "constant"})
    summary = train(model, marker_pairs(20), tmp_path / "out", config)  # of 2 steps an epoch
    assert (summary["steps"], summary["notes"]) == (7, [])


def test_tools_that_the_template_does_not_show_are_told(model, tmp_path):
    rows, told = [{**row, "tools": [{"name": "add"}]} for row in marker_pairs(20)], []
    config = SHORT.model_copy(update={"num_steps": 1, "num_epochs": None, "schedule": "constant"})
    summary = train(model, rows, tmp_path / "out", config, tell=told.append)
    assert (
        told == summary["notes"] == ["chat template: tools_ignored: the chat template doesn't show tools to the model"]
    )


class StopError(Exception):
    pass


def stop_after(number):
    def on_step(step, total, metrics):
        if step == number:
            raise StopError

    return on_step


def without_times(out):
    dropped = ("time", "time/step")
    return [{k: v for k, v in record.items() if k not in dropped} for record in read_metrics(out / "metrics.jsonl")]


def assert_same_result(a, b):
    assert without_times(a) == without_times(b)
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()
    summaries = [json.loads((out / "summary.json").read_text()) for out in (a, b)]
    for summary in summaries:
        for name in ("seconds", "peak_memory_bytes", "model"):
            del summary[name]
    assert summaries[0] == summaries[1]


# learning


def test_a_marker_is_learned_and_length_is_not(model, tmp_path):
    config = RewardConfig(batch_size=20, learning_rate=5e-3, warmup_steps=5, num_epochs=6, evaluate_every=20)
    summary = train(model, marker_pairs(300), tmp_path / "out", config)
    report = summary["held_out"]
    assert report["accuracy"]["value"] > 0.9 and report["accuracy"]["low"] > 0.7
    assert report["margin_mean"] > 1.0 and report["loss"] < 0.4
    assert abs(report["length_gap_correlation"]) < 0.6
    assert summary["rows"]["train"] + summary["rows"]["held_out"] == 300


def test_a_classifier_learns_labels(model, tmp_path):
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in marker_pairs(150)
        for side in ("chosen", "rejected")
    ]
    config = RewardConfig(
        batch_size=20, learning_rate=5e-3, warmup_steps=5, num_epochs=6, is_response_only=True, on_bad_row="skip"
    )
    summary = train(model, rows, tmp_path / "out", config, kind="labels")
    assert summary["held_out"]["accuracy"]["value"] > 0.9
    assert load_classifier(tmp_path / "out/model").config.id2label == {0: "negative", 1: "positive"}


# what is written


def test_the_directory_holds_a_standard_checkpoint_and_the_numbers(finished):
    out, summary = finished
    names = {path.name for path in out.iterdir()}
    assert names == {"model", "metrics.jsonl", "summary.json", "reward.png", "recipe.json", "environment.json"}
    records = read_metrics(out / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, summary["steps"] + 1))
    measured = [record["step"] for record in records if "eval/accuracy" in record]
    assert measured == sorted({*range(4, summary["steps"], 4), summary["steps"]})
    assert records[0]["train/loss"] == pytest.approx(0.6931, abs=1e-4) and records[-1]["train/lr"] < 1e-3
    with quiet() as transformers:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out / "model")
    assert theirs.config.num_labels == 1 and theirs.config.pad_token_id == 0
    assert theirs.config.architectures == ["LlamaForSequenceClassification"]
    assert (out / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_kept_is_that_of_the_lowest_held_out_loss(finished):
    out, summary = finished
    losses = {r["step"]: r["eval/loss"] for r in read_metrics(out / "metrics.jsonl") if "eval/loss" in r}
    assert summary["model_step"] == min(losses, key=losses.__getitem__)
    assert summary["held_out"]["loss"] == pytest.approx(min(losses.values()), abs=1e-6)


def test_without_held_out_rows_the_last_weights_are_kept(model, tmp_path):
    config = SHORT.model_copy(update={"held_out": 0.0})
    summary = train(model, marker_pairs(16), tmp_path / "out", config)
    assert (summary["held_out"], summary["model_step"], summary["steps"]) == (None, 4, 4)
    assert load_classifier(tmp_path / "out/model").score.weight.any()


def test_training_goes_on_from_a_reward_model(finished, tmp_path):
    out, _ = finished
    config = SHORT.model_copy(update={"num_epochs": 1})
    train(str(out / "model"), marker_pairs(60), tmp_path / "more", config)
    assert read_metrics(tmp_path / "more/metrics.jsonl")[0]["train/loss"] < 0.69


def test_adapters_train_beside_a_new_head_and_are_merged(model, tmp_path):
    changes = {"lora": LoraConfig(rank=2, targets=("q_proj",)), "learning_rate": 1e-2}
    summary = train(model, marker_pairs(60), tmp_path / "out", SHORT.model_copy(update=changes))
    # per layer q: 2 x 32 + 32 x 2, in two layers, and the head of 32
    assert summary["trained_parameters"] == 2 * 128 + 32
    assert summary["held_out"]["loss"] < 0.69
    tuned, base = (dict(named_tensors(load_classifier(path, new_labels=1))) for path in (tmp_path / "out/model", model))
    changed = {name for name in base if not torch.equal(tuned[name], base[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "score"} and tuned.keys() == base.keys()


def test_rows_left_out_are_counted(model, tmp_path):
    rows = [*marker_pairs(16), {"chosen": "a"}, marker_pairs(1)[0]]
    evaluation = [*marker_pairs(2), {**marker_pairs(1)[0], "prompt": "unseen"}]
    config = SHORT.model_copy(update={"on_bad_row": "skip"})
    summary = train(model, rows, tmp_path / "out", config, eval_data=evaluation)
    assert summary["rows"] == {
        "train": 14,
        "held_out": 3,
        "skipped": {"missing_field": 1, "duplicate": 1, "leak": 2},
    }


# resume


@pytest.mark.parametrize("stops", [[1], [3], [4, 8], [10]])
def test_a_stopped_training_ends_with_the_numbers_of_an_uninterrupted_one(finished, model, tmp_path, stops):
    whole, _ = finished
    for number in stops:
        with pytest.raises(StopError):
            train(model, marker_pairs(60), tmp_path / "out", SHORT, on_step=stop_after(number))
        assert len(list((tmp_path / "out/checkpoints").glob("*"))) == (number >= 3)
    steps = []
    train(model, marker_pairs(60), tmp_path / "out", SHORT, on_step=lambda step, *_: steps.append(step))
    assert steps[0] == 3 * (stops[-1] // 3) + 1
    assert_same_result(whole, tmp_path / "out")


def test_a_killed_training_ends_with_the_numbers_of_an_uninterrupted_one(finished, model, tmp_path):
    whole, _ = finished
    (tmp_path / "pairs.json").write_text(json.dumps(marker_pairs(60)))
    program = (
        "import json, os, signal, sys, torch\n"
        "from llamarl.training.fit import fit\n"
        "from llamarl.training.objectives import PairObjective, RewardConfig\n"
        "torch.set_num_threads(1)\n"
        "rows, config = json.load(open(sys.argv[1])), RewardConfig.model_validate_json(sys.argv[2])\n"
        "kill = lambda step, *_: step == 5 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "fit(PairObjective(config), sys.argv[3], rows, sys.argv[4], on_step=kill)\n"
    )
    arguments = [str(tmp_path / "pairs.json"), SHORT.model_dump_json(), model, str(tmp_path / "out")]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out/summary.json").exists()
    train(model, marker_pairs(60), tmp_path / "out", SHORT)
    assert_same_result(whole, tmp_path / "out")


# rejects


def test_finished_foreign_or_changed_directories_are_refused(finished, model, tmp_path):
    out, _ = finished
    with pytest.raises(CheckpointError, match="holds a finished training"):
        train(model, marker_pairs(60), out, SHORT)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="not empty and no training"):
        train(model, marker_pairs(60), tmp_path / "foreign", SHORT)
    with pytest.raises(StopError):  # nothing is lost yet, so it may begin again with other rows
        train(model, marker_pairs(50), tmp_path / "out", SHORT, on_step=stop_after(2))
    with pytest.raises(StopError):
        train(model, marker_pairs(60), tmp_path / "out", SHORT, on_step=stop_after(3))
    with pytest.raises(CheckpointError, match="an unfinished training with other rows"):
        train(model, marker_pairs(59), tmp_path / "out", SHORT)
    changed = SHORT.model_copy(update={"seed": 1, "num_epochs": 3})
    with pytest.raises(CheckpointError, match=r"other settings \(num_epochs=2, now 3, seed=0, now 1\); repeat"):
        train(model, marker_pairs(60), tmp_path / "out", changed)


def test_a_prompt_in_both_files_is_refused_before_anything_is_written(model, tmp_path):
    with pytest.raises(DataError, match="rows: 1 training rows have a prompt of the evaluation data"):
        train(model, marker_pairs(8), tmp_path / "out", SHORT, eval_data=marker_pairs(1))
    assert not (tmp_path / "out").exists()


def test_a_divergence_stops_the_training_and_the_best_model_stays(model, tmp_path):
    config = SHORT.model_copy(update={"keep": "last"})
    rows = [{**row, "margin": 3e38} for row in marker_pairs(40)]  # the loss overflows float32
    with pytest.raises(CollapseError, match="reward step 0: loss is"):
        train(model, rows, tmp_path / "out", config)
    assert not (tmp_path / "out/model").exists()


def test_the_best_model_of_a_diverged_training_stays(model, tmp_path):
    def explode(step, total, metrics):
        if step == 5:  # stands in for a loss that is not finite
            raise CollapseError("step 5: gone")

    with pytest.raises(CollapseError):
        train(model, marker_pairs(60), tmp_path / "out", SHORT, on_step=explode)
    assert load_classifier(tmp_path / "out/model").score.weight.any() and not (tmp_path / "out/summary.json").exists()


def test_conversations_longer_than_the_models_positions_are_bad_rows(model, tmp_path):
    row = {"prompt": "p", "chosen": "a" * 300, "rejected": "b"}
    with pytest.raises(DataError, match="max_tokens is 256"):
        train(model, [row], tmp_path / "out", SHORT)
