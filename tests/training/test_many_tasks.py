"""One optimizer step for the weighted sum of several tasks' gradients (CGPO, arXiv 2409.20370, algorithm 2)."""

from dataclasses import replace

import pytest
import torch
from tiny_policies import rows_of, samples_of, step_of, tiny_model

from llamarl.algorithms import AIPOConfig, DrGRPOConfig, GRPOConfig, RLOOConfig
from llamarl.core.errors import ConfigError
from llamarl.scoring.packing import split_groups
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer

A, B = RLOOConfig(kl_coef=0.0), AIPOConfig()
FAST = TrainerConfig(learning_rate=1e-2, warmup_steps=0)


@pytest.fixture
def tasks():
    first = samples_of([(3, [4, 1, 7]), (6, [2, 5])], seed=1)
    return step_of(first), step_of(samples_of([(4, [6, 2]), (2, [3, 3]), (5, [8])], seed=2))


def trainer_of(*algorithms, config=FAST):
    return PolicyTrainer(tiny_model(), algorithms, config)


def gradient(algorithms, assignments, weights=(), config=FAST):
    trainer = trainer_of(*algorithms, config=config)
    trainer.loss(assignments, weights)
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


# golden


def test_the_step_is_the_weighted_sum_of_the_tasks_own_gradients(tasks):
    own = [gradient([algorithm], task) for algorithm, task in zip((A, B), tasks, strict=True)]
    both = gradient((A, B), tasks, (0.25, 2.0))
    assert torch.allclose(both, 0.25 * own[0] + 2.0 * own[1], atol=1e-7)


def test_by_default_a_task_weighs_its_share_of_the_prompts(tasks):  # cgpo D10: 2 and 3 of 5 prompts
    assert torch.equal(gradient((A, B), tasks), gradient((A, B), tasks, (2 / 5, 3 / 5)))
    more = replace(tasks[1], num_prompts=6)  # three of which gave no sample
    assert torch.equal(gradient((A, B), (tasks[0], more)), gradient((A, B), (tasks[0], more), (2 / 8, 6 / 8)))


def test_each_task_reports_its_own_numbers_and_the_step_their_sum(tasks):
    trainer = trainer_of(A, B)
    result = trainer.train(tasks, weights=(0.5, 2.0))
    alone = [trainer_of(c).train(task).metrics for c, task in zip((A, B), tasks, strict=True)]
    for own, expected in zip(result.task_metrics, alone, strict=True):
        for key in ("train/grad_norm", "train/loss", "train/tokens", "train/samples", "train/entropy"):
            assert own[key] == expected[key], key
    losses = [own["train/loss"] for own in result.task_metrics]
    assert result.metrics["train/loss"] == pytest.approx(0.5 * losses[0] + 2.0 * losses[1])
    assert result.metrics["train/samples"] == 10
    assert result.metrics["train/grad_norm"] == pytest.approx(float(gradient((A, B), tasks, (0.5, 2.0)).norm()))
    means, tokens = zip(*((m["train/entropy"], m["train/tokens"]) for m in result.task_metrics), strict=True)
    pooled = sum(m * n for m, n in zip(means, tokens, strict=True)) / sum(tokens)
    assert result.metrics["train/entropy"] == pytest.approx(pooled)


def test_one_clip_after_the_sum(tasks):
    config = TrainerConfig(learning_rate=1e-2, warmup_steps=0, max_grad_norm=1e-3)
    trainer, by_hand = trainer_of(A, B, config=config), tiny_model()
    trainer.train(tasks, weights=(1.0, 1.0))
    total = gradient((A, B), tasks, (1.0, 1.0))
    start = 0
    for parameter in by_hand.parameters():
        count = parameter.numel()
        parameter.grad = (total[start : start + count] * 1e-3 / total.norm()).view_as(parameter)
        start += count
    torch.optim.AdamW(by_hand.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0).step()
    for left, right in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


# gradient


def test_the_gradient_is_linear_in_each_weight(tasks):  # cgpo P8
    at = {rho: gradient((A, B), tasks, (rho, 0.7)) for rho in (0.5, 1.0, 1.5)}
    assert torch.allclose(at[1.5] - at[1.0], at[1.0] - at[0.5], atol=1e-7)
    assert torch.allclose(2.0 * at[0.5] - at[1.0], 0.7 * gradient([B], tasks[1]), atol=1e-7)


def test_weight_zero_is_a_task_left_out(tasks):  # cgpo P8
    assert torch.equal(gradient((A, B), tasks, (0.0, 1.0)), gradient([B], tasks[1]))
    broken = step_of([replace(sample, advantages=float("nan")) for sample in tasks[0].samples])
    assert torch.equal(gradient((A, B), (broken, tasks[1]), (0.0, 1.0)), gradient([B], tasks[1]))


def test_changing_one_task_leaves_the_other_s_gradient_bit_identical(tasks):  # cgpo P8
    other = step_of([replace(sample, advantages=-3.0 * sample.advantages) for sample in tasks[0].samples])
    norms = [trainer_of(A, B).train((first, tasks[1])).task_metrics[1] for first in (tasks[0], other)]
    assert norms[0] == norms[1]
    # (A' + B) - A' is B's own gradient up to the rounding of the sum alone
    difference = gradient((A, B), (other, tasks[1]), (1.0, 1.0)) - gradient([A], other)
    assert torch.allclose(difference, gradient([B], tasks[1]), atol=1e-6)


# invariance


@pytest.mark.parametrize("micro_batch_tokens", [1, 9, 20])
def test_the_cut_into_micro_batches_does_not_matter(tasks, micro_batch_tokens):
    config = TrainerConfig(micro_batch_tokens=micro_batch_tokens)
    cut = gradient((A, B), tasks, (0.3, 0.7), config)
    assert torch.allclose(cut, gradient((A, B), tasks, (0.3, 0.7)), atol=1e-7)


def test_several_calls_of_loss_add_up(tasks):
    trainer = trainer_of(A, B)
    trainer.loss(tasks, (0.3, 0.7))
    trainer.loss(tasks, (0.3, 0.7))
    result = trainer.step()
    once = trainer_of(A, B).train(tasks, weights=(0.6, 1.4))
    for key in ("train/loss", "train/grad_norm"):
        assert result.metrics[key] == pytest.approx(once.metrics[key], rel=1e-5)


def test_a_task_without_samples_or_signal_leaves_the_others_training(tasks):
    flat = step_of([replace(sample, advantages=0.0) for sample in tasks[0].samples])
    for idle in (flat, step_of([], num_prompts=2), step_of([], num_prompts=0)):
        assert torch.equal(gradient((A, B), (idle, tasks[1]), (1.0, 1.0)), gradient([B], tasks[1]))
    result = trainer_of(A, B).train((flat, flat))
    assert result.is_skipped and result.version == 1


def test_a_non_finite_task_refuses_the_whole_step(tasks):
    broken = step_of([replace(sample, advantages=float("nan")) for sample in tasks[0].samples])
    for pair in ((broken, tasks[1]), (tasks[1], broken)):
        trainer = trainer_of(A, B)
        before = [p.clone() for p in trainer.model.parameters()]
        result = trainer.train(pair)
        assert result.is_skipped and result.metrics["train/skipped_nonfinite"] == 1.0
        assert all(torch.equal(*two) for two in zip(before, trainer.model.parameters(), strict=True))


def test_pairs_are_never_parted():
    class Together(type(A)):
        @property
        def needs(self):
            return replace(super().needs, groups_together=True)

        def loss(self):
            def noting(batch):
                seen.append(batch.groups.tolist())
                return inner(batch)

            inner = super().loss()
            return noting

    seen: list[list[int]] = []
    samples = samples_of([(3, [4, 9]), (6, [2, 5]), (1, [3, 30])])
    PolicyTrainer(tiny_model(), Together(kl_coef=0.0), TrainerConfig(micro_batch_tokens=8)).loss(step_of(samples))
    assert sorted(seen) == [[0, 0], [1, 1], [2, 2]]


def test_whole_groups_fill_micro_batches_up_to_the_limit():
    samples = samples_of([(3, [4, 9]), (6, [2, 5]), (1, [3, 30]), (2, [1, 1])])
    rows, groups = rows_of(samples), [sample.group for sample in samples]
    assert split_groups(rows, groups, 10**6) == [[6, 7, 2, 3, 0, 1, 4, 5]]  # shortest group first
    # rows x longest: 2 x 3, then 4 x 11 = 44 fits, 6 x 12 = 72 does not, 8 x 31 does not
    assert split_groups(rows, groups, 50) == [[6, 7, 2, 3], [0, 1], [4, 5]]
    assert split_groups(rows, groups, 1) == [[6, 7], [2, 3], [0, 1], [4, 5]]


# reduces to


def test_one_task_among_others_is_the_run_of_that_task(tasks):
    alone, listed = trainer_of(A), PolicyTrainer(tiny_model(), A, FAST)
    results = [alone.train([tasks[0]]), listed.train(tasks[0])]
    for left, right in zip(alone.model.parameters(), listed.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert {**results[0].metrics, "time/train": 0} == {**results[1].metrics, "time/train": 0}
    assert results[0].task_metrics == results[1].task_metrics
    (own,) = results[0].task_metrics  # with one task, its numbers are those of the step
    assert own.items() <= results[0].metrics.items()


def test_two_halves_of_a_batch_as_tasks_are_the_batch(tasks):
    algorithm = DrGRPOConfig(reduction="group_sum")
    samples = [*tasks[0].samples, *(replace(s, group=s.group + 10) for s in tasks[1].samples)]
    halves = gradient((algorithm, algorithm), tasks)  # each over its groups, weighed by its share of them
    assert torch.allclose(halves, gradient([algorithm], step_of(samples)), atol=1e-7)


# rejects


def test_rejects_a_wrong_number_of_tasks_bad_weights_and_no_algorithm(tasks):
    trainer = trainer_of(A, B)
    with pytest.raises(ConfigError, match="2 tasks, but was given 1 assignments and 0 weights"):
        trainer.train(tasks[0])
    with pytest.raises(ConfigError, match="given 2 assignments and 1 weights"):
        trainer.train(tasks, weights=(1.0,))
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="finite and at least 0"):
            trainer.train(tasks, weights=(1.0, bad))
    with pytest.raises(ConfigError, match="at least one task"):
        PolicyTrainer(tiny_model(), [])
    assert trainer_of(A, GRPOConfig(kl_coef=0.0)).train(tasks).version == 1
