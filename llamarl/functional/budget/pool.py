"""Sampled responses of one step, what each group is worth on each prompt, and by how much.

Shape legend: N responses, P prompts, G groups.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds on the responses that are accepted."""

    caps: Mapping[str, float] = field(default_factory=dict)
    """Expensive group -> largest share of the accepted responses that may belong to it, in [0, 1]."""
    free: tuple[str, ...] = ("short",)
    """Groups without a cap. A prompt with a correct response of one of these is always accepted."""
    mean_cost: float | None = None
    """Largest mean cost of the accepted responses, in the unit of `Pool.costs`; None: no such bound."""

    def __post_init__(self) -> None:
        for group, cap in self.caps.items():
            if not 0.0 <= cap <= 1.0:
                raise ConfigError(f"the cap of group {group!r} is {cap!r}; a share lies between 0 and 1")
        if not self.free or (both := set(self.free) & set(self.caps)):
            problem = f"{sorted(both)} are free and capped" if self.free else "no group is free"
            raise ConfigError(f"{problem}; name as free the groups that cost little, and cap the others")
        if self.mean_cost is not None and not (math.isfinite(self.mean_cost) and self.mean_cost > 0):
            raise ConfigError(f"mean_cost = {self.mean_cost!r}; give a positive number")

    @classmethod
    def share(cls, q_plus: float, long: str = "long", short: str = "short") -> Self:
        """Two groups: at most `q_plus` of the accepted responses are long."""
        return cls({long: q_plus}, (short,))

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups, the free ones first."""
        return (*self.free, *self.caps)


@dataclass(frozen=True, slots=True)
class Pool:
    """The responses of one step: four columns of equal length N."""

    prompts: Sequence[Hashable]
    """Prompt that each response answers."""
    groups: Sequence[str | None]
    """Group of each response; None for a malformed one, which is never accepted and counts in no value."""
    correct: Sequence[bool]
    costs: Sequence[float] | None = None
    """Cost of each response, such as its tokens; None counts responses only."""

    def __post_init__(self) -> None:
        for name in ("groups", "correct", "costs"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self):
                raise DataError(f"Pool.{name} has {len(column)} entries, but there are {len(self)} responses")
        for index, cost in enumerate(self.costs or ()):
            if not (math.isfinite(cost) and cost >= 0):
                raise DataError(f"Pool.costs[{index}] = {cost!r}; a cost is a finite number, 0 or more")

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, slots=True, eq=False)
class GroupValues:
    """Means of correctness by prompt and group, and their margins."""

    prompts: tuple[Hashable, ...]
    """`[P]` in order of first appearance."""
    groups: tuple[str, ...]
    """`[G]`"""
    prompt_of: Ints
    """`[N]` row of each response's prompt."""
    group_of: Ints
    """`[N]` column of each response's group, -1 for a malformed one."""
    counts: Ints
    """`[P, G]` responses behind each value."""
    values: Floats
    """`[P, G]` share of correct responses. An unseen group has what was known before, else its mean over the pool; NaN
    where there is neither."""
    margins: Floats
    """`[P, G]` value minus the mean value of the other groups; 0 where there is no other, NaN without a value."""

    @property
    def is_one_sided(self) -> Bools:
        """`[P]` whether the prompt's responses are of fewer than two groups: none has a margin of its own."""
        return np.asarray((self.counts > 0).sum(axis=1) < 2)

    def compares(self, group: str) -> Bools:
        """`[P]` whether the prompt has responses of this group and of another."""
        return np.asarray(~self.is_one_sided & (self.counts[:, self.groups.index(group)] > 0))

    def mean_margin(self, group: str) -> float:
        """Mean margin of a group over the prompts that have responses of it and of another; NaN if none has."""
        margins = self.margins[self.compares(group), self.groups.index(group)]
        return float(margins.mean()) if len(margins) else math.nan


def group_values(
    pool: Pool, groups: Sequence[str], known: Mapping[Hashable, Mapping[str, float]] | None = None
) -> GroupValues:
    """Computes the value of each group on each prompt.

        V_j^g = mean_k{ c_jk : g_jk = g },   m_j^g = V_j^g - mean_{h != g} V_j^h

    With two groups the margins of a prompt are opposite numbers. A group that a prompt has no response of is given the
    value known from before, or else its mean over all responses of the pool; never 0: an easy prompt without a short
    sample would buy budget.

    Args:
        pool: the responses.
        groups: every group that may occur.
        known: values in [0, 1] of prompts of the pool, by group, for groups that a prompt has no response of.

    Raises:
        DataError: a response of a group that is not among `groups`.
    """
    prompts: dict[Hashable, int] = {}
    prompt_of = np.fromiter((prompts.setdefault(p, len(prompts)) for p in pool.prompts), np.int64, len(pool))
    group_of = _columns(pool, groups)
    shape = (len(prompts), len(groups))
    is_valid = group_of >= 0
    cells = prompt_of[is_valid] * len(groups) + group_of[is_valid]
    correct = np.asarray(pool.correct, dtype=np.float64)[is_valid]
    size = shape[0] * shape[1]
    counts: Ints = np.bincount(cells, minlength=size).reshape(shape)
    sums = np.bincount(cells, weights=correct, minlength=size).astype(np.float64).reshape(shape)
    values = _divide(sums, counts)
    fills = np.broadcast_to(_divide(sums.sum(axis=0), counts.sum(axis=0)), shape).copy()
    for prompt, of_prompt in (known or {}).items():
        row = prompts[prompt]
        fills[row] = [of_prompt.get(group, fill) for group, fill in zip(groups, fills[row], strict=True)]
    values = np.where(counts > 0, values, fills)
    return GroupValues(tuple(prompts), tuple(groups), prompt_of, group_of, counts, values, _margins(values))


def _columns(pool: Pool, groups: Sequence[str]) -> Ints:
    """`[N]` the column of each response's group, -1 for None."""
    columns: dict[str | None, int] = {None: -1} | {group: index for index, group in enumerate(groups)}
    for index, group in enumerate(pool.groups):
        if group not in columns:
            raise DataError(
                f"response {index}: group {group!r} is not in the budget.{suggest(str(group), list(groups))}"
            )
    return np.fromiter((columns[group] for group in pool.groups), np.int64, len(pool))


def _divide(sums: Floats, counts: Ints) -> Floats:
    """Quotients, NaN where nothing was counted."""
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), math.nan), dtype=np.float64)


def _margins(values: Floats) -> Floats:
    """`[P, G]` value minus the mean of the others that have one, without the noise of rounding."""
    has_value = ~np.isnan(values)
    known = np.where(has_value, values, 0.0)
    num_others = has_value.sum(axis=1, keepdims=True) - 1
    others = known.sum(axis=1, keepdims=True) - known
    margins = np.where(num_others > 0, known - others / np.maximum(num_others, 1), 0.0)
    return np.asarray(np.where(has_value, np.round(margins, 12), math.nan))
