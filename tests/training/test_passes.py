"""Several optimizer updates on one batch: passes over it, and minibatches of it."""

from dataclasses import replace

import pytest
import torch
from tiny_policies import sampled_with, samples_of, step_of, tiny_model

from llamarl.algorithms import AIPOConfig, CODPOConfig, GRPOConfig, PPOConfig, RAFTConfig, RLOOConfig
from llamarl.core.errors import ConfigError
from llamarl.core.records import Assignment
from llamarl.functional.losses import Denominators, LossBatch
from llamarl.scoring.logprobs import Scores, build_scorer
from llamarl.training.batches import loss_batch
from llamarl.training.config import TrainerConfig
from llamarl.training.gathered import Gathered, TaskGathered, pool
from llamarl.training.passes import remember, split_assignment
from llamarl.training.trainer import PolicyTrainer

SHAPE = [(3, [4, 9]), (6, [2, 5]), (1, [3, 30]), (2, [1, 1]), (4, [6])]
GRPO = GRPOConfig(kl_coef=0.0, clip=0.2)


def settings(**changes):
    return TrainerConfig(learning_rate=1e-2, warmup_steps=0, **changes)


def trainer_of(config, *algorithms, **arguments):
    return PolicyTrainer(tiny_model(), algorithms or (GRPO,), config, **arguments)


def honest(samples, trainer=None):
    """The samples with the log-probs that the policy itself gives them, as a generator of equal weights would."""
    score = build_scorer((trainer or trainer_of(settings())).model)
    with torch.no_grad():
        return [sampled_with(s, score([s.trajectory]).logprobs.tolist()) for s in samples]


def weights_of(trainer):
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def are_equal(left, right):
    return all(torch.equal(*pair) for pair in zip(left, right, strict=True))


# golden


def test_minibatches_are_parts_of_the_prompts():
    # 5 groups in 2 parts: 0 2 4 and 1 3; 3 prompts without a sample: 1 each, and the odd one where a group less is
    batch = step_of(samples_of(SHAPE), num_prompts=8)
    parts = split_assignment(batch, 2)
    assert [sorted({s.group for s in part.samples}) for part in parts] == [[0, 2, 4], [1, 3]]
    assert [part.num_prompts for part in parts] == [4, 4]
    assert [len(part.samples) for part in parts] == [5, 4]
    assert split_assignment(batch, 1) == [batch]
    assert split_assignment(Assignment((), 3), 2) == [Assignment((), 1), Assignment((), 2)][::-1]


def test_old_log_probs_are_the_denominator_and_weigh_what_they_did_not_sample():
    # now -1, before the first update -2, sampled at -3: ratio e, weight e cut at 2
    sample = replace(sampled_with(samples_of([(2, [1])])[0], [-3.0]), advantages=-1.0)
    (known,) = remember([sample], torch.tensor([[-2.0, 99.0]]), None)
    assert known.old_logprobs.tolist() == [-2.0] and known.old_values is None and known.trajectory is sample.trajectory
    scores = Scores(torch.tensor([-1.0], requires_grad=True), None)
    batch = build(known, scores, cap=2.0)
    assert batch.behavior_logprobs.tolist() == [[-2.0]] and batch.token_weights.tolist() == [[2.0]]
    output = GRPOConfig(kl_coef=0.0, clip=0.2, delta=None).loss()(batch)
    assert output.loss.item() == pytest.approx(2 * 2.7182817)  # weight 2, ratio e, A = -1
    assert output.metrics["train/behavior_weight/mean"][0].item() == 2.0
    assert build(known, scores, cap=None).token_weights is None
    assert build(known, scores, cap=10.0).token_weights.item() == pytest.approx(2.7182817)
    # nobody sampled it: ratio 1 and weight 1, however far the policy has come
    given = replace(known, trajectory=known.trajectory.as_given())
    assert build(given, scores, cap=2.0).behavior_logprobs.tolist() == [[-1.0]]
    assert build(given, scores, cap=2.0).token_weights.tolist() == [[1.0]]


def build(sample, scores, cap) -> LossBatch:
    counts = Denominators.count([1], [0], prompts=1, max_tokens=1)
    return loss_batch([sample], scores, counts, needs_reference=False, behavior_cap=cap)


def test_a_step_s_numbers_are_pooled_over_its_updates():
    # two passes of two minibatches: losses 1 2 3 4 have mean 2.5; the batch's 10 and 20 tokens count once
    updates = [
        Gathered(
            [TaskGathered(parts=[{"x": (value, 1.0)}], loss=value, num_tokens=tokens, num_samples=1)],
            loss=value,
            grad_norm=2 * value,
            seconds=0.5,
        )
        for value, tokens in ((1.0, 10), (2.0, 20), (3.0, 10), (4.0, 20))
    ]
    pooled = pool(updates, passes=2)
    assert (pooled.loss, pooled.grad_norm, pooled.seconds) == (2.5, 5.0, 2.0)
    metrics = pooled.metrics()
    assert (metrics["x"], metrics["train/loss"], metrics["train/tokens"], metrics["train/samples"]) == (2.5, 2.5, 30, 2)


# behaviour


@pytest.mark.parametrize(("passes", "minibatches"), [(2, 1), (1, 2), (3, 2)])
def test_every_part_of_every_pass_is_one_update_and_the_step_one_version(passes, minibatches):
    trainer = trainer_of(settings(passes=passes, minibatches=minibatches))
    result = trainer.train(step_of(honest(samples_of(SHAPE), trainer)))
    assert result.version == trainer.version == 1 and not result.is_skipped
    assert result.metrics["train/updates"] == passes * minibatches
    steps = [value.item() for key, value in trainer._optimizer.state().items() if key.endswith(".step")]
    assert set(steps) == {passes * minibatches}
    assert result.metrics["train/samples"] == 9 and result.metrics["train/tokens"] == 61
    assert result.metrics["train/mismatch_kl"] < 1e-9  # looked at once, before the first update


def test_the_second_pass_sees_how_far_the_first_one_went():
    batch = step_of(honest(samples_of(SHAPE)))
    once, twice = (trainer_of(settings(passes=n)).train(batch).metrics for n in (1, 2))
    assert once["train/ppo_kl"] < 1e-9 and once["train/clip_frac/high"] == 0.0
    assert twice["train/ppo_kl"] > 1e-4
    assert twice["train/behavior_weight/mean"] == pytest.approx(1.0, abs=1e-5)


def test_a_second_pass_by_hand():
    """Two passes are two plain steps whose log-probs at sampling are those from before the first."""
    batch = step_of(honest(samples_of(SHAPE)))
    together = trainer_of(settings(passes=2, behavior_cap=None))
    together.train(batch)
    apart = trainer_of(settings())
    for _ in range(2):
        apart.train(batch)
    gap = max(float((a - b).abs().max()) for a, b in zip(weights_of(together), weights_of(apart), strict=True))
    assert gap < 1e-5


def test_what_the_first_pass_pushed_far_enough_the_clip_holds():
    batch = step_of(honest(samples_of(SHAPE)))
    metrics = trainer_of(settings(passes=6)).train(batch).metrics
    assert metrics["train/clip_frac/high"] > 0.0 or metrics["train/clip_frac/low"] > 0.0


def test_watched_log_probs_are_from_before_the_first_update():
    batch = step_of(honest(samples_of(SHAPE)))
    once, often = (trainer_of(settings(passes=p, minibatches=m)).train(batch, [1, 4]) for p, m in ((1, 1), (2, 2)))
    assert once.logprobs.keys() == often.logprobs.keys()
    for key, row in once.logprobs.items():
        assert often.logprobs[key] == pytest.approx(row, abs=1e-5)


def test_a_critic_s_advantages_stay_those_from_before_the_first_update():
    seen = []

    class Watching(PPOConfig):
        def loss(self):
            def noting(batch):
                seen.append((batch.old_values.clone(), batch.values.detach().clone()))
                return inner(batch)

            inner = super().loss()
            return noting

    trainer = trainer_of(settings(passes=2), Watching(kl_coef=0.0))
    trainer.train(step_of(honest(samples_of(SHAPE[:2]), trainer)))
    (old, first), (again, second) = seen
    assert torch.equal(old, again) and torch.allclose(old, first, atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-4)  # the critic itself has moved


def test_activations_are_those_of_training_not_of_the_look_before():
    batch = step_of(honest(samples_of(SHAPE)))
    once, twice = (trainer_of(settings(passes=n)) for n in (1, 2))
    for trainer in (once, twice):
        trainer.train(batch)
    assert twice.memory()["activations"] == once.memory()["activations"] > 0


def test_tasks_share_every_update():
    parts = [step_of(honest(samples_of(SHAPE[:3]))), step_of(honest(samples_of(SHAPE[2:], seed=3)))]
    trainer = trainer_of(settings(passes=2, minibatches=2), GRPO, AIPOConfig())
    result = trainer.train(parts, weights=[0.5, 0.5])
    assert result.metrics["train/updates"] == 4 and len(result.task_metrics) == 2
    assert [metrics["train/samples"] for metrics in result.task_metrics] == [6, 5]


def test_a_part_without_signal_gets_no_update():
    samples = [replace(s, advantages=0.0) if s.group % 2 else s for s in honest(samples_of(SHAPE))]
    result = trainer_of(settings(minibatches=2)).train(step_of(samples))
    assert result.metrics["train/updates"] == 1 and not result.is_skipped
    nothing = trainer_of(settings(minibatches=2)).train(step_of([replace(s, advantages=0.0) for s in samples]))
    assert nothing.is_skipped and nothing.version == 1 and nothing.metrics["train/updates"] == 0


def test_a_non_finite_update_is_refused_and_the_others_are_not():
    samples = honest(samples_of(SHAPE))
    broken = [replace(s, advantages=float("nan")) if s.group == 1 else s for s in samples]
    result = trainer_of(settings(minibatches=2)).train(step_of(broken))
    assert (result.metrics["train/updates"], result.metrics["train/skipped_nonfinite"]) == (1, 1)
    assert not result.is_skipped


def test_imitation_reads_no_log_prob_of_sampling_in_any_pass():
    sampled, absurd = (
        [replace(sampled_with(s, [value for _ in s.trajectory.logprobs]), advantages=1.0) for s in samples_of(SHAPE)]
        for value in (-3.0, -90.0)
    )
    trainers = [trainer_of(settings(passes=2), RAFTConfig()) for _ in range(2)]
    for trainer, samples in zip(trainers, (sampled, absurd), strict=True):
        trainer.train(step_of(samples))
    assert are_equal(*map(weights_of, trainers))


# invariance


def test_resumed_between_two_steps_it_is_the_same_run_bit_for_bit(tmp_path):
    config, batch = settings(passes=2, minibatches=2), step_of(honest(samples_of(SHAPE)))
    whole, part, resumed = (trainer_of(config) for _ in range(3))
    expected = [whole.train(batch) for _ in range(3)][-1]
    for _ in range(2):
        part.train(batch)
    part.save(tmp_path / "checkpoint")
    assert resumed.load(tmp_path / "checkpoint") == 2
    result = resumed.train(batch)
    assert are_equal(weights_of(resumed), weights_of(whole))
    assert {**result.metrics, "time/train": 0} == {**expected.metrics, "time/train": 0}


# reduces to


def test_one_pass_over_the_whole_batch_is_the_plain_step_bit_for_bit():
    batch = step_of(samples_of(SHAPE))
    plain, by_hand = trainer_of(settings(passes=1, minibatches=1)), trainer_of(settings())
    results = plain.train(batch), (by_hand.loss(batch), by_hand.step())[1]
    assert are_equal(weights_of(plain), weights_of(by_hand))
    assert {**results[0].metrics, "time/train": 0} == {**results[1].metrics, "time/train": 0}
    assert "train/behavior_weight/mean" not in results[0].metrics


# rejects


def test_rejects_algorithms_without_a_ratio():
    for algorithm in (RLOOConfig(), CODPOConfig()):
        with pytest.raises(ConfigError, match=r"passes=2, minibatches=1: an algorithm has no ratio"):
            trainer_of(settings(passes=2), algorithm)
    trainer_of(settings(passes=2), RAFTConfig())  # imitation: as often as one likes
    trainer_of(settings(passes=2), CODPOConfig(off_policy="as_is"))
