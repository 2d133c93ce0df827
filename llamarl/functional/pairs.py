"""Losses on pairs of completions of one prompt, the better one marked by a positive advantage, the other by a negative.

Shape legend: N samples, P pairs. Nothing here imports torch: only methods of the tensors that come in are used.
"""

from typing import TYPE_CHECKING, NamedTuple

from llamarl.functional.preference import log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


class PairRows(NamedTuple):
    """Rows of a batch that form pairs."""

    chosen: "Tensor"
    """`[P]` int64 rows, in the order of their groups."""
    rejected: "Tensor"
    """`[P]` int64: of the same group as `chosen`."""


def pair_rows(advantages: "Tensor", groups: "Tensor") -> PairRows:
    """The pair of each group.

    Args:
        advantages: `[N]`, positive for the chosen row of a group and negative for the rejected one.
        groups: `[N]` int64.

    Raises:
        ValueError: a group without exactly one row of each sign; names it.
    """
    chosen, rejected = _by_group(advantages > 0, groups), _by_group(advantages < 0, groups)
    is_paired = len(chosen) == len(rejected) and bool((groups[chosen] == groups[rejected]).all())
    if not is_paired or bool((groups[chosen].diff() == 0).any()) or 2 * len(chosen) != len(groups):
        rows = sorted(zip(groups.tolist(), advantages.tolist(), strict=True))
        raise ValueError(f"pair_rows: every group needs one row of positive and one of negative advantage, got {rows}")
    return PairRows(chosen, rejected)


def dpo_terms(log_ratios: "Tensor", pairs: PairRows, beta: float) -> "Tensor":
    """Log-likelihood of each preference: `log sigmoid(beta * (log_ratio[chosen] - log_ratio[rejected]))`, to maximise.

    "Direct Preference Optimization", Rafailov et al. 2023, arXiv 2305.18290, equation 7. At the reference: `-log 2`.

    Args:
        log_ratios: `[N]` log policy - log reference of whole completions.
        pairs: from `pair_rows`.
        beta: strength of the pull towards the reference.

    Returns:
        `[P]`.
    """
    return log_sigmoid(beta * (log_ratios[pairs.chosen] - log_ratios[pairs.rejected]))


def _by_group(wanted: "Tensor", groups: "Tensor") -> "Tensor":
    rows = wanted.nonzero().squeeze(-1)
    return rows[groups[rows].argsort()]
