"""AdamW with a stateless learning-rate schedule, clipping, and a state that is plain tensors."""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.functional.shards import local_part
from llamarl.training.config import OptimizerConfig, Schedule
from llamarl.training.ranks import ALONE, Ranks
from llamarl.training.sharding import own_parameter


def _copy_to_host(parameter: nn.Parameter) -> nn.Parameter:
    """A copy of this rank's numbers in the machine's memory, also where the model is there itself."""
    held = local_part(parameter)
    copied = torch.empty_like(held, device="cpu", pin_memory=held.is_cuda)  # pinned pages are copied faster
    return nn.Parameter(copied.copy_(held))


def learning_rate(
    step: int, peak: float, *, warmup_steps: int = 0, schedule: Schedule = "constant", total_steps: int | None = None
) -> float:
    """The learning rate of optimizer step `step`, counted from 0; a pure function, so resuming needs no state.

    Warm-up: peak * (step + 1) / (warmup_steps + 1). Then with p = (step - warmup_steps) / (total_steps - warmup_steps)
    in [0, 1]: linear peak * (1 - p), cosine peak * (1 + cos(pi p)) / 2.

    `total_steps` is read by the falling schedules only, which need it larger than `warmup_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    assert total_steps is not None
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return peak * (1.0 - progress) if schedule == "linear" else peak * (1.0 + math.cos(math.pi * progress)) / 2.0


class Optimizer:
    """AdamW over a model's trainable parameters. Gradients live in the parameters' `.grad`.

    Where parameters are sharded, each rank updates its own numbers, and the norm is that of the whole gradient.

    Args:
        parameters: by name; those with `requires_grad` are trained.
        config: the settings.
        total_steps: where a falling schedule reaches 0.
        ranks: who else holds parts of these parameters.
        copies: names of parameters whose numbers here are counted by another rank.

    Raises:
        ConfigError: a falling schedule without an end after warm-up.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        total_steps: int | None = None,
        ranks: Ranks = ALONE,
        copies: Collection[str] = (),
    ) -> None:
        if config.schedule != "constant" and (total_steps is None or total_steps <= config.warmup_steps):
            raise ConfigError(
                f"schedule={config.schedule!r} falls to 0 at the run's last step ({total_steps}), which must lie "
                f"beyond warmup_steps={config.warmup_steps}; lower warmup_steps or set schedule='constant'"
            )
        self._config, self._total_steps = config, total_steps
        self._ranks, self._copies = ranks, frozenset(copies)
        self._named = {name: p for name, p in parameters.items() if p.requires_grad}
        make = _copy_to_host if config.offload == "optimizer" else own_parameter
        self._own = {name: make(p) for name, p in self._named.items()}
        """This rank's numbers of each parameter, over the same memory; or copies of them in the machine's memory."""
        matrices = [p for p in self._own.values() if p.ndim >= 2]
        others = [p for p in self._own.values() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas, fused=True
        )

    def rate(self, step: int) -> float:
        """The learning rate of step `step`."""
        c = self._config
        return learning_rate(
            step, c.learning_rate, warmup_steps=c.warmup_steps, schedule=c.schedule, total_steps=self._total_steps
        )

    def grad_norm(self) -> float:
        """Euclidean norm of the whole accumulated gradient, over all ranks; 0 where there is none."""
        counted = [
            local_part(p.grad) for name, p in self._named.items() if p.grad is not None and name not in self._copies
        ]
        norm = float(torch.nn.utils.get_total_norm(counted, foreach=True)) if counted else 0.0
        return norm if self._ranks.count == 1 else math.sqrt(self._ranks.total(norm * norm))

    def take_gradient(self) -> dict[str, Tensor]:
        """Moves the accumulated gradient out of the parameters: by name, empty where there is none."""
        taken = {name: p.grad for name, p in self._named.items() if p.grad is not None}
        self.clear()
        return taken

    def add_gradient(self, others: Mapping[str, Tensor], weight: float) -> None:
        """Makes the gradient `others + weight * gradient`; `others` is what `take_gradient` gave, and is consumed."""
        if weight != 1.0 and self._grads():
            torch._foreach_mul_(self._grads(), weight)
        for name, other in others.items():
            parameter = self._named[name]
            parameter.grad = other if parameter.grad is None else parameter.grad.add_(other)

    def step(self, step: int, grad_norm: float) -> float:
        """Clips by the norm just measured, updates the weights, clears the gradient. Returns the learning rate."""
        rate = self.rate(step)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        if grad_norm > self._config.max_grad_norm:
            torch._foreach_mul_(self._grads(), self._config.max_grad_norm / grad_norm)
        for name, parameter in self._own.items():
            if parameter is not self._named[name]:
                grad = self._named[name].grad
                parameter.grad = None if grad is None else local_part(grad).to(parameter.device)
        self._adamw.step()
        if self._config.offload == "optimizer":
            for name, parameter in self._own.items():
                local_part(self._named[name]).copy_(parameter.detach())
        self.clear()
        return rate

    def read_weights(self) -> None:
        """Takes the model's weights as they are now; call it where others than this optimizer have written them."""
        if self._config.offload == "optimizer":
            for name, parameter in self._own.items():
                parameter.detach().copy_(local_part(self._named[name]))

    @property
    def num_copied_bytes(self) -> int:
        """Bytes of the copies of the weights that steps are taken on; 0 where they are taken on the weights."""
        return sum(p.nbytes for p in self._own.values()) if self._config.offload == "optimizer" else 0

    def clear(self) -> None:
        """Forgets the accumulated gradient."""
        for parameter in (*self._named.values(), *self._own.values()):
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by `<parameter>.<exp_avg|exp_avg_sq|step>`; empty before the first step."""
        return {
            f"{name}.{key}": value
            for name, parameter in self._own.items()
            for key, value in self._adamw.state.get(parameter, {}).items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave. Raises `CheckpointError` if names or shapes are another model's."""
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, kind = key.rpartition(".")
            by_parameter.setdefault(name, {})[kind] = value
        if foreign := sorted(by_parameter.keys() - self._named.keys()):
            raise CheckpointError(f"optimizer state of {foreign[0]!r}, which this model does not train")
        self._adamw.state.clear()
        for name, state in by_parameter.items():
            parameter = self._own[name]
            if state["exp_avg"].shape != parameter.shape:
                raise CheckpointError(f"optimizer state of {name!r} has shape {tuple(state['exp_avg'].shape)}")
            self._adamw.state[parameter] = {kind: v.to(parameter.device, copy=True) for kind, v in state.items()}

    def _grads(self) -> list[Tensor]:
        return [local_part(p.grad) for p in self._named.values() if p.grad is not None]
