"""A small classifier of vectors: one hidden layer, trained until validation claims no longer gain.

    logit = w_2 relu(W_1 x + b_1) + b_2

Features are standardised for training; what is kept has the standardisation in its first layer, so that it takes
features as they are.

Shape legend: N vectors, d their size, H hidden units.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Mlp:
    """The classifier."""

    hidden_weight: Tensor
    """`[H, d]`"""
    hidden_bias: Tensor
    """`[H]`"""
    output_weight: Tensor
    """`[H]`"""
    output_bias: Tensor
    """`[]`"""

    def __call__(self, features: Tensor) -> Tensor:
        """The logits `[N]` of `features [N, d]`, float32."""
        hidden = F.relu(F.linear(features, self.hidden_weight, self.hidden_bias))
        return hidden @ self.output_weight + self.output_bias

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def parse(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The classifier of some weights. Raises `ValueError` unless they are those of one."""
        if set(tensors) != set(cls.__slots__):
            raise ValueError(f"weights {sorted(tensors)} instead of {sorted(cls.__slots__)}")
        weights = {name: tensor.float() for name, tensor in tensors.items()}
        size = weights["hidden_weight"].shape
        shapes = {"hidden_weight": size, "hidden_bias": size[:1], "output_weight": size[:1], "output_bias": ()}
        for name, shape in shapes.items():
            if len(size) != 2 or tuple(weights[name].shape) != tuple(shape) or not bool(weights[name].isfinite().all()):
                raise ValueError(f"{name} of shape {list(weights[name].shape)} does not fit, or is not finite")
        return cls(**weights)

    @classmethod
    def fold(cls, body: nn.Sequential, mean: Tensor, scale: Tensor) -> Self:
        """The classifier that gives for `x` what a body gives for `(x - mean) / scale`.

        Args:
            body: linear, ReLU, linear.
            mean: `[d]`.
            scale: `[d]`, none of them 0.
        """
        first, second = cast(nn.Linear, body[0]), cast(nn.Linear, body[2])
        weight = (first.weight / scale).detach()
        bias = first.bias.detach() - weight @ mean
        return cls(weight, bias, second.weight[0].detach().clone(), second.bias[0].detach().clone())


@dataclass(frozen=True, slots=True)
class Fit:
    """A classifier, and how it was come by."""

    mlp: Mlp
    loss: float
    """Mean cross-entropy of the validation vectors in nats, each class counting the same."""
    epoch: int
    """The epoch whose weights were kept, from 1."""


def fit_mlp(
    features: Tensor,
    labels: Tensor,
    validation: tuple[Tensor, Tensor],
    *,
    learning_rate: float,
    hidden_size: int,
    weight_decay: float,
    max_epochs: int,
    patience: int,
    batch_size: int,
    seed: int,
) -> Fit:
    """Trains a classifier by AdamW; keeps the weights of the epoch with the lowest validation loss.

    Args:
        features: `[N, d]`.
        labels: `[N]` 1 for factual, 0 for hallucinated; both classes, each of which counts the same in all.
        validation: features and labels.
        learning_rate: constant.
        hidden_size: hidden units.
        weight_decay: of AdamW.
        max_epochs: most passes over the data.
        patience: passes without a lower validation loss after which it ends.
        batch_size: vectors of a step.
        seed: of weights and order.
    """
    mean, scale = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)  # what never varies says nothing
    x, x_validation = (features - mean) / scale, (validation[0] - mean) / scale
    weights, weights_validation = _balance(labels), _balance(validation[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(x.shape[1], hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))
        optimizer = torch.optim.AdamW(body.parameters(), lr=learning_rate, weight_decay=weight_decay)
        best: tuple[float, int, nn.Sequential] | None = None
        for epoch in range(1, max_epochs + 1):
            for rows in torch.randperm(len(x)).split(batch_size):  # type: ignore[no-untyped-call]
                optimizer.zero_grad(set_to_none=True)
                _loss(body(x[rows])[:, 0], labels[rows], weights[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                loss = _loss(body(x_validation)[:, 0], validation[1], weights_validation).item()
            if best is None or loss < best[0]:
                best = loss, epoch, copy.deepcopy(body)
            elif epoch - best[1] >= patience:
                break
    assert best is not None
    return Fit(Mlp.fold(best[2], mean, scale), best[0], best[1])


def _balance(labels: Tensor) -> Tensor:
    """Weights with mean 1 by which both classes count the same."""
    share = labels.mean()
    return 0.5 * (labels / share + (1.0 - labels) / (1.0 - share))


def _loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, weight=weights)
