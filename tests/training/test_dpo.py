"""Offline DPO: its loss, its gradient, its reference, its rows."""

import json
import math
import random
import subprocess
import sys

import pytest
import torch
from tiny_policies import gradients, tiny_model
from tiny_rewards import language_model, marker_pairs
from torch.nn import functional as F

from llamarl.core.errors import CheckpointError, ConfigError, DataError
from llamarl.functional.preference import dpo_loss, ipo_loss
from llamarl.models.checkpoint import load_model, quiet
from llamarl.models.decoder import named_tensors
from llamarl.models.lora_config import LoraConfig
from llamarl.models.tiny import char_tokenizer
from llamarl.report.metrics import read_metrics
from llamarl.scoring.logprobs import PaddedScorer
from llamarl.training.examples import AnswerEncoder, Example, read_examples
from llamarl.training.fit import fit
from llamarl.training.fitter import Fitter, fit_model
from llamarl.training.objectives import DPO, DPOConfig
from llamarl.training.sft_rows import SFTRow

EXACT = DPOConfig(learning_rate=1e-2, warmup_steps=0, max_grad_norm=1e9)
FORMS = [
    EXACT,
    EXACT.model_copy(update={"label_smoothing": 0.2, "beta": 0.7}),
    EXACT.model_copy(update={"is_length_normalized": True, "beta": 3.0}),
    EXACT.model_copy(update={"loss": "ipo", "is_length_normalized": True, "beta": 0.5}),
]


def pairs(count=9, seed=0):
    """Prompts with a chosen and a rejected answer of different lengths, closed by the end token 2."""
    rng = random.Random(seed)

    def tokens(most):
        return tuple(rng.randrange(3, 20) for _ in range(rng.randrange(1, most)))

    made = []
    for index in range(count):
        prompt, chosen, rejected = (22, *tokens(5)), (*tokens(6), 2), (*tokens(4), 21, 2)
        lengths = (len(chosen), len(rejected))
        made.append(Example((prompt + chosen, prompt + rejected), lengths, str(index), 0.0))
    return made


def shifted(model):
    """The model after some training: no longer its own reference."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(0.05 * noise)
    return model


def prepared(config, rows, model=None):
    """A fitter whose reference is the tiny model and whose policy has moved away from it."""
    fitter = Fitter(model or tiny_model(), DPO(config))
    fitter.objective.prepare(fitter.scores, rows, {})
    shifted(fitter.model)
    return fitter


def by_hand(policy, config, rows):
    """The mean loss from the module's own padded forward pass, one answer at a time, in torch's words."""
    reference = tiny_model(policy.config.model_type)

    def logprob(model, example, side):
        ids, length = example.sequences[side], example.lengths[side]
        (total,) = PaddedScorer(model)([SFTRow(ids[:-length], ids[-length:])]).logprobs.sum().view(1)
        return total / (length if config.is_length_normalized else 1)

    losses = []
    for example in rows:
        chosen, rejected = (
            logprob(policy, example, side) - logprob(reference, example, side).detach() for side in (0, 1)
        )
        gap = chosen - rejected
        if config.loss == "ipo":
            losses.append((gap - 1 / (2 * config.beta)) ** 2)
        else:
            target = torch.tensor(1.0 - config.label_smoothing)
            losses.append(F.binary_cross_entropy_with_logits(config.beta * gap, target))
    return torch.stack(losses).mean()


# golden


def test_losses_by_hand():
    gap = torch.tensor([0.0, 2.0, -4.0])
    # log 2; log(1 + e^-1); log(1 + e^2), at beta 1/2
    assert dpo_loss(gap, 0.5).tolist() == pytest.approx([0.693147, 0.313262, 2.126928], abs=1e-6)
    # 0.9 * 0.313262 + 0.1 * (0.313262 + 1)
    assert float(dpo_loss(gap, 0.5, 0.1)[1]) == pytest.approx(0.413262, abs=1e-6)
    # (gap - 1)^2 at beta 1/2
    assert ipo_loss(gap, 0.5).tolist() == [1.0, 1.0, 25.0]


def test_smoothed_loss_is_least_at_a_finite_gap_and_ipo_at_half_of_one_over_beta():
    best = math.log(0.8 / 0.2) / 0.5
    gap = torch.tensor([best, 1.0], requires_grad=True)
    (dpo_loss(gap[:1], 0.5, 0.2) + ipo_loss(gap[1:], 0.5)).sum().backward()
    assert gap.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("config", FORMS)
@pytest.mark.parametrize("family", ["qwen2", "gpt_neox"])  # one the packed decoder knows, one it does not
def test_a_step_has_the_loss_and_gradient_of_the_formula(config, family):
    rows = pairs()
    fitter = prepared(config, rows, tiny_model(family))
    loss = by_hand(shifted(tiny_model(family)), config, rows)
    expected = gradients(policy := shifted(tiny_model(family)), lambda: by_hand(policy, config, rows))
    metrics = fitter.step(rows)
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert metrics["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert metrics["train/grad_norm"] == pytest.approx(float(norm), rel=1e-3)


def test_metrics_and_report_by_hand():
    row = Example(((9, 1, 2), (9, 1, 3, 2)), (2, 3), "p", 0.0)
    objective = DPO(DPOConfig(beta=0.5))
    objective.prepare(lambda rows: torch.tensor([-1.0, -1.0, -2.0, -1.0, -1.0]), [row], {})  # sums -2 and -4
    scores = torch.tensor([-0.5, -0.5, -3.0, -1.0, -2.0])  # sums -1 and -6: log-ratios 1 and -2, gap 3
    losses, metrics = objective.losses(scores, [row])
    values = {name: float(total) / count for name, (total, count) in metrics.items()}
    assert values == {
        "train/rewards/chosen": 0.5,
        "train/rewards/rejected": -1.0,
        "train/margin": 1.5,
        "train/accuracy": 1,
    }
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-1.5))])
    report = objective.report(scores, [row])
    assert (report.margin_mean, report.accuracy.value, report.accuracy_where_chosen_is_shorter.count) == (1.5, 1.0, 1)
    assert report.loss == pytest.approx(math.log1p(math.exp(-1.5)))
    assert objective.report(scores, [row]).metrics()["eval/margin/mean"] == 1.5


# learning


def test_the_first_loss_is_log_2_and_the_margin_grows():
    rows, seen = pairs(16), []
    model = tiny_model(scale=1.0, hidden_size=48, intermediate_size=96, head_dim=12)
    config = DPOConfig(num_steps=30, batch_size=16, learning_rate=3e-3, warmup_steps=2)
    last = fit_model(model, DPO(config), rows, lambda _, metrics: seen.append(metrics))
    assert seen[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-5) and abs(seen[0]["train/margin"]) < 1e-4
    assert last < 0.4 and seen[-1]["train/accuracy"] == 1.0
    assert seen[-1]["train/rewards/chosen"] > seen[-1]["train/rewards/rejected"]


# invariance


def test_micro_batches_keep_pairs_whole_and_change_nothing():
    rows = pairs()
    whole, cut = (prepared(EXACT.model_copy(update={"micro_batch_tokens": most}), rows) for most in (None, 30))
    parts = cut._split(rows)
    assert len(parts) > 2 and sorted(index for part in parts for index in part) == list(range(len(rows)))
    assert cut.step(rows) == pytest.approx(whole.step(rows), rel=1e-4, abs=1e-6)


def test_swapped_answers_have_the_opposite_margin():
    rows = pairs()
    swapped = [Example(row.sequences[::-1], row.lengths[::-1], row.prompt_key, 0.0) for row in rows]
    fitter = prepared(EXACT, [*rows, *swapped])
    assert fitter.evaluate(swapped).margin_mean == pytest.approx(-fitter.evaluate(rows).margin_mean, abs=1e-5)


def test_adapters_train_against_the_model_below_them():
    rows = pairs()
    config = EXACT.model_copy(update={"lora": LoraConfig(rank=3)})
    fitter = Fitter(tiny_model("qwen2"), DPO(config))
    fitter.objective.prepare(fitter.scores, rows, {})
    first, second = fitter.step(rows), fitter.step(rows)
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-5) and second["train/loss"] < first["train/loss"]
    after = fitter.evaluate(rows).loss
    fitter.merge()
    assert by_hand(fitter.model, config, rows).item() == pytest.approx(after, rel=1e-4)


# reduces_to


def test_without_smoothing_it_is_the_bradley_terry_loss_of_implicit_rewards():
    rows = pairs()
    fitter = prepared(EXACT, rows)
    assert fitter.evaluate(rows).loss == pytest.approx(by_hand(fitter.model, EXACT, rows).item(), rel=1e-4)


# rows


def test_pairs_are_encoded_as_the_policy_would_answer():
    tokenizer = char_tokenizer("chatml")
    user, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "yo"), ("assistant", "no"))
    )
    rows = [
        {"prompt": "hi", "chosen": "yo", "rejected": "no"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
    ]
    examples = [read_examples([row], "pairs", AnswerEncoder(tokenizer), DPOConfig()).examples[0] for row in rows]
    assert examples[0].sequences == examples[1].sequences == examples[2].sequences
    row = SFTRow.of_pair("hi", "yo", tokenizer)
    assert examples[0].sequences[0] == row.prompt_ids + row.token_ids and examples[0].lengths == (3, 3)


def test_an_implicit_prompt_is_the_common_start():
    tokenizer = char_tokenizer("chatml")
    row = {"chosen": "say moon", "rejected": "say cat"}
    (example,) = read_examples([row], "pairs", AnswerEncoder(tokenizer), DPOConfig()).examples
    assert example.sequences[0][: -example.lengths[0]] == tokenizer.encode_chat([{"role": "user", "content": "say"}])


# a whole training

SHORT = DPOConfig(
    batch_size=8, learning_rate=3e-3, warmup_steps=2, num_epochs=2, evaluate_every=4, checkpoint_every=3, held_out=0.25
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("models"))


class StopError(Exception):
    pass


def stop_after(number):
    def on_step(step, total, metrics):
        if step == number:
            raise StopError

    return on_step


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_stopped_training_goes_on_and_its_result_is_a_plain_checkpoint(model, lora, tmp_path):
    objective = DPO(SHORT.model_copy(update={"lora": lora}))
    summary = fit(objective, model, marker_pairs(60), tmp_path / "whole")
    with pytest.raises(StopError):
        fit(objective, model, marker_pairs(60), tmp_path / "out", on_step=stop_after(5))
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "out.partial/checkpoints").iterdir())) == 1
    steps = []
    fit(objective, model, marker_pairs(60), tmp_path / "out", on_step=lambda step, *_: steps.append(step))
    assert steps[0] == 4 and not (tmp_path / "out.partial").exists()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]
    with quiet() as transformers:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = dict(named_tensors(load_model(model)))
    assert dict(named_tensors(theirs)).keys() == base.keys()
    assert any(not torch.equal(tensor, base[name]) for name, tensor in named_tensors(theirs))
    assert summary["held_out_before"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert summary["held_out"]["accuracy"]["value"] > 0.6
    records = read_metrics(tmp_path / "out/metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, summary["steps"] + 1))
    losses = {record["step"]: record["eval/loss"] for record in records if "eval/loss" in record}
    assert summary["model_step"] == min(losses, key=losses.__getitem__)
    assert json.loads((tmp_path / "out/summary.json").read_text())["objective"] == "dpo"


def test_answers_are_scored_under_the_reference_only_once(model, tmp_path):
    rows = marker_pairs(20)
    with pytest.raises(StopError):
        fit(DPO(SHORT), model, rows, tmp_path / "out", on_step=stop_after(3))
    file = tmp_path / "out.partial/start.json"
    sums = json.loads(file.read_text())
    assert len(sums) == 20
    objective = DPO(SHORT)
    with pytest.raises(StopError):
        fit(objective, model, rows, tmp_path / "out", on_step=stop_after(4))
    assert {key: list(values) for key, values in objective._reference.items()} == sums


# rejects


def test_smoothing_of_ipo_and_unknown_losses_are_refused():
    with pytest.raises(ConfigError, match=r"label_smoothing=0\.1: for loss='sigmoid'; ipo has none"):
        DPOConfig.parse({"loss": "ipo", "label_smoothing": 0.1})
    with pytest.raises(ConfigError, match=r"label_smoothing: must be less than 0\.5"):
        DPOConfig.parse({"label_smoothing": 0.5})
    with pytest.raises(ConfigError, match=r"loss: 'ippo' is unknown\. Did you mean 'ipo'"):
        DPOConfig.parse({"loss": "ippo"})


def test_pairs_without_a_reference_are_refused():
    with pytest.raises(ConfigError, match="call `prepare` with all rows before"):
        Fitter(tiny_model(), DPO(EXACT)).step(pairs(2))


def test_answers_of_several_turns_and_empty_ones_are_bad_rows():
    tokenizer = char_tokenizer("chatml")
    user, good = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    long = [good, user, good]
    row = {"prompt": [user], "chosen": long, "rejected": [good, user, {**good, "content": "no"}]}
    with pytest.raises(DataError, match=r"rows, line 1: .*3 turns before the end.*differ in the last turn only"):
        read_examples([row], "pairs", AnswerEncoder(tokenizer), DPOConfig())
    with pytest.raises(DataError, match=r"rows, line 1: .*the answer to learn is empty"):
        read_examples([{"prompt": "a", "chosen": "b", "rejected": " "}], "pairs", AnswerEncoder(tokenizer), DPOConfig())


def test_an_unfinished_training_of_other_settings_is_refused(model, tmp_path):
    with pytest.raises(StopError):
        fit(DPO(SHORT), model, marker_pairs(20), tmp_path / "out", on_step=stop_after(3))
    changed = DPO(SHORT.model_copy(update={"beta": 0.3}))
    with pytest.raises(CheckpointError, match=r"other settings \(beta=0\.1, now 0\.3\); repeat .* or delete"):
        fit(changed, model, marker_pairs(20), tmp_path / "out")


def test_two_trainings_into_one_directory_are_refused(model, tmp_path):
    def start_another(step, total, metrics):
        fit(DPO(SHORT), model, marker_pairs(20), tmp_path / "out")

    with pytest.raises(ConfigError, match=r"process \d+ is training in this directory; wait for it"):
        fit(DPO(SHORT), model, marker_pairs(20), tmp_path / "out", on_step=start_another)


def test_objectives_are_declared_without_torch():
    code = "import sys, llamarl.training.objectives; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
