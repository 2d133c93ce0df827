"""Claims to train, choose and judge by: split by subject, the two classes balanced inside each split.

The claims of one answer share facts, and so do two prompts about one subject, so they stay together. Which claims of
the larger class are used is drawn by a hash of their ids: equal seeds give equal splits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llamarl.core.seeds import derive_seed

SPLITS = ("train", "validation", "test")


def assign_splits(units: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """A split for each unit, the shares met as nearly as whole units allow.

    Args:
        units: unique.
        shares: of train, validation and test; at least 0, one above.
        seed: of the draw.
    """
    order = sorted(units, key=lambda unit: (derive_seed("split", seed, unit), unit))
    total, reached, start = sum(shares), 0.0, 0
    splits: dict[str, str] = {}
    for split, share in zip(SPLITS, shares, strict=True):
        reached += share
        end = round(len(order) * reached / total)
        splits |= dict.fromkeys(order[start:end], split)
        start = end
    return splits


def balance(rows: Sequence[Mapping[str, Any]], seed: int) -> set[str]:
    """The ids of the rows that stay when each split has as many true labels as false ones.

    Args:
        rows: of {id, label, split}.
        seed: of the draw.
    """
    groups: dict[tuple[str, bool], list[str]] = {(split, label): [] for split in SPLITS for label in (True, False)}
    for row in rows:
        groups[row["split"], row["label"]].append(row["id"])
    kept: set[str] = set()
    for split in SPLITS:
        fewest = min(len(groups[split, label]) for label in (True, False))
        for label in (True, False):
            order = sorted(groups[split, label], key=lambda name: (derive_seed("balance", seed, name), name))
            kept |= set(order[:fewest])
    return kept
