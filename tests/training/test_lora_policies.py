"""Policies of which only adapters are trained."""

from dataclasses import replace

import pytest
import torch
from tiny_policies import rows_of, samples_of, step_of, tiny_model

from llamarl.algorithms.grpo import GRPOConfig
from llamarl.algorithms.ppo import PPOConfig
from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.core.sampling import Sampling
from llamarl.functional.checksum import checksum, verify, verify_base
from llamarl.models.adapted import AdaptedDense
from llamarl.models.decoder import named_tensors
from llamarl.models.lora import Adapters, adapter_shapes
from llamarl.models.lora_config import LoraConfig
from llamarl.scoring.logprobs import PaddedScorer, build_scorer
from llamarl.training.config import TrainerConfig
from llamarl.training.reference import ReferenceExecutor
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel

PLAIN = GRPOConfig(kl_coef=0.0)
LORA = LoraConfig(rank=2, alpha=4.0)
CONFIG = TrainerConfig(learning_rate=1e-2, warmup_steps=0, lora=LORA)
FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gpt_neox"]


def trainer_of(model=None, algorithm=PLAIN, config=CONFIG, **arguments):
    return PolicyTrainer(model or tiny_model(), algorithm, config, **arguments)


def logprobs_of(trainer, samples):
    with torch.no_grad():
        return trainer._score(rows_of(samples)).logprobs


def copies(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


class HandMade:
    """A layer as peft keeps it, with numbers of the test."""

    disable_adapters = False

    def __init__(self, low, high, scale):
        self.lora_A, self.lora_B = ({"default": torch.nn.Linear(1, 1, bias=False)} for _ in range(2))
        self.lora_A["default"].weight = torch.nn.Parameter(torch.tensor(low))
        self.lora_B["default"].weight = torch.nn.Parameter(torch.tensor(high))
        self.scaling = {"default": scale}


# golden


def test_a_layer_adds_what_its_adapter_makes_of_the_input():
    """W x = (1*3 + 2*1, 3*3 + 4*1) = (5, 13); A x = 3 - 1 = 2; B A x = (4, 1); times alpha / rank = 4: (16, 4)."""
    layer = HandMade([[1.0, -1.0]], [[2.0], [0.5]], 4.0)
    dense = AdaptedDense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), None, layer=layer)
    assert dense(torch.tensor([[3.0, 1.0]])).tolist() == [[21.0, 17.0]]
    layer.disable_adapters = True
    assert dense(torch.tensor([[3.0, 1.0]])).tolist() == [[5.0, 13.0]]


def test_parameters_are_counted_by_hand():
    """q, o: 16 x 16; k, v: 16 -> 8; gate, up: 16 -> 24; down: 24 -> 16; each rank * (in + out), in two layers."""
    per_layer = 2 * (32 + 32 + 24 + 24 + 40 + 40 + 40)
    trainer = trainer_of()
    assert sum(tensor.numel() for tensor in trainer.trained.tensors().values()) == 2 * per_layer
    memory = trainer.memory()
    frozen = sum(tensor.nbytes for _, tensor in named_tensors(tiny_model()))
    assert memory["weights"] == frozen + 4 * 2 * per_layer and memory["gradients"] == 4 * 2 * per_layer


# gradient


def test_gradients_of_both_halves_by_hand():
    """y = W x + s B A x gives dB = s g (A x)^T and dA = s B^T g x^T."""
    torch.manual_seed(0)
    layer = HandMade(torch.randn(2, 5).tolist(), torch.randn(4, 2).tolist(), 1.5)
    x, g, weight = torch.randn(7, 5), torch.randn(7, 4), torch.randn(4, 5)
    (AdaptedDense(weight, None, layer=layer)(x) * g).sum().backward()
    low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(high.grad, 1.5 * g.t() @ (x @ low.detach().t()))
    torch.testing.assert_close(low.grad, 1.5 * (g @ high.detach()).t() @ x)


def test_a_step_changes_adapters_and_nothing_else(batch):
    model = tiny_model()
    frozen = copies(dict(named_tensors(model)))
    trainer = trainer_of(model)
    before = copies(trainer.trained.tensors())
    for _ in range(2):  # B is zero at first, and so A's first gradient
        trainer.train(step_of(batch))
    after = trainer.trained.tensors()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    now = {name.replace(".base_layer", ""): tensor for name, tensor in named_tensors(model) if "lora_" not in name}
    assert now.keys() == frozen.keys() and all(torch.equal(now[name], frozen[name]) for name in frozen)
    state = trainer._optimizer.state()
    moments = [value for name, value in state.items() if name.endswith("exp_avg")]
    assert sum(m.numel() for m in moments) == sum(t.numel() for t in after.values())


def test_the_gradient_norm_is_that_of_the_adapters(batch):
    trainer = trainer_of()
    trainer.loss(step_of(batch))
    grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    by_hand = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
    assert trainer.step().metrics["train/grad_norm"] == pytest.approx(float(by_hand), rel=1e-5)


# invariance


@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_first_step_the_policy_is_the_base_bit_for_bit(family):
    samples = samples_of([(4, [5, 3]), (6, [2, 7])])
    adapted = trainer_of(tiny_model(family))
    with torch.no_grad(), adapted.trained.switched_off():
        without = adapted._score(rows_of(samples)).logprobs
    assert torch.equal(logprobs_of(adapted, samples), without)
    with torch.no_grad():
        base = PaddedScorer(tiny_model(family))(rows_of(samples)).logprobs
    torch.testing.assert_close(without, base, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_compute_what_the_adapters_did(family):
    samples = samples_of([(4, [5, 3]), (6, [2, 7])])
    model = tiny_model(family)
    trainer = trainer_of(model)
    for _ in range(3):
        trainer.train(step_of(samples))
    apart = logprobs_of(trainer, samples)
    trainer.trained.merge()
    assert dict(named_tensors(model)).keys() == dict(named_tensors(tiny_model(family))).keys()
    with torch.no_grad():
        merged, base = (build_scorer(each)(rows_of(samples)).logprobs for each in (model, tiny_model(family)))
    torch.testing.assert_close(merged, apart, atol=5e-5, rtol=1e-5)
    assert float((merged - base).abs().max()) > 1e-2


def test_micro_batches_leave_the_gradient_as_it_is():
    samples = samples_of([(4, [5, 5]), (4, [5, 5]), (4, [5, 5])])
    results = []
    for tokens in (16, 10_000):
        trainer = trainer_of(config=CONFIG.model_copy(update={"micro_batch_tokens": tokens}))
        for _ in range(2):
            trainer.train(step_of(samples))
        results.append(trainer.trained.tensors())
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], atol=2e-5, rtol=1e-4)


def test_adapters_of_one_seed_are_the_same_and_of_another_differ():
    first, again, other = (trainer_of(seed=seed).trained.tensors() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_shapes_are_known_without_any_adapter(family, targets):
    targets = ("query_key_value",) if targets and family == "gpt_neox" else targets
    config = LoraConfig(rank=3, targets=targets)
    shapes = adapter_shapes(tiny_model(family), config)
    tensors = Adapters(tiny_model(family), config, 0).tensors()
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# publish, save, load


def test_only_adapters_are_published_with_their_digest_and_that_of_the_base(batch):
    channel = LocalChannel()
    trainer = trainer_of(channel=channel)
    trainer.train(step_of(batch))
    manifest = trainer.publish()
    sent = channel.fetch(1)
    assert sent.keys() == adapter_shapes(tiny_model(), LORA).keys()
    verify(manifest, 1, checksum(sent))
    assert manifest.num_bytes == sum(tensor.nbytes for tensor in sent.values())
    verify_base(manifest, checksum(dict(named_tensors(tiny_model()))))
    assert manifest.probe.now != manifest.probe.at_start
    whole = PolicyTrainer(tiny_model(), PLAIN, channel=LocalChannel()).publish()
    assert whole.base == {} and whole.num_bytes > manifest.num_bytes


def test_a_resumed_trainer_goes_on_bit_for_bit(tmp_path, batch):
    through, first = trainer_of(channel=LocalChannel()), trainer_of()
    for trainer in (through, first):
        trainer.train(step_of(batch))
    first.save(tmp_path / "saved")
    resumed = trainer_of(seed=99, channel=LocalChannel())  # other first weights, which the checkpoint's replace
    assert resumed.load(tmp_path / "saved") == 1
    assert torch.equal(logprobs_of(resumed, batch), logprobs_of(through, batch))
    one, other = (trainer.train(step_of(batch)).metrics for trainer in (through, resumed))
    assert {k: v for k, v in one.items() if "time" not in k} == {k: v for k, v in other.items() if "time" not in k}
    left, right = through.publish(), resumed.publish()
    assert left.checksums == right.checksums and left.probe == right.probe


def test_a_checkpoint_holds_adapters_only(tmp_path, batch):
    sizes = {}
    for name, config in (("whole", TrainerConfig()), ("adapters", CONFIG)):
        trainer = trainer_of(tiny_model(hidden_size=256, intermediate_size=512), config=config)
        trainer.train(step_of(batch))
        trainer.save(tmp_path / name)
        sizes[name] = sum(file.stat().st_size for file in (tmp_path / name).iterdir())
    assert sizes["adapters"] < sizes["whole"] / 10


# reference


def test_without_adapters_the_trainer_is_the_reference(batch):
    config = CONFIG.model_copy(update={"micro_batch_tokens": 16})
    reference = ReferenceExecutor(config, tiny_model, Sampling(temperature=0.7))
    reference.setup()
    trainer = trainer_of(config=config, sampling=Sampling(temperature=0.7))
    for _ in range(3):
        trainer.train(step_of(batch))
    trained = logprobs_of(trainer, batch)
    found = trainer.reference_logprobs(rows_of(batch))
    for ours, theirs in zip(found, reference.logprobs(rows_of(batch)), strict=True):
        assert list(ours) == pytest.approx(list(theirs), abs=2e-5)
    assert torch.equal(logprobs_of(trainer, batch), trained)  # the adapters are on again
    before = copies(trainer.trained.tensors())
    trainer.train(step_of(batch))  # and are trained again
    assert any(not torch.equal(before[name], tensor) for name, tensor in trainer.trained.tensors().items())


def test_critics_are_trained_along_and_saved(tmp_path, batch):
    dense = [replace(sample, reference_logprobs=sample.trajectory.logprobs) for sample in batch]
    trainer = trainer_of(algorithm=PPOConfig())
    trainer.train(step_of(dense))
    critics = trainer.critics.tensors()
    assert any(bool(tensor.any()) for tensor in critics.values())
    trainer.save(tmp_path / "saved")
    resumed = trainer_of(algorithm=PPOConfig())
    resumed.load(tmp_path / "saved")
    assert all(torch.equal(critics[name], tensor) for name, tensor in resumed.critics.tensors().items())


# rejects


def test_an_unknown_target_is_refused_with_those_there_are():
    config = TrainerConfig(lora=LoraConfig(rank=2, targets=("qkv",)))
    with pytest.raises(ConfigError, match=r"lora.targets: 'qkv' is none of .*choose among down_proj, .*v_proj"):
        trainer_of(config=config)


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"lora\.rank: must be at least 1; got 0"):
        TrainerConfig.parse({"lora": {"rank": 0}})


def test_a_model_trained_whole_has_no_reference_inside():
    with pytest.raises(ConfigError, match=r"has no adapters; set trainer\.lora\.rank"):
        trainer_of(config=TrainerConfig()).reference_logprobs([])


def test_checkpoints_of_whole_models_of_other_ranks_and_of_other_bases_are_refused(tmp_path):
    trainer_of().save(tmp_path / "adapters")
    trainer_of(config=TrainerConfig()).save(tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"holds adapters, but this run trains whole weights; go on with the tr"):
        trainer_of(config=TrainerConfig()).load(tmp_path / "adapters")
    with pytest.raises(CheckpointError, match=r"holds whole weights, but this run trains adapters; go on with"):
        trainer_of().load(tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"trained beside other weights than the model has now; put"):
        trainer_of(tiny_model(seed=1)).load(tmp_path / "adapters")
    wider = CONFIG.model_copy(update={"lora": LoraConfig(rank=3)})
    with pytest.raises(CheckpointError, match=r"of another shape; adapters go on with the trainer\.lora"):
        trainer_of(config=wider).load(tmp_path / "adapters")
