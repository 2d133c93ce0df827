"""Dialogues of several turns, loss masks and advantages per token, from the sample to the gradient."""

import random
from array import array
from dataclasses import replace

import pytest
import torch
from tiny_policies import VOCABULARY, gradients, rows_of, samples_of, step_of, tiny_model

from llamarl.algorithms import AIPOConfig, CODPOConfig, GRPOConfig, PPOConfig, RLOOConfig
from llamarl.core.errors import DataError
from llamarl.core.records import TrainSample, Trajectory, join_turns
from llamarl.core.sampling import Sampling
from llamarl.scoring.logprobs import PackedScorer, PaddedScorer, build_scorer
from llamarl.scoring.packing import Packed
from llamarl.training.config import TrainerConfig
from llamarl.training.reference import ReferenceExecutor
from llamarl.training.trainer import PolicyTrainer

AIPO = AIPOConfig()
MASK = array("b", [1, 0, 1, 1])


def dialogue(seed=0, sizes=((4, 3), (5, 1), (2, 6))):
    """The turns of a dialogue: (tokens given before, tokens sampled) each."""
    rng, read, turns = random.Random(seed), [], []
    for given, sampled in sizes:
        read += [rng.randrange(3, VOCABULARY) for _ in range(given)]
        tokens = [rng.randrange(3, VOCABULARY) for _ in range(sampled)]
        logprobs = [-3.0 + 0.3 * rng.random() for _ in tokens]
        turns.append(Trajectory.sampled(read, tokens, logprobs, [0] * sampled))
        read = read + tokens
    return turns


def gradient(samples, algorithm=AIPO, **settings):
    trainer = PolicyTrainer(tiny_model(), algorithm, TrainerConfig(**settings))
    metrics = trainer.loss(step_of(samples))
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters()]), metrics


def trained(samples, algorithm, **settings):
    trainer = PolicyTrainer(tiny_model(), algorithm, TrainerConfig(warmup_steps=0, **settings))
    trainer.train(step_of(samples))
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def four_tokens():
    samples = samples_of([(3, [4, 4]), (5, [4, 4])])
    signs = (1.0, -1.0, 0.5, -2.0)
    return [
        replace(s, advantages=sign, reference_logprobs=array("f", [v - 0.1 for v in s.trajectory.logprobs]))
        for s, sign in zip(samples, signs, strict=True)
    ]


# golden


def test_packed_positions_of_a_dialogue_worked_by_hand():
    # prompt 5 6; the policy says 7 8, is given 3, says 9 4
    row = replace(Trajectory.given((5, 6), (7, 8, 3, 9, 4)), turns=((0, 2), (3, 5)))
    packed = Packed([row])
    assert packed.ids.tolist() == [5, 6, 7, 8, 3, 9] and packed.lengths == [4]
    # 7 is predicted by 6 at place 1, 8 by 7 at 2, 9 by 3 at 4, 4 by 9 at 5; nothing predicts the 3 that was given
    assert packed.predicting(torch.arange(6.0)[:, None])[:, 0].tolist() == [1, 2, 4, 5]
    assert packed.targets[packed.order].tolist() == [7, 8, 9, 4]


# reduces to


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_dialogue_is_scored_as_its_turns_each_under_all_before_it(family):
    model = tiny_model(family)
    scorers = [PaddedScorer(model), build_scorer(model)]
    one, other = dialogue(), dialogue(1, ((3, 2), (1, 4)))
    for score in scorers:
        whole = score([join_turns(one), join_turns(other)]).logprobs
        apart = torch.cat([score([turn]).logprobs for turn in (*one, *other)])
        torch.testing.assert_close(whole, apart, rtol=1e-5, atol=1e-5)


def test_a_dialogue_trains_as_the_sum_of_its_turns():
    turns = dialogue()
    whole, metrics = gradient([TrainSample(join_turns(turns), 0.7, group=0)])
    apart, _ = gradient([TrainSample(turn, 0.7, group=number) for number, turn in enumerate(turns)])
    assert metrics["train/tokens"] == 10  # 3 + 1 + 6 sampled of 21
    torch.testing.assert_close(whole, apart, rtol=1e-5, atol=1e-6)


def test_each_turn_may_have_its_own_advantage():
    turns = dialogue()
    by_turn = [value for turn, value in zip(turns, (0.7, -1.0, 0.0), strict=True) for _ in turn.response_ids]
    whole, _ = gradient([TrainSample(join_turns(turns), array("f", by_turn))])
    apart, _ = gradient(
        [TrainSample(t, a, group=i) for i, (t, a) in enumerate(zip(turns, (0.7, -1.0, 0.0), strict=True))]
    )
    torch.testing.assert_close(whole, apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"passes": 2}], ids=["one update", "two updates"])
@pytest.mark.parametrize("algorithm", [AIPO, GRPOConfig(), CODPOConfig(off_policy="as_is")], ids=lambda a: a.type)
def test_a_constant_per_token_trains_as_the_number_bit_for_bit(algorithm, settings):
    samples = four_tokens()
    each = [replace(s, advantages=array("f", [s.advantages] * 4)) for s in samples]
    assert torch.equal(trained(samples, algorithm, **settings), trained(each, algorithm, **settings))


def test_ppo_trains_on_a_reward_at_the_last_token_as_on_the_number():
    samples = four_tokens()
    each = [replace(s, advantages=array("f", [0, 0, 0, s.advantages])) for s in samples]
    assert torch.equal(trained(samples, PPOConfig()), trained(each, PPOConfig()))


@pytest.mark.parametrize("algorithm", [AIPO, GRPOConfig(), RLOOConfig()], ids=lambda a: a.type)
def test_masked_tokens_at_the_end_train_as_if_the_response_had_stopped_before_them(algorithm):
    samples = four_tokens()
    masked = [replace(s, loss_mask=array("b", [1, 1, 0, 0])) for s in samples]
    short = [
        replace(
            s,
            trajectory=Trajectory.sampled(t.prompt_ids, t.token_ids[:2], t.logprobs[:2], (0, 0)),
            reference_logprobs=s.reference_logprobs[:2],
        )
        for s in samples
        for t in [s.trajectory]
    ]
    (left, metrics), (right, _) = gradient(masked, algorithm), gradient(short, algorithm)
    assert metrics["train/tokens"] == 8
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


# invariance


@pytest.mark.parametrize("micro_batch_tokens", [1, 30])
def test_the_cut_into_micro_batches_changes_neither_masks_nor_advantages(micro_batch_tokens):
    turns = join_turns(dialogue())
    samples = [replace(s, advantages=array("f", [1.0, -1.0, 0.0, 2.0]), loss_mask=MASK) for s in four_tokens()]
    samples.append(TrainSample(turns, array("f", range(10)), group=9, reference_logprobs=turns.logprobs))
    whole, _ = gradient(samples, GRPOConfig())
    cut, _ = gradient(samples, GRPOConfig(), micro_batch_tokens=micro_batch_tokens)
    torch.testing.assert_close(whole, cut, rtol=1e-5, atol=1e-6)


def test_given_tokens_are_read_and_not_scored():
    model, row = tiny_model(), join_turns(dialogue())
    found = gradients(model, lambda: PackedScorer(model)([row]).logprobs.sum())
    expected = gradients(model, lambda: PaddedScorer(model)([row]).logprobs.sum())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    executor = ReferenceExecutor(TrainerConfig(), tiny_model, Sampling())
    executor.setup()
    assert [len(logprobs) for logprobs in executor.logprobs([row, *rows_of(four_tokens())])] == [10, 4, 4, 4, 4]


# rejects


def test_a_batch_whose_tokens_are_all_masked_trains_nothing():
    samples = [replace(s, loss_mask=array("b", [0] * 4)) for s in four_tokens()]
    trainer = PolicyTrainer(tiny_model(), GRPOConfig())
    result = trainer.train(step_of(samples))
    assert result.is_skipped and result.version == 1 and result.metrics["train/samples_without_signal"] == 4


def test_a_batch_with_both_forms_is_refused():
    first, *rest = four_tokens()
    samples = [replace(first, advantages=array("f", [1.0] * 4)), *rest]
    with pytest.raises(DataError, match="group 0 has advantages per token and group 1 one per sample"):
        PolicyTrainer(tiny_model(), AIPO).train(step_of(samples))
