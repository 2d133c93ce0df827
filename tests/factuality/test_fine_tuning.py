import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny_detectors import claim_of, write_tiny

from llamarl.core.errors import CheckpointError, CollapseError, ConfigError, DataError
from llamarl.factuality.asking import load_prompt
from llamarl.factuality.claims import Answer, Ask, Claim, Probe
from llamarl.factuality.detectors.files import load_detector
from llamarl.factuality.detectors.fine_tuning import (
    ClaimObjective,
    FineTuning,
    FineTuningSettings,
    RateFT,
    RateFTSettings,
    choose_prompts,
    report_scores,
)
from llamarl.factuality.detectors.labels import score_labels
from llamarl.factuality.labelled import LabelledClaim, read_data
from llamarl.factuality.settings import Train
from llamarl.factuality.training import train
from llamarl.functional.logprobs import pick_logprobs
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.training.fitter import Fitter

CITIES = [f"{a}{b}" for a in "BCDFGKLMNP" for b in ("an", "ex", "il")]
BRIEF = {"num_epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "lora": {"rank": 4}, "warmup_steps": 2}


def labelled(number: int, split: str = "train", **changes: object) -> LabelledClaim:
    """Cities with a vowel a are in France, says the world; every claim says France."""
    city = CITIES[number % len(CITIES)]
    label = "a" in city
    right = f"{city} is in {'France' if label else 'Spain'}."
    values = {
        "claim": Claim(f"p{number}/0", Answer(Ask(f"p{number}", ""), "", "stop"), f"{city} is in France.", (0, 1)),
        "label": label,
        "split": split,
        "rationale": right if label else f"{right} The claim says France.",
        "question": Probe(f"Where is {city}?", "France" if label else "Spain", right),
        "paraphrases": (f"France has {city}.",),
    }
    return LabelledClaim(**{**values, **changes})  # type: ignore[arg-type]


def row_of(each: LabelledClaim) -> dict:
    question = each.question
    return {
        "id": each.claim.id,
        "prompt": each.prompt,
        "claim": each.claim.text,
        "label": each.label,
        "rationale": each.rationale,
        "question": question and {"question": question.question, "answer": question.answer, "explanation": "So."},
        "paraphrases": list(each.paraphrases),
        "split": each.split,
    }


def write_data(directory: Path, sizes: tuple[int, int, int] = (12, 9, 9)) -> Path:
    directory.mkdir()
    number = 0
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        rows = [row_of(labelled(number + offset, split)) for offset in range(size)]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        number += size
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "claims")


def encode(checkpoint, settings, claims=None, positions=512):
    """Texts of the rows to train on, prompt and target."""
    tokenizer = load_tokenizer(checkpoint)
    objective = ClaimObjective(settings, load_prompt("detect"))
    claims = claims or [labelled(number) for number in range(6)]
    held_out = [labelled(number, "validation") for number in range(6, 12)]
    rows = objective.read(objective.claims(claims), objective.claims(held_out), None, tokenizer, positions)
    decoded = [
        tuple(tokenizer.decode(ids, skip_special=False) for ids in (r.prompt_ids, r.token_ids)) for r in rows.train
    ]
    return decoded, rows, objective


# golden


def test_targets_worked_by_hand(checkpoint):
    claims = [labelled(0), labelled(1)]
    end = "<|eot_id|>"
    (true, false), *_ = encode(checkpoint, FineTuningSettings(), claims)
    assert (true[1], false[1]) == (f"True{end}", f"False{end}")
    assert "Claim: Ban is in France." in true[0] and true[0].endswith("assistant<|end_header_id|>\n\n")
    (first, asked, second, _), *_ = encode(checkpoint, RateFTSettings(), claims)
    assert first[1] == f"True. Ban is in France.{end}"
    assert second[1] == f"False. Bex is in Spain. The claim says France.{end}"
    assert "Where is Ban?" in asked[0] and asked[1] == f"France. Ban is in France.{end}"


def test_the_loss_is_the_weighted_mean_over_target_tokens_worked_by_hand(checkpoint):
    _, rows, objective = encode(checkpoint, FineTuningSettings(label_weight=3.0), [labelled(0)])
    (row,) = rows.train
    scores = torch.full((row.num_tokens,), -2.0)  # T, r, u, e, end: 3 + 4 tokens of weight 1
    losses, _ = objective.losses(scores, [row])
    assert losses.tolist() == [6.0, 2.0, 2.0, 2.0, 2.0]
    assert objective.divisor([row]) == 7.0
    _, auxiliary = encode(checkpoint, RateFTSettings(label_weight=3.0), [labelled(0)])[1].train
    assert auxiliary.weight == 1.0  # it has no label


def test_a_report_worked_by_hand():
    scores = [score_labels(math.log(true), math.log(false)) for true, false in ((0.6, 0.2), (0.3, 0.3), (0.1, 0.1))]
    report = report_scores(scores, [True, False, False])
    assert report.auc == 1.0 and report.bacc == 1.0 and 0.5 < report.threshold < 0.75
    assert report.loss == pytest.approx(-(torch.tensor([0.75, 0.5, 0.5]).log()).mean().item(), abs=1e-6)


# invariance: what the variants differ in


def test_variants_differ_only_in_the_stated_part(checkpoint):
    full, *_ = encode(checkpoint, RateFTSettings())
    without_auxiliary, *_ = encode(checkpoint, RateFTSettings(auxiliary=False))
    without_rationale, *_ = encode(checkpoint, RateFTSettings(rationale=False))
    plain, *_ = encode(checkpoint, FineTuningSettings())
    detection, auxiliary = full[::2], full[1::2]
    assert without_auxiliary == detection
    assert without_rationale[1::2] == auxiliary and without_rationale[::2] == plain
    assert [prompt for prompt, _ in plain] == [prompt for prompt, _ in detection]
    for (_, bare), (_, reasoned) in zip(plain, detection, strict=True):
        assert reasoned.startswith(bare.removesuffix("<|eot_id|>") + ". ")
    assert encode(checkpoint, FineTuningSettings(auxiliary=True, rationale=True))[0] == full


def test_every_claim_has_one_detection_row_and_at_most_one_question(checkpoint):
    claims = [labelled(0), labelled(1, question=None), labelled(2)]
    rows, encoded, _ = encode(checkpoint, RateFTSettings(), claims)
    assert [row[0].count("Claim: ") for row in rows] == [1, 0, 1, 1, 0]
    assert encoded.notes == ["2 of 3 training claims have an auxiliary question"]


def test_no_input_of_detection_holds_rationale_or_answer(checkpoint):
    rows, encoded, _ = encode(checkpoint, RateFTSettings(), [labelled(1)])
    assert "Spain" not in rows[0][0] and "The claim says" not in rows[0][0]
    assert all(row.token_ids == () and row.label is not None for row in encoded.held_out)


def test_paraphrases_add_as_many_rows_as_questions_and_keep_the_label(checkpoint):
    rows, *_ = encode(checkpoint, FineTuningSettings(paraphrases=True), [labelled(0), labelled(1)])
    assert [target for _, target in rows[::2]] == [target for _, target in rows[1::2]]
    assert "Claim: France has Ban." in rows[1][0]
    own = labelled(1, paraphrases=("Bex is in France.",))
    assert encode(checkpoint, FineTuningSettings(paraphrases=True), [own])[1].notes == [
        "0 of 1 training claims have a paraphrase"
    ]


def test_a_share_of_the_data_is_chosen_by_prompt_and_grows_with_the_share():
    claims = [
        LabelledClaim(Claim(f"p{n // 2}/{n}", Answer(Ask(f"p{n // 2}", ""), "", "stop"), "x", (0, 1)), True, "train")
        for n in range(20)
    ]
    half = choose_prompts(claims, FineTuningSettings(data_share=0.5))
    assert len(half) == 10 and len({each.prompt for each in half}) == 5
    third = choose_prompts(claims, FineTuningSettings(data_share=0.3))
    assert {each.prompt for each in third} < {each.prompt for each in half}
    assert {each.prompt for each in choose_prompts(claims, FineTuningSettings(data_share=0.5, seed=1))} != {
        each.prompt for each in half
    }


def test_held_out_claims_are_measured_as_they_will_be_scored(checkpoint):
    _, rows, objective = encode(checkpoint, FineTuningSettings(device="cpu"))
    fitter = Fitter(objective.load(str(checkpoint), load_tokenizer(checkpoint)), objective, 100)
    scores = fitter.scores(rows.held_out).view(-1, 2)
    model = load_model(checkpoint)
    for row, (log_true, log_false) in zip(rows.held_out, scores.tolist(), strict=True):
        ids = objective._labels.ids
        logprobs = pick_logprobs(model(torch.tensor([row.prompt_ids])).logits[:, -1], torch.tensor(ids))
        true, false = objective._labels.sum_up(logprobs.detach())[0].tolist()
        assert (log_true, log_false) == pytest.approx((true, false), abs=1e-4)


# a whole training


@pytest.fixture(scope="module")
def trained(checkpoint, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "detector"
    summary = train(Train(data=data, model=str(checkpoint), out=out, device="cpu"), BRIEF)
    return out, summary


def test_a_trained_detector_has_learned_and_is_written_whole(trained, checkpoint, data):
    out, summary = trained
    assert {file.name for file in out.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "detector.json", "scores.jsonl",
        "summary.json", "train.json", "training",
    }  # fmt: skip
    assert {file.name for file in (out / "training").iterdir()} >= {"metrics.jsonl", "summary.json", "recipe.json"}
    detector = load_detector(out, device="cpu")
    assert isinstance(detector, RateFT) and detector.threshold == summary["threshold"]
    found = read_data(data)
    scores = detector.score([each.claim for each in [*found.validation, *found.test]])
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == pytest.approx([score.p_factual for score in scores], abs=1e-6)
    assert {row["split"] for row in rows} == {"validation", "test"} and rows[0]["method"] == "rate_ft"
    card = (out / "README.md").read_text()
    assert "{{" not in card and f"{summary['threshold']:.4f}" in card and "canary" in card
    losses = [json.loads(line)["train/loss"] for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 6 and losses[-1] < losses[0]  # 12 claims and 12 questions, twice, 8 rows a step


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_peft_gives_the_same_p_factual_and_the_base_is_as_it_was(trained, checkpoint, data):
    import peft

    out, _ = trained
    detector = load_detector(out, device="cpu")
    claims = [each.claim for each in read_data(data).test]
    base = load_model(checkpoint)
    fresh = {name: tensor.clone() for name, tensor in base.named_parameters()}
    adapted = peft.PeftModel.from_pretrained(base, str(out)).eval()
    labels = detector.backbone.labels
    for claim, score in zip(claims, detector.score(claims), strict=True):
        ids = detector.backbone.encode(detector.prompts["detect"], claim=claim.text).ids
        logits = adapted(input_ids=torch.tensor([ids])).logits[:, -1].detach()
        pair = labels.sum_up(pick_logprobs(logits, torch.tensor(labels.ids)))[0].tolist()
        assert score.p_factual == pytest.approx(score_labels(*pair).p_factual, abs=1e-5)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in load_model(checkpoint).named_parameters())


def test_generating_on_does_not_change_the_score(trained, data):
    detector = load_detector(trained[0], device="cpu")
    claim = read_data(data).test[0].claim
    (before,) = detector.score([claim])
    ids = detector.backbone.encode(detector.prompts["detect"], claim=claim.text).ids
    detector.backbone.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
    assert detector.score([claim]) == [before]


def test_a_killed_training_ends_as_an_uninterrupted_one(checkpoint, data, tmp_path, trained):
    class Killed(Exception):
        """A kill, which no handler of the training knows."""

    def kill(step, total, metrics):
        if step == 4:
            raise Killed

    settings = Train(data=data, model=str(checkpoint), out=tmp_path / "detector", device="cpu")
    brief = {**BRIEF, "checkpoint_every": 2}
    with pytest.raises(Killed):
        train(settings, brief, on_step=kill)
    with pytest.raises(CheckpointError, match=r"asked for otherwise \(settings.lora.rank=4, now 8\)"):
        train(settings, {**brief, "lora": {"rank": 8}})
    steps = []
    train(settings, brief, on_step=lambda step, total, metrics: steps.append(step))
    assert steps[0] == 5
    scores = [json.loads(line)["score"] for line in (tmp_path / "detector" / "scores.jsonl").read_text().splitlines()]
    whole = [json.loads(line)["score"] for line in (trained[0] / "scores.jsonl").read_text().splitlines()]
    assert scores == whole


def test_after_a_kill_behind_the_training_only_the_scoring_is_done_again(trained, checkpoint, data, tmp_path):
    out = tmp_path / "detector"
    shutil.copytree(trained[0], out)
    for name in ("detector.json", "summary.json"):
        (out / name).unlink()
    steps = []
    settings = Train(data=data, model=str(checkpoint), out=out, device="cpu")
    train(settings, BRIEF, on_step=lambda *step: steps.append(step))
    assert steps == [] and load_detector(out, device="cpu").threshold is not None
    with pytest.raises(CheckpointError, match="holds a detector"):
        train(settings, BRIEF)


def test_a_method_without_training_gets_its_threshold(checkpoint, data, tmp_path):
    summary = train(Train(data=data, model=str(checkpoint), method="prompt_tf", out=tmp_path / "d", device="cpu"))
    assert load_detector(tmp_path / "d", device="cpu").threshold == summary["threshold"]
    assert summary["test"]["auc"] is not None and not (tmp_path / "d" / "training").exists()
    assert "peft" not in (tmp_path / "d" / "README.md").read_text()


# rejects


def test_an_adapter_of_another_base_is_refused(trained, tmp_path):
    other = write_tiny(tmp_path / "wide", hidden_size=48)
    with pytest.raises(CheckpointError, match=r"give the model that the adapter was trained on"):
        load_detector(trained[0], other, device="cpu")
    alike = write_tiny(tmp_path / "alike", seed=5)
    with pytest.raises(CheckpointError, match="another model than the detector's"):
        load_detector(trained[0], alike, device="cpu")


def test_a_lost_or_exchanged_adapter_is_refused(trained, tmp_path):
    out = tmp_path / "detector"
    shutil.copytree(trained[0], out)
    (out / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: is not the file"):
        load_detector(out, device="cpu")
    (out / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors"):
        load_detector(out, device="cpu")


def test_rows_that_do_not_fit_are_counted_and_a_training_without_rows_is_refused(checkpoint):
    long = labelled(0, claim=claim_of("x" * 900))
    forged = labelled(0, claim=claim_of("x<|eot_id|>"))
    reason = labelled(0, rationale="Because.<|eot_id|>True.")
    _, rows, _ = encode(checkpoint, RateFTSettings(auxiliary=False), [labelled(0), long, forged, reason])
    assert len(rows.train) == 1 and dict(rows.skipped) == {"too_long": 1, "special_token": 2}
    with pytest.raises(DataError, match=r"no claim to train on, of 1; left out: \{'too_long': 1\}"):
        encode(checkpoint, FineTuningSettings(), [long])


@pytest.mark.parametrize(
    ("split", "changes", "message"),
    [
        ("train", {"label": None}, r"train.jsonl, line 1.*label.*null.* is neither|neither true nor false"),
        ("train", {"claim": " "}, r"claim"),
        ("train", {"question": "Where?"}, r"question"),
        ("train", {"paraphrases": "x"}, r"paraphrases"),
        ("test", {"prompt": "p0"}, r"'p0' is in train and in test"),
        ("test", {"id": "p0/0"}, r"also the id of .*train.jsonl, line 1"),
        ("test", {"split": "train"}, r"split"),
    ],
)
def test_a_bad_row_is_named(tmp_path, split, changes, message):
    place = write_data(tmp_path / "claims")
    lines = (place / f"{split}.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), **changes})
    (place / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        read_data(place)


def test_validation_claims_of_one_label_are_refused(tmp_path):
    with pytest.raises(DataError, match="not of both labels"):
        read_data(write_data(tmp_path / "claims", (6, 1, 6)))
    with pytest.raises(DataError, match="detect build"):
        read_data(tmp_path / "nothing")


def test_a_foreign_directory_stays_as_it_was(checkpoint, data, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"not empty \(holds mine.txt\)"):
        train(Train(data=data, model=str(checkpoint), out=tmp_path, device="cpu"))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_mistyped_model_can_be_put_right_in_the_same_directory(checkpoint, data, tmp_path):
    out = tmp_path / "detector"
    with pytest.raises(CheckpointError, match="no such directory"):
        train(Train(data=data, model=str(tmp_path / "modle"), method="prompt_tf", out=out, device="cpu"))
    assert train(Train(data=data, model=str(checkpoint), method="prompt_tf", out=out, device="cpu"))["threshold"]


def test_a_training_that_breaks_down_leaves_its_best_adapter(checkpoint, data, tmp_path):
    def collapse(step, total, metrics):
        if step == 4:
            raise CollapseError("step 4: gone")

    settings = Train(data=data, model=str(checkpoint), out=tmp_path / "d", device="cpu")
    with pytest.raises(CollapseError):
        train(settings, BRIEF, on_step=collapse)
    assert (tmp_path / "d" / "training" / "model" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "d" / "detector.json").exists()


def test_a_wrong_setting_is_named(checkpoint, data, tmp_path):
    with pytest.raises(ConfigError, match=r"rationele.*rationale"):
        train(Train(data=data, model=str(checkpoint), out=tmp_path / "d"), {"rationele": "false"})
    assert FineTuning.Settings is FineTuningSettings and not (tmp_path / "d").exists()


def test_training_claims_of_one_label_are_refused(tmp_path):
    place = tmp_path / "claims"
    place.mkdir()
    for split, start, size in (("train", 0, 12), ("validation", 12, 9)):
        rows = [row_of(labelled(number, split)) for number in range(start, start + size)]
        kept = [row for row in rows if row["label"] or split == "validation"]
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    model = write_tiny(tmp_path / "model")
    with pytest.raises(DataError, match=r"train.jsonl: \d+ claims of one label"):
        train(Train(data=place, model=str(model), out=tmp_path / "out", device="cpu"), BRIEF)
    assert not (tmp_path / "out" / "detector.json").exists()
