"""Advantages from rewards: how much better a sample is than its baseline. Plain numbers, used by the controller."""

from collections.abc import Hashable, Sequence
from math import fsum, sqrt
from typing import Literal

Center = Literal["mean", "leave_one_out"]
"""The baseline of a sample: the mean of its whole group, or of the others in it."""

Scale = Literal["group", "batch", "none"]
"""The standard deviation that advantages are divided by: that of the group's rewards, of all rewards, or none."""


def group_advantages(
    rewards: Sequence[float],
    groups: Sequence[Hashable],
    *,
    center: Center = "mean",
    scale: Scale = "none",
    eps: float = 1e-6,
) -> list[float]:
    """Advantage of each sample within its group.

        mean            A_i = r_i - mean(r)
        leave_one_out   A_i = r_i - mean(r without r_i) = n / (n - 1) * (r_i - mean(r))
        scale="group"   A_i / (std(r) + eps), std with divisor n, so that |A_i| <= sqrt(n - 1)
        scale="batch"   A_i / (std(r of all groups) + eps), one number for the whole batch

    Equal rewards, and a sample alone in its group, get exactly 0. With one group for the whole batch, both scales are
    the batch normalisation of REINFORCE++. Dividing by the group's standard deviation gives very easy and very hard
    prompts more weight than the reward asks for ("Understanding R1-Zero-like training", arXiv 2503.20783); the batch's
    keeps prompts in proportion, and steps of one size however rewards are scaled ("Part I: Tricks or traps? A deep dive
    into RL for LLM reasoning", arXiv 2508.08221).

    Args:
        rewards: `[N]` finite rewards. Leave unscored samples out: they belong to no mean.
        groups: `[N]` group of each sample; any hashable labels, in any order.
        center: the baseline.
        scale: what advantages are divided by; `none` keeps the reward's unit.
        eps: added to the standard deviation, in the reward's unit, > 0.

    Returns:
        `[N]` advantages, in the order of the rewards.

    Raises:
        ValueError: lengths differ, or `leave_one_out` is combined with a scale (a factor that the division undoes).
    """
    if len(rewards) != len(groups):
        raise ValueError(f"group_advantages: {len(rewards)} rewards but {len(groups)} group labels")
    if center == "leave_one_out" and scale != "none":
        raise ValueError(f"group_advantages: center='leave_one_out' only rescales; use center='mean' with {scale=}")
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    advantages = [0.0] * len(rewards)
    batch_std = _std(_center(rewards)) if scale == "batch" and rewards else 0.0
    for indices in members.values():
        values = _center([rewards[i] for i in indices])
        factor = _factor(values, center, scale, batch_std, eps)
        for index, value in zip(indices, values, strict=True):
            advantages[index] = factor * value
    return advantages


def _center(rewards: Sequence[float]) -> list[float]:
    """Subtracts the mean; the detour over the first one makes equal rewards exactly zero."""
    shifted = [reward - rewards[0] for reward in rewards]
    mean = fsum(shifted) / len(shifted)
    return [value - mean for value in shifted]


def _std(centered: Sequence[float]) -> float:
    return sqrt(fsum(value * value for value in centered) / len(centered))


def _factor(centered: list[float], center: Center, scale: Scale, batch_std: float, eps: float) -> float:
    count = len(centered)
    if count == 1:
        return 0.0
    if center == "leave_one_out":
        return count / (count - 1)
    if scale == "none":
        return 1.0
    return 1 / ((_std(centered) if scale == "group" else batch_std) + eps)
