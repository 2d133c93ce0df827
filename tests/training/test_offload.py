"""Moments in the machine's memory: the step is the same."""

import pytest
import torch
from tiny_policies import samples_of, step_of, tiny_model

from llamarl.algorithms import GRPOConfig, PPOConfig
from llamarl.core.errors import ConfigError
from llamarl.training.config import TrainerConfig
from llamarl.training.optimizer import Optimizer
from llamarl.training.trainer import PolicyTrainer


def trainer_of(offload: str | None, **config: object) -> PolicyTrainer:
    fields = {"learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0.1, "offload": offload, **config}
    algorithms = [GRPOConfig(kl_coef=0.0), PPOConfig(kl_coef=0.0)]
    return PolicyTrainer(tiny_model(), algorithms, TrainerConfig(**fields))


def train(trainer: PolicyTrainer, *steps: int) -> dict[str, torch.Tensor]:
    for step in steps:
        trainer.train([step_of(samples_of([(3, [4, 5]), (2, [6])], seed=2 * step + task)) for task in range(2)])
    tensors = trainer.trained.tensors() | trainer.critics.tensors() | trainer._optimizer.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("config", [{}, {"lora": {"rank": 2}}, {"max_grad_norm": 0.01}])
def test_steps_are_those_without_bit_for_bit(config: dict[str, object]) -> None:
    assert are_equal(*(train(trainer_of(offload, **config), 0, 1, 2) for offload in (None, "optimizer")))


def test_a_checkpoint_goes_on_with_and_without(tmp_path) -> None:
    through = trainer_of(None)
    train(through, 0, 1)
    through.save(tmp_path / "saved")
    expected = train(through, 2)
    for offload in (None, "optimizer"):
        resumed = trainer_of(offload)
        train(resumed, 5)  # its copies are of other weights by now
        resumed.load(tmp_path / "saved")
        assert are_equal(train(resumed, 2), expected)


def test_the_step_is_taken_on_copies_that_are_counted() -> None:
    """On a CPU too, so that what is tested here is what a GPU's trainer does."""
    trainer = trainer_of("optimizer")
    copies = trainer._optimizer._own
    named = trainer._optimizer._named
    assert copies and all(copy.data_ptr() != named[name].data_ptr() for name, copy in copies.items())
    held = trainer.memory()
    critic = sum(tensor.nbytes for tensor in trainer.critics.tensors().values())
    assert held["copied weights"] == held["weights"] + critic
    assert trainer_of(None).memory()["copied weights"] == 0


def test_weights_that_others_wrote_are_read_on_request() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer({"w": weight}, TrainerConfig(learning_rate=1e-2, warmup_steps=0, offload="optimizer"))
    weight.data.fill_(5.0)
    optimizer.read_weights()
    weight.grad = torch.ones(2, 2)
    optimizer.step(0, 1.0)
    assert weight.tolist() == [[pytest.approx(4.99)] * 2] * 2  # AdamW's first step is the learning rate


def test_other_parts_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"offload"):
        TrainerConfig.parse({"offload": "weights"})
