"""A mixture of experts in the place of a block's MLP: each token passes through few of many.

    p        = softmax(W_router x)                 over all E experts, in float32
    output   = sum over the top k of p: w_e down_e(silu(gate_e x) * up_e x)
    w_e      = p_e, or p_e over the sum of the top k's

As Qwen3-MoE has it: "Qwen3 Technical Report", Yang et al. 2025, https://arxiv.org/abs/2505.09388, section 2; no expert
is shared, and no load is balanced here.

A token may be sent to given experts instead of the top k: to those that the generator chose, in whose place rounding or
newer weights would choose others. w_e is then of those, by this router, whose gradient flows on ("Stabilizing MoE
Reinforcement Learning by Aligning Training and Inference Routers", Ma et al. 2025, https://arxiv.org/abs/2510.11370).

Shape legend: M tokens, d hidden size, E experts, k of them active, I inner width of an expert.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamarl.models.linear import linear


class Experts(nn.Module):
    """A router and its experts.

    Args:
        router: `[E, d]`.
        gate_up: `[E, 2 I, d]`, of each expert first gate, then up.
        down: `[E, d, I]`.
        num_active: experts that each token passes through.
        is_normalised: True where their weights are made to add up to 1.
    """

    def __init__(self, router: Tensor, gate_up: Tensor, down: Tensor, num_active: int, is_normalised: bool) -> None:
        super().__init__()
        self.num_active, self.is_normalised = num_active, is_normalised
        self.gate, self.experts = _named(weight=router), _named(gate_up_proj=gate_up, down_proj=down)
        self.chosen = torch.empty(0, num_active, dtype=torch.int64)
        """`[M, k]` int64: the experts of the tokens that came last."""

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Computes `[M, d] -> [M, d]`.

        Args:
            x: the tokens.
            given: `[M, k]` int64, the experts that they go to, with -1 where this router chooses; None: everywhere.
        """
        weights, chosen = self._route(x, given)  # [M, k] each
        self.chosen = chosen
        total = torch.zeros_like(x)
        # Taken apart at once: the gradient of one expert taken out of all would be as large as all of them.
        gate_up, down = self.experts.gate_up_proj.unbind(), self.experts.down_proj.unbind()
        for expert in sorted(set(chosen.flatten().tolist())):
            tokens, places = torch.where(chosen == expert)
            gate, up = linear(x[tokens], gate_up[expert]).chunk(2, dim=-1)
            made = linear(F.silu(gate) * up, down[expert]) * weights[tokens, places, None]
            total = total.index_add(0, tokens, made.to(total.dtype))
        return total

    def _route(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = linear(x, self.gate.weight)
        probs = F.softmax(logits, dtype=torch.float32, dim=-1)
        weights, chosen = probs.topk(self.num_active, dim=-1)
        if given is not None:
            chosen = torch.where(given < 0, chosen, given)
            weights = probs.gather(-1, chosen)
        if self.is_normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(logits.dtype), chosen


def _named(**tensors: Tensor) -> Any:
    """A module that holds tensors under the names that Hugging Face gives them."""
    module = nn.Module()
    for name, tensor in tensors.items():
        setattr(module, name, tensor)
    return module
