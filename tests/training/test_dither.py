"""Passes in bf16 see small updates of weights, and the policy starts as it was."""

import math

import pytest
import torch
from torch import nn

from llamarl.training.dither import dither_weights


def matrix(values: torch.Tensor) -> nn.Linear:
    module = nn.Linear(values.shape[1], values.shape[0])
    with torch.no_grad():
        module.weight.copy_(values)
        module.bias.fill_(0.3)
    return module


EXTREMES = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-126, 2.0**-130, -(2.0**-126), 1.0e37, 0.1, -0.1, 1.0 + 2**-9, 255.0]


def test_what_passes_see_is_unchanged_and_weights_have_moved() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(200, 13, generator=generator), torch.tensor([EXTREMES])]).repeat(5, 1)
    module = matrix(values)
    dither_weights(module, seed=1)
    weights = module.weight.detach()
    assert torch.equal(weights.bfloat16(), values.bfloat16())
    assert (weights[values == 0.0] == 0.0).all()
    spacing = 2.0 ** (torch.floor(torch.log2(values[:200].abs())) - 7)
    moved = (weights[:200] - values[:200].bfloat16().float()) / spacing
    assert moved.abs().max() <= 0.5 and moved.abs().mean() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(module.bias, torch.full((len(values),), 0.3))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_an_update_below_the_spacing_is_seen_in_proportion(share: float) -> None:
    """By hand: 0.75 has spacing 2**-8; an update of a share of it moves that share of the weights by the spacing."""
    module, spacing = matrix(torch.full((400, 500), 0.75)), 2.0**-8
    before = module.weight.bfloat16().float()
    with torch.no_grad():
        plain = (module.weight + share * spacing * 0.99).bfloat16().float() - before
        dither_weights(module, seed=0)
        module.weight.add_(share * spacing)
    seen = (module.weight.bfloat16().float() - before).mean().item()
    error = spacing * math.sqrt(share / module.weight.numel())
    assert plain.abs().max() == 0.0
    assert seen == pytest.approx(share * spacing, rel=0.01, abs=5 * error)


def test_each_matrix_has_its_own_noise_and_ranks_draw_the_same() -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        module = nn.Sequential(matrix(torch.ones(4, 8)), matrix(torch.ones(4, 8)))
        dither_weights(module, seed)
        return [module[0].weight, module[1].weight]

    (a, b), (again, _), (other, _) = drawn(0), drawn(0), drawn(1)
    assert torch.equal(a, again) and not torch.equal(a, b) and not torch.equal(a, other)


def test_what_is_not_trained_stays_as_it_is() -> None:
    frozen, trained = matrix(torch.ones(4, 8)), matrix(torch.ones(4, 8))
    frozen.weight.requires_grad_(False)
    dither_weights(nn.Sequential(frozen, trained), seed=0)
    assert torch.equal(frozen.weight, torch.ones(4, 8)) and not torch.equal(trained.weight, torch.ones(4, 8))
