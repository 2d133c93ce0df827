import json
import logging
from dataclasses import replace

import pytest
import torch
from tiny_policies import gradients, rows_of, sampled_with, samples_of, step_of, tiny_model

from llamarl.algorithms.dapo import DAPOConfig
from llamarl.algorithms.dr_grpo import DrGRPOConfig
from llamarl.algorithms.grpo import GRPOConfig
from llamarl.core.algorithm import Algorithm, Needs
from llamarl.core.errors import CheckpointError, CollapseError, ConfigError, DataError
from llamarl.core.sampling import Sampling
from llamarl.functional.checksum import checksum, verify
from llamarl.functional.losses import LossOutput
from llamarl.models.decoder import Decoder, named_tensors
from llamarl.models.probe import probe_logprobs
from llamarl.scoring.logprobs import PaddedScorer
from llamarl.training.config import TrainerConfig
from llamarl.training.guards import GradientGuard, Health
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel

PLAIN = GRPOConfig(kl_coef=0.0)
FAST = TrainerConfig(learning_rate=1e-2, warmup_steps=0)


def trainer_of(model=None, algorithm=PLAIN, config=FAST, **arguments):
    return PolicyTrainer(model or tiny_model(), algorithm, config, **arguments)


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in named_tensors(trainer.model)}


def accumulated(trainer, samples):
    trainer.loss(step_of(samples))
    return {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}


def referred(samples, model=None):
    """With reference log-probs, of `model` or the untrained policy."""
    rest = iter(PaddedScorer(model or tiny_model())(rows_of(samples)).logprobs.tolist())
    return [
        replace(sample, reference_logprobs=tuple(next(rest) for _ in sample.trajectory.logprobs)) for sample in samples
    ]


def are_equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def assert_close(left, right, tolerance=1e-6):
    norm = torch.stack([value.norm() for value in right.values()]).norm()
    gap = torch.stack([(left[name] - right[name]).norm() for name in right]).norm()
    assert float(norm) > 0 and float(gap / norm) < tolerance


class Scripted(Algorithm):
    """Pushes every log-prob up, `factors[step]` times as hard; NaN and infinity are what tests inject."""

    needs = Needs(zero_advantages=True)

    def __init__(self, factors, max_tokens=10**9):
        self.factors, self.max_tokens, self.batches = list(factors), max_tokens, []

    def credit(self):
        raise AssertionError("the controller's half; the trainer never builds it")

    def loss(self):
        return self._push

    def _push(self, batch):
        self.batches.append(int(batch.mask.sum()))
        if self.batches[-1] > self.max_tokens:
            raise torch.OutOfMemoryError("scripted")
        factor = self.factors.pop(0) if len(self.factors) > 1 else self.factors[0]
        loss = -(batch.logprobs * batch.mask).sum() / batch.denominators.tokens
        return LossOutput(loss * factor, {})


# golden


def test_micro_batches_are_counted_for_whoever_watches():
    told = []
    trainer = PolicyTrainer(
        tiny_model(),
        PLAIN,
        TrainerConfig(micro_batch_tokens=16),
        on_micro_batch=lambda number, total: told.append((number, total)),
    )
    trainer.train(step_of(samples_of([(4, [5, 5]), (4, [5, 5]), (4, [5, 5])])))
    assert len(told) > 1 and told == [(number, len(told)) for number in range(1, len(told) + 1)]


def test_the_step_is_that_of_a_loop_written_by_hand(batch):
    model, by_hand = tiny_model(), tiny_model()
    trainer_of(model, config=TrainerConfig(learning_rate=0.01, warmup_steps=1, max_grad_norm=0.05)).train(
        step_of(batch)
    )

    losses = []
    for sample in batch:  # on-policy by definition of the ratio below, sequence means over all 8 samples
        logprobs = PaddedScorer(by_hand)(rows_of([sample])).logprobs
        ratio = torch.exp(logprobs - torch.tensor(sample.trajectory.logprobs))
        objective = torch.minimum(ratio * sample.advantages, ratio.clamp(0.8, 1.2) * sample.advantages)
        losses.append(-objective.mean() / len(batch))
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.01 / 2, betas=(0.9, 0.95), weight_decay=0.0)
    torch.stack(losses).sum().backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)
    optimizer.step()
    for name, tensor in named_tensors(by_hand):
        torch.testing.assert_close(dict(named_tensors(model))[name], tensor, atol=2e-5, rtol=1e-4)


def test_metrics_are_plain_numbers_under_the_documented_names(batch):
    metrics = trainer_of(algorithm=GRPOConfig()).train(step_of(referred(batch))).metrics
    expected = {"loss", "grad_norm", "lr", "entropy", "kl_ref", "mismatch_kl", "mismatch_prob_max", "tokens", "samples"}
    expected |= {"clip_frac/low", "clip_frac/high", "grad_spike", "skipped_nonfinite", "ppo_kl"}
    assert {f"train/{name}" for name in expected} | {"time/train"} <= metrics.keys()
    assert all(type(value) is float for value in metrics.values())
    assert metrics["train/tokens"] == sum(sample.trajectory.response_length for sample in batch) == 28
    assert metrics["train/samples"] == 8


def test_mismatch_is_measured_on_tokens_of_the_current_version_only(batch):
    trainer = trainer_of()
    exact = PaddedScorer(tiny_model())(rows_of(batch)).logprobs.tolist()
    own, rest = [], iter(exact)
    for sample in batch:
        own.append(sampled_with(sample, [next(rest) for _ in sample.trajectory.logprobs]))
    stale = sampled_with(own[0], [-9.0] * 4, version=7)
    metrics = trainer.loss(step_of([stale, *own[1:]]))
    assert metrics["train/mismatch_kl"] < 1e-9 and metrics["train/mismatch_prob_max"] < 1e-6
    off = sampled_with(own[1], [exact[4] - 0.5])  # k3 of log-ratio 0.5: e^0.5 - 1 - 0.5 = 0.1487, over 24 tokens
    metrics = trainer_of().loss(step_of([stale, off, *own[2:]]))
    assert metrics["train/mismatch_kl"] == pytest.approx(0.1487 / 24, rel=1e-3)
    trainer.step()
    assert "train/mismatch_kl" not in trainer.train(step_of(own)).metrics  # all tokens are one version old by now


def test_temperature_of_the_sampler_makes_the_first_ratio_one(batch):
    model, sampling = tiny_model(), Sampling(temperature=0.6)
    drawn = PaddedScorer(model, 0.6)(rows_of(batch)).logprobs.tolist()
    rest = iter(drawn)
    samples = [sampled_with(sample, [next(rest) for _ in sample.trajectory.logprobs]) for sample in batch]
    assert trainer_of(model, sampling=sampling).loss(step_of(samples))["train/ratio/mean"] == pytest.approx(
        1.0, abs=1e-6
    )
    assert abs(trainer_of(tiny_model()).loss(step_of(samples))["train/ratio/mean"] - 1.0) > 0.05


def test_a_second_pass_over_the_same_samples_leaves_ratio_one(batch):
    trainer = trainer_of()
    rest = iter(PaddedScorer(tiny_model())(rows_of(batch)).logprobs.tolist())
    samples = [sampled_with(sample, [next(rest) for _ in sample.trajectory.logprobs]) for sample in batch]
    first, second = trainer.train(step_of(samples)).metrics, trainer.train(step_of(samples)).metrics
    assert first["train/ppo_kl"] < 1e-9 < 1e-4 < second["train/ppo_kl"]


# invariance


@pytest.mark.parametrize("algorithm", [GRPOConfig(), DAPOConfig(), DrGRPOConfig()])
@pytest.mark.parametrize("micro_batch_tokens", [1, 12, 25])
def test_gradients_do_not_depend_on_how_the_step_is_cut(batch, algorithm, micro_batch_tokens):
    samples = referred([*batch, *samples_of([(5, [9, 2, 4, 30])], seed=4)])
    whole = accumulated(trainer_of(algorithm=algorithm), samples)
    cut = trainer_of(algorithm=algorithm, config=TrainerConfig(micro_batch_tokens=micro_batch_tokens))
    assert_close(accumulated(cut, samples), whole)


def test_gradients_do_not_depend_on_the_order_of_samples(batch):
    assert_close(accumulated(trainer_of(), batch[::-1]), accumulated(trainer_of(), batch))


def test_skipping_samples_without_advantage_changes_no_gradient(batch):
    class Thorough(type(PLAIN)):
        @property
        def needs(self):
            return replace(super().needs, zero_advantages=True)

    samples = [replace(sample, advantages=0.0) if index % 2 else sample for index, sample in enumerate(batch)]
    skipping, thorough = trainer_of(), PolicyTrainer(tiny_model(), Thorough(**PLAIN.model_dump()), FAST)
    assert_close(accumulated(skipping, samples), accumulated(thorough, samples))
    assert skipping.loss(step_of([]))["train/samples_without_signal"] == 4
    assert thorough.loss(step_of([]))["train/samples_without_signal"] == 0


def test_samples_without_advantage_train_where_the_algorithm_has_a_kl_term(batch):
    samples = [replace(sample, advantages=0.0) for sample in referred(batch)]
    trainer = trainer_of(algorithm=GRPOConfig(kl_coef=0.1))
    trainer.train(step_of(referred(batch)))
    assert not trainer.train(step_of(samples)).is_skipped


def test_a_step_without_any_signal_counts_as_a_version_and_changes_nothing(batch):
    trainer = trainer_of()
    trainer.train(step_of(batch))  # so that AdamW holds momentum, which must not move the weights either
    before, state = weights_of(trainer), {k: v.clone() for k, v in trainer._optimizer.state().items()}
    for samples in ([replace(sample, advantages=0.0) for sample in batch], []):
        assert trainer.train(step_of(samples)).is_skipped
    assert trainer.version == 3
    assert are_equal(weights_of(trainer), before) and are_equal(trainer._optimizer.state(), state)


def test_two_runs_are_bit_identical(batch):
    runs = [trainer_of(config=TrainerConfig(learning_rate=1e-2, micro_batch_tokens=20)) for _ in range(2)]
    metrics = [[run.train(step_of(batch)).metrics for _ in range(3)] for run in runs]
    assert are_equal(weights_of(runs[0]), weights_of(runs[1]))
    for left, right in zip(*metrics, strict=True):
        assert {k: v for k, v in left.items() if "time" not in k} == {k: v for k, v in right.items() if "time" not in k}


def test_models_unknown_to_the_decoder_train_too(batch):
    trainer = trainer_of(tiny_model("gpt_neox", scale=1.0), channel=LocalChannel())
    before = weights_of(trainer)
    assert not trainer.train(step_of(batch)).is_skipped
    assert not are_equal(weights_of(trainer), before)
    assert len(trainer.publish().probe.now) == 4 + 16 - 1


def test_bf16_computes_close_to_fp32_and_keeps_fp32_weights(batch):
    half = trainer_of(tiny_model(scale=1.0), config=TrainerConfig(precision="bf16"))
    full = trainer_of(tiny_model(scale=1.0))
    assert_close(accumulated(half, batch), accumulated(full, batch), tolerance=0.05)
    half.step()
    assert {tensor.dtype for tensor in weights_of(half).values()} == {torch.float32}


@pytest.mark.parametrize("dither", [True, False])
def test_dithered_bf16_weights_move_at_the_first_small_step(batch, dither):
    released = tiny_model(scale=1.0)
    with torch.no_grad():
        for parameter in released.parameters():
            parameter.copy_(parameter.bfloat16())
    before = {name: tensor.clone() for name, tensor in named_tensors(released) if tensor.dim() > 1}
    config = TrainerConfig(precision="bf16", learning_rate=1e-6, warmup_steps=0, dither=dither)
    trainer = trainer_of(released, config=config)
    start = weights_of(trainer)
    assert all(torch.equal(start[name].bfloat16(), tensor.bfloat16()) for name, tensor in before.items())
    trainer.train(step_of(batch))
    after = weights_of(trainer)
    # beyond 0.01 half of bf16's spacing is 3e-5, thirty such steps
    moved = [(after[name].bfloat16() != tensor.bfloat16())[tensor.abs() > 0.01] for name, tensor in before.items()]
    assert any(each.any() for each in moved) == dither and not are_equal(after, start)


def test_only_whole_bf16_training_is_dithered():
    plain = weights_of(trainer_of())
    for config in (TrainerConfig(), TrainerConfig(precision="bf16", dither=False)):
        assert are_equal(weights_of(trainer_of(config=config)), plain)
    assert not are_equal(weights_of(trainer_of(config=TrainerConfig(precision="bf16"))), plain)


# guards


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_leaves_weights_and_moments_bit_identical(batch, bad):
    trainer = trainer_of(algorithm=Scripted([1.0, bad, 1.0]))
    trainer.train(step_of(batch))
    before, state = weights_of(trainer), {k: v.clone() for k, v in trainer._optimizer.state().items()}
    result = trainer.train(step_of(batch))
    assert result.is_skipped and result.version == 2 and result.metrics["train/skipped_nonfinite"] == 1.0
    assert are_equal(weights_of(trainer), before) and are_equal(trainer._optimizer.state(), state)
    assert not trainer.train(step_of(batch)).is_skipped
    assert not are_equal(weights_of(trainer), before)


def test_a_non_finite_gradient_of_a_finite_loss_is_refused_too(batch):
    class InfiniteSlope(Scripted):
        def _push(self, loss_batch):
            return LossOutput((loss_batch.logprobs * 0.0).sum().sqrt(), {})

    trainer = trainer_of(algorithm=InfiniteSlope([1.0]))
    before = weights_of(trainer)
    result = trainer.train(step_of(batch))
    assert result.is_skipped and result.metrics["train/loss"] == 0.0
    assert are_equal(weights_of(trainer), before)


def test_a_nan_in_one_sample_names_its_group(batch, caplog):
    broken = [replace(sample, advantages=float("nan")) if sample.group == 1 else sample for sample in batch]
    trainer = trainer_of(config=TrainerConfig(micro_batch_tokens=12))
    with caplog.at_level(logging.WARNING):
        assert trainer.train(step_of(broken)).is_skipped
    assert "step 0: nonfinite gradient" in caplog.text and "groups 1 brought" in caplog.text


def test_five_non_finite_updates_in_a_row_end_the_run_naming_the_step(batch):
    trainer = trainer_of(algorithm=Scripted([1.0] + [float("nan")] * 4 + [1.0] + [float("nan")]))
    for _ in range(10):
        trainer.train(step_of(batch))
    with pytest.raises(CollapseError, match=r"step 10: nonfinite gradient.*5 updates in a row"):
        trainer.train(step_of(batch))


@pytest.mark.parametrize("should_skip", [False, True])
def test_a_gradient_spike_is_flagged_and_skipped_on_demand(batch, should_skip, caplog):
    config = TrainerConfig(learning_rate=1e-5, should_skip_spikes=should_skip)
    trainer = trainer_of(algorithm=Scripted([1.0] * 10 + [100.0] + [1.0]), config=config)
    assert [trainer.train(step_of(batch)).metrics["train/grad_spike"] for _ in range(10)] == [0.0] * 10
    before = weights_of(trainer)
    with caplog.at_level(logging.WARNING):
        spike = trainer.train(step_of(batch))
    assert spike.metrics["train/grad_spike"] == 1.0 and spike.is_skipped is should_skip
    assert are_equal(weights_of(trainer), before) is should_skip
    assert "step 10: spike gradient" in caplog.text
    assert trainer.train(step_of(batch)).metrics["train/grad_spike"] == 0.0


def test_the_guard_compares_with_the_median_of_the_last_fifty():
    guard = GradientGuard(spike_factor=10.0)
    assert [guard.judge(50.0) for _ in range(9)] == [Health.GOOD] * 9  # too few to say
    assert guard.judge(5000.0) is Health.GOOD
    assert guard.judge(500.1) is Health.SPIKE and guard.judge(499.9) is Health.GOOD
    for _ in range(50):
        guard.judge(1.0)  # the old scale is forgotten
    assert guard.judge(10.5) is Health.SPIKE


def test_out_of_memory_halves_the_micro_batches_and_keeps_the_gradient(batch, caplog):
    config = TrainerConfig(micro_batch_tokens=36)
    starved = Scripted([1.0], max_tokens=10)
    with caplog.at_level(logging.WARNING):
        got = accumulated(trainer_of(algorithm=starved, config=config), batch)
    assert_close(got, accumulated(trainer_of(algorithm=Scripted([1.0])), batch))
    assert starved.batches[0] > 10 and "trainer.micro_batch_tokens is now 18" in caplog.text


def test_lasting_lack_of_memory_names_the_settings_to_change(batch):
    trainer = trainer_of(algorithm=Scripted([1.0], max_tokens=0), config=TrainerConfig(micro_batch_tokens=64))
    with pytest.raises(ConfigError, match=r"micro_batch_tokens=8 .*sampling\.max_tokens.*precision"):
        trainer.loss(step_of(batch))


# reference


def test_reference_log_probs_come_with_the_samples(batch):
    trainer = trainer_of(algorithm=GRPOConfig(kl_coef=0.1))
    samples = step_of(referred(batch))
    metrics = [trainer.train(samples).metrics["train/kl_ref"] for _ in range(3)]
    assert abs(metrics[0]) < 1e-8 and metrics[1] > 1e-6


def test_missing_reference_log_probs_say_who_fills_them(batch):
    trainer = trainer_of(algorithm=GRPOConfig(kl_coef=0.1))
    short = [*referred(batch[:1]), replace(batch[1], reference_logprobs=None), *batch[2:]]
    with pytest.raises(
        DataError, match=r"group 0: .* 0 reference log-probs for 1 tokens.*needs one per token.*ReferenceExecutor"
    ):
        trainer.train(step_of(short))
    trainer_of(algorithm=PLAIN).train(step_of(short))


def test_a_response_no_policy_sampled_counts_as_the_policy_s_own(batch):
    given = replace(batch[1], trajectory=batch[1].trajectory.as_given(), advantages=1.0)
    metrics = trainer_of(algorithm=GRPOConfig(kl_coef=0.1)).train(step_of([given])).metrics
    assert metrics["train/ratio/mean"] == 1.0 and metrics["train/kl_ref"] == 0.0
    assert "train/mismatch_kl" not in metrics


def test_dropout_is_off_while_training(batch):
    trainer = trainer_of(tiny_model(attention_dropout=0.5).train())
    assert not any(module.training for module in trainer.model.modules())
    assert_close(accumulated(trainer, batch), accumulated(trainer_of(), batch))


# publishing


def test_weights_published_in_bf16_are_proved_as_what_arrives(batch):
    channel = LocalChannel(torch.bfloat16)
    trainer = trainer_of(channel=channel)
    trainer.train(step_of(batch))
    manifest = trainer.publish()
    received = channel.fetch(1)
    assert {tensor.dtype for tensor in received.values()} == {torch.bfloat16}
    verify(manifest, 1, checksum(received))
    assert manifest.num_bytes == sum(tensor.nbytes for tensor in received.values())


def test_published_weights_prove_themselves(batch):
    channel = LocalChannel()
    trainer = trainer_of(channel=channel)
    trainer.train(step_of(batch))
    manifest = trainer.publish()
    received = channel.fetch(1)
    verify(manifest, 1, checksum(received))
    receiver = tiny_model(seed=5)
    receiver.load_state_dict({**received, "lm_head.weight": received["model.embed_tokens.weight"]})
    probe = manifest.probe
    assert probe.now == pytest.approx(probe_logprobs(Decoder.live(receiver), probe.rows[0]), abs=1e-5)
    assert probe.at_start == pytest.approx(probe_logprobs(Decoder.live(tiny_model()), probe.rows[0]), abs=1e-5)
    assert probe.at_start != probe.now
    assert manifest.num_bytes == sum(t.nbytes for t in received.values()) and manifest.version == 1


def test_publishing_without_a_channel_is_refused():
    with pytest.raises(ConfigError, match="channel"):
        trainer_of().publish()


# checkpoints


def test_two_steps_saved_and_one_resumed_are_three_steps_bit_for_bit(tmp_path, batch):
    config = TrainerConfig(learning_rate=1e-2, warmup_steps=1, schedule="cosine", weight_decay=0.1)
    whole, part, resumed = (trainer_of(algorithm=GRPOConfig(), config=config, total_steps=6) for _ in range(3))
    batch = referred(batch)
    expected = [whole.train(step_of(batch)) for _ in range(3)][-1]
    for _ in range(2):
        part.train(step_of(batch))
    part.save(tmp_path / "checkpoint")
    assert resumed.load(tmp_path / "checkpoint") == 2
    result = resumed.train(step_of(batch))
    assert are_equal(weights_of(resumed), weights_of(whole))
    assert are_equal(resumed._optimizer.state(), whole._optimizer.state())
    assert {**result.metrics, "time/train": 0} == {**expected.metrics, "time/train": 0}
    assert resumed._guard.state() == whole._guard.state()


def test_a_checkpoint_holds_safetensors_and_json_only(tmp_path, batch):
    trainer = trainer_of()
    trainer.train(step_of(batch))
    trainer.save(tmp_path / "c")
    assert {file.name for file in (tmp_path / "c").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
    }
    assert json.loads((tmp_path / "c" / "trainer.json").read_text())["version"] == 1


def test_a_trainer_can_be_saved_before_its_first_step(tmp_path, batch):
    trainer, resumed = trainer_of(), trainer_of(tiny_model(seed=3))
    trainer.save(tmp_path / "c")
    assert resumed.load(tmp_path / "c") == 0
    assert trainer.train(step_of(batch)).metrics["train/loss"] == resumed.train(step_of(batch)).metrics["train/loss"]


def test_a_checkpoint_of_another_model_or_with_torn_files_is_refused_untouched(tmp_path):
    trainer = trainer_of()
    trainer.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="not empty"):
        trainer.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="not of this model"):
        trainer_of(tiny_model(num_hidden_layers=1)).load(tmp_path / "c")
    other = trainer_of(tiny_model(seed=9))
    before = weights_of(other)
    file = tmp_path / "c" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable trainer checkpoint"):
        other.load(tmp_path / "c")
    assert are_equal(weights_of(other), before)


# rejects


def test_half_precision_weights_greedy_sampling_and_endless_schedules_are_refused():
    with pytest.raises(ConfigError, match=r"model: weights in torch\.bfloat16; load it in float32"):
        trainer_of(tiny_model().bfloat16())
    with pytest.raises(ConfigError, match="temperature=0"):
        trainer_of(sampling=Sampling(temperature=0.0))
    with pytest.raises(ConfigError, match=r"schedule='linear' falls to 0 .*\(None\)"):
        trainer_of(config=TrainerConfig(schedule="linear"))


def test_gradients_helper_sees_every_parameter(model):
    got = gradients(model, lambda: PaddedScorer(model)(rows_of(samples_of([(3, [4])]))).logprobs.sum())
    assert all(float(value.abs().sum()) > 0 for value in got.values())
