"""Critics: what reward to expect from here on, read off the policy's last hidden states."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class ValueHeads(nn.Module):
    """One linear critic for each task whose algorithm needs one; all zeros at first, so every value starts at 0.

    Args:
        model: whose hidden states are read.
        tasks: indices of the tasks with a critic.
    """

    def __init__(self, model: nn.Module, tasks: Iterable[int]) -> None:
        super().__init__()
        config: Any = model.config
        device = next(model.parameters()).device
        self.by_task = nn.ModuleDict({str(task): nn.Linear(config.hidden_size, 1, device=device) for task in tasks})
        with torch.no_grad():  # autograd refuses to write into parameters
            for parameter in self.parameters():
                parameter.zero_()

    def values(self, task: int, hidden: Tensor) -> Tensor:
        """`[S, d] -> [S]`: the task's value of the state before each token, float32."""
        values: Tensor = self.by_task[str(task)](hidden.float()).squeeze(-1)
        return values

    def tensors(self) -> dict[str, Tensor]:
        """Parameters by name; empty where no task has a critic."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}
