import math

import pytest
import torch
from tiny_policies import gradients
from tiny_rewards import examples_of, language_model, marker_pairs, reward_model

from llamarl.core.errors import CollapseError, ConfigError
from llamarl.models.decoder import named_tensors
from llamarl.scoring.conversations import (
    PackedConversations,
    PaddedConversations,
    build_conversation_scorer,
    split_groups,
)
from llamarl.training.examples import Example
from llamarl.training.fitter import Batches, Fitter
from llamarl.training.objectives import LabelObjective, PairObjective, RewardConfig, reward_objective

EXACT = RewardConfig(learning_rate=1e-2, warmup_steps=0, max_grad_norm=1e9)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def examples():
    return examples_of(marker_pairs(12))


def weights(model):
    return {name: tensor.clone() for name, tensor in named_tensors(model)}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# golden


def pair(margin=0.0):
    return Example(((1,), (2,)), (1, 1), "p", margin)


def test_pair_losses_and_metrics_by_hand():
    logits = torch.tensor([[2.0], [1.0], [0.0], [0.0], [1.0], [3.0]], requires_grad=True)  # gaps 1, 0, -2
    losses, metrics = PairObjective(EXACT).losses(logits, [pair(), pair(), pair()])
    # log(1 + e^-1), log 2, log(1 + e^2)
    assert losses.tolist() == pytest.approx([0.313262, 0.693147, 2.126928], abs=1e-6)
    assert [float(value) for value in metrics["train/margin"]] == [-1.0, 3.0]
    assert [float(value) for value in metrics["train/accuracy"]] == [1.0, 3.0]  # a tie is no success


def test_margin_and_centering_enter_the_loss():
    logits = torch.tensor([[2.0], [1.0]])
    losses, _ = PairObjective(RewardConfig(centering=0.1)).losses(logits, [pair(margin=1.0)])
    assert losses.tolist() == pytest.approx([math.log(2) + 0.1 * 9.0])  # gap 1 - margin 1; (2 + 1)^2


def test_label_losses_by_hand():
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    rows = [Example(((1,),), (1,), "p", label) for label in (1.0, 0.0)]
    losses, metrics = LabelObjective(EXACT).losses(logits, rows)
    assert losses.tolist() == pytest.approx([0.313262, 1.313262], abs=1e-6)  # log(1 + e^-1), log(1 + e)
    assert float(metrics["train/accuracy"][0]) == 1.0


def test_a_new_head_starts_at_log_2_and_learns_from_the_first_step(path, examples):
    trainer = Fitter(reward_model(path, scale=0.0), PairObjective(EXACT))
    first, second = trainer.step(examples), trainer.step(examples)
    assert first["train/loss"] == pytest.approx(math.log(2)) and first["train/margin"] == 0.0
    assert first["train/grad_norm"] > 0 and second["train/loss"] < first["train/loss"]


# gradient


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_packed_scores_and_gradients_are_those_of_the_padded_reference(family, tmp_path, examples):
    model = reward_model(language_model(tmp_path, family))
    groups = [example.sequences for example in examples]
    groups += [((7,),), ((8, 9, 10),), ((5, 6), (5, 6, 7)), ((9, 8), (4, 3)), ((4, 5, 0, 0), (4, 6))]
    packed, padded = PackedConversations(model), PaddedConversations(model)
    assert type(build_conversation_scorer(model)) is PackedConversations
    ours, theirs = packed(groups), padded(groups)
    assert ours.shape == (2 * len(examples) + 8, 1) and theirs.std() > 0.1
    assert torch.allclose(ours, theirs, atol=2e-5)
    direction = torch.linspace(-1, 1, len(ours))[:, None]
    mine = gradients(model, lambda: (packed(groups) * direction).sum())
    reference = gradients(model, lambda: (padded(groups) * direction).sum())
    assert all(torch.allclose(mine[name], reference[name], atol=2e-4, rtol=1e-3) for name in reference)


def test_the_gradient_of_a_step_is_that_of_the_mean_loss(path, examples):
    model = reward_model(path)
    by_hand = reward_model(path)
    norm = Fitter(model, PairObjective(EXACT)).step(examples)["train/grad_norm"]
    scores = PaddedConversations(by_hand)([example.sequences for example in examples]).view(-1, 2)
    (-torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1])).mean().backward()
    expected = torch.stack([p.grad.norm() for p in by_hand.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(float(expected), rel=1e-4)


def test_the_head_alone_is_trained_when_asked(path, examples):
    model = reward_model(path)
    before = weights(model)
    Fitter(model, PairObjective(EXACT.model_copy(update={"is_head_only": True}))).step(examples)
    after = weights(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"score.weight"}


# invariance


def test_micro_batches_and_the_order_of_pairs_change_nothing(path, examples):
    def stepped(examples, **changes):
        model = reward_model(path)
        metrics = Fitter(model, PairObjective(EXACT.model_copy(update=changes))).step(examples)
        return metrics

    whole = stepped(examples)
    for other in (stepped(examples, micro_batch_tokens=60), stepped(examples[::-1])):
        assert other == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_swapping_the_answers_negates_the_margin(path, examples):
    trainer = Fitter(reward_model(path), PairObjective(EXACT))
    swapped = [Example(e.sequences[::-1], e.lengths[::-1], e.prompt_key, 0.0) for e in examples]
    ahead, back = trainer.evaluate(examples), trainer.evaluate(swapped)
    assert back.margin_mean == pytest.approx(-ahead.margin_mean, abs=1e-5)
    assert back.accuracy.value == pytest.approx(1 - ahead.accuracy.value)


def test_logits_come_back_in_order_and_training_leaves_no_trace_of_it(path, examples):
    trainer = Fitter(reward_model(path), PairObjective(EXACT.model_copy(update={"micro_batch_tokens": 50})))
    before = weights(trainer.model)
    logits = trainer.scores(examples)
    one_by_one = torch.cat([trainer.scores([example]) for example in examples])
    assert torch.allclose(logits, one_by_one, atol=2e-5) and equal(before, weights(trainer.model))


def test_micro_batches_hold_whole_groups_within_the_budget():
    groups = [((1, 2, 3, 4), (1, 2, 9)), ((5,) * 30, (5,) * 29), ((1, 2), (1, 3)), ((7, 8),)]
    # packed tokens: 2 shared + 2 + 1; 29 shared + 1; 1 shared + 1 + 1; 2
    assert split_groups(groups, 10) == [[3, 2, 0], [1]]
    assert split_groups(groups, 7) == [[3, 2], [0], [1]]
    assert split_groups(groups, 1) == [[3], [2], [0], [1]]


def batches_of(examples, seed):
    return Batches(examples, PairObjective(RewardConfig(batch_size=5, seed=seed, num_epochs=3)))


def test_every_example_comes_once_an_epoch_in_an_order_of_seed_and_content_alone(examples):
    batches = batches_of(examples, seed=1)
    assert batches.num_steps == 9
    epochs = [[e.key for step in range(3) for e in batches[3 * epoch + step]] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(e.key for e in examples)
    assert epochs[0] != epochs[1] and [len(batches[step]) for step in range(3)] == [5, 5, 2]
    shuffled = batches_of(examples[::-1], seed=1)
    assert [e.key for e in shuffled[4]] == [e.key for e in batches[4]]
    assert [e.key for e in batches_of(examples, seed=2)[0]] != [e.key for e in batches[0]]


def test_a_loaded_checkpoint_goes_on_bit_for_bit(path, examples, tmp_path):
    straight = Fitter(reward_model(path), PairObjective(EXACT))
    for _ in range(2):
        straight.step(examples)
    straight.save(tmp_path / "two", {"note": 7})
    resumed = Fitter(reward_model(path), PairObjective(EXACT))
    assert resumed.load(tmp_path / "two")["note"] == 7 and resumed.num_steps_done == 2
    assert straight.step(examples) == resumed.step(examples)
    assert equal(weights(straight.model), weights(resumed.model))


# reduces_to


def test_two_labels_of_a_pair_of_scores_are_a_pair():
    """Cross-entropy over (rejected, chosen) is the Bradley-Terry loss."""
    scores = torch.tensor([[2.0], [0.5]])
    (as_pair,), _ = PairObjective(EXACT).losses(scores, [pair()])
    row = Example(((1,),), (1,), "p", 1.0)
    (as_label,), _ = LabelObjective(EXACT).losses(scores.flip(0).view(1, 2), [row])
    assert float(as_pair) == pytest.approx(float(as_label))


# rejects


def test_nothing_is_updated_when_a_loss_is_not_finite(path, examples):
    model = reward_model(path)
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    before = weights(model)
    trainer = Fitter(model, PairObjective(EXACT))
    with pytest.raises(CollapseError, match="reward step 0: loss is nan; lower learning_rate"):
        trainer.step(examples)
    assert equal(before, weights(model)) and all(p.grad is None for p in model.parameters())
    with pytest.raises(CollapseError, match="held-out score is"):
        trainer.evaluate(examples)


def test_settings_of_the_other_kind_are_refused():
    with pytest.raises(ConfigError, match="is_response_only=true: for labelled rows"):
        reward_objective("pairs", RewardConfig(is_response_only=True))
    with pytest.raises(ConfigError, match=r"centering=0\.1: for pairs"):
        reward_objective("labels", RewardConfig(centering=0.1))


def test_half_precision_needs_the_packed_decoder(tmp_path):
    model = reward_model(language_model(tmp_path, "gpt_neox"))
    assert type(build_conversation_scorer(model)) is PaddedConversations
    with pytest.raises(ConfigError, match=r"'gpt_neox' is not one of.*set precision='fp32'"):
        build_conversation_scorer(model, "bf16")


def test_half_precision_is_near_full_precision_and_its_scores_are_float32(path, examples):
    model = reward_model(path)
    groups = [example.sequences for example in examples]
    full, half = PackedConversations(model)(groups), PackedConversations(model, "bf16")(groups)
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert torch.corrcoef(torch.stack([full[:, 0], half[:, 0]]))[0, 1] > 0.99
