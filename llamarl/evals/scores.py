"""Accuracies, forgetting and recovery with their intervals, from verdicts.

    counts = count(verdicts, keys, num_turns=3)                # one row a conversation
    point = rates(counts.sum(axis=0), num_turns=3)
    point["turns", "1", "strict", "conversation"]              # share of conversations with all instructions followed
    drawn = rates(resample_sums(counts), num_turns=3)          # the same in 10,000 resamples: percentiles bound it

Every rate is a quotient of two sums over conversations, so a resample needs nothing but weighted sums of the rows.

    conversation   conversations with all instructions followed / conversations with a verdict
    instruction    instructions followed / instructions with a verdict, over all conversations: not a mean of row rates
    overall        mean of those two, strictly and loosely
    ifr_percent    instruction forgetting rate from turn t to t+1: 100 * followed, then not / followed
    ecr_percent    error correction rate: 100 * not followed, then followed / not followed

Forgetting and recovery match instructions by position, so what turn t+1 adds is in no denominator. Reference: He et
al., "Multi-IF: Benchmarking LLMs on Multi-Turn and Multilingual Instructions Following", arXiv:2410.15553, section 4.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamarl.evals.verdicts import Place, TurnVerdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("strict", "loose")
LEVELS = ("conversation", "instruction")

RatePath = tuple[str, ...]
"""The place of a rate in a group of `results.json`, such as `("turns", "1", "strict", "conversation")`."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A rate as a quotient of two columns."""

    path: RatePath
    hits: str
    of: str
    scale: float = 1.0


def ratios(num_turns: int) -> list[Ratio]:
    """Every rate that is one quotient."""
    found = []
    for turn in range(1, num_turns + 1):
        for kind in KINDS:
            for level in LEVELS:
                where = ("turns", str(turn), kind, level)
                found.append(Ratio(where, f"{turn} {kind} {level}", f"{turn} {level}"))
    for kind in KINDS:
        found.append(Ratio(("all_turns_passed", kind), f"all {kind}", "all"))
    for turn in range(1, num_turns):
        for kind in KINDS:
            pair, path = f"{turn}-{turn + 1} {kind}", ("transitions", f"{turn}-{turn + 1}", kind)
            found.append(Ratio((*path, "ifr_percent"), f"{pair} forgotten", f"{pair} followed", 100.0))
            found.append(Ratio((*path, "ecr_percent"), f"{pair} recovered", f"{pair} failed", 100.0))
    return found


def columns(num_turns: int) -> list[str]:
    """Names of the columns of `count`: whatever a rate is made of."""
    return list(dict.fromkeys(name for ratio in ratios(num_turns) for name in (ratio.hits, ratio.of)))


def count(verdicts: Iterable[TurnVerdict], lengths: Mapping[str, int], num_turns: int) -> "NDArray[Any]":
    """Counts what each conversation adds to each column, in one mode.

    A turn without a verdict, or with no gradable instruction, adds nothing; so does a pair that lacks one of its turns.

    Args:
        verdicts: of one mode.
        lengths: key -> number of turns, in the order of the rows.
        num_turns: the most turns that a conversation has.

    Returns:
        [conversations, columns]: whole numbers, as float64.
    """
    import numpy as np

    names = {name: index for index, name in enumerate(columns(num_turns))}
    rows = {key: index for index, key in enumerate(lengths)}
    counts = np.zeros((len(rows), len(names)))
    by_place = {(v.key, v.turn): v for v in verdicts if v.key in rows and any(s is not None for s in v.strict)}
    for (key, turn), verdict in by_place.items():
        added = _of_turn(verdict)
        if earlier := by_place.get((key, turn - 1)):
            added |= _of_pair(earlier, verdict)
        if turn == lengths[key]:
            added |= _of_all(key, turn, by_place)
        for name, value in added.items():
            counts[rows[key], names[name]] += value
    return counts


def _of_turn(verdict: TurnVerdict) -> dict[str, int]:
    turn = verdict.turn
    added = {f"{turn} conversation": 1, f"{turn} instruction": sum(v is not None for v in verdict.strict)}
    for kind in KINDS:
        values = _values(verdict, kind)
        added[f"{turn} {kind} conversation"] = _passes(values)
        added[f"{turn} {kind} instruction"] = values.count(True)
    return added


def _of_pair(earlier: TurnVerdict, later: TurnVerdict) -> dict[str, int]:
    added = {}
    for kind in KINDS:
        pair = f"{earlier.turn}-{later.turn} {kind}"
        changes = list(
            zip(_values(earlier, kind), _values(later, kind), strict=False)
        )  # by position; new ones left out
        added[f"{pair} forgotten"] = changes.count((True, False))
        added[f"{pair} followed"] = changes.count((True, False)) + changes.count((True, True))
        added[f"{pair} recovered"] = changes.count((False, True))
        added[f"{pair} failed"] = changes.count((False, True)) + changes.count((False, False))
    return added


def _of_all(key: str, num_turns: int, by_place: Mapping[Place, TurnVerdict]) -> dict[str, int]:
    """Counts whether all turns of a conversation pass; nothing where one of them has no verdict."""
    verdicts = [by_place.get((key, turn)) for turn in range(1, num_turns + 1)]
    present = [verdict for verdict in verdicts if verdict is not None]
    if len(present) < num_turns:
        return {}
    return {"all": 1} | {f"all {kind}": all(_passes(_values(each, kind)) for each in present) for kind in KINDS}


def _values(verdict: TurnVerdict, kind: str) -> tuple[bool | None, ...]:
    return verdict.strict if kind == "strict" else verdict.loose


def _passes(values: Sequence[bool | None]) -> bool:
    return all(value is not False for value in values)


def rates(sums: "NDArray[Any]", num_turns: int) -> dict[RatePath, "NDArray[Any]"]:
    """Every rate, from summed columns.

    Args:
        sums: [..., columns], over conversations.
        num_turns: as in `count`.

    Returns:
        Path -> [...]; NaN where the denominator is 0.
    """
    import numpy as np

    names = {name: index for index, name in enumerate(columns(num_turns))}
    found: dict[RatePath, Any] = {}
    for ratio in ratios(num_turns):
        of = sums[..., names[ratio.of]]
        quotient = np.divide(sums[..., names[ratio.hits]], of, out=np.full(of.shape, np.nan), where=of > 0)
        found[ratio.path] = ratio.scale * quotient
    turns = [str(turn) for turn in range(1, num_turns + 1)]
    for turn in turns:
        four = [found["turns", turn, kind, level] for kind in KINDS for level in LEVELS]
        found["turns", turn, "overall"] = sum(four) / 4
    found["mean_over_turns",] = sum(found["turns", turn, "overall"] for turn in turns) / num_turns
    return found


def denominators(sums: "NDArray[Any]", num_turns: int) -> dict[RatePath, int]:
    """The divisor of each rate."""
    names = {name: index for index, name in enumerate(columns(num_turns))}
    return {ratio.path: int(sums[names[ratio.of]]) for ratio in ratios(num_turns)}


def macro(groups: Sequence[Mapping[RatePath, Any]]) -> dict[RatePath, Any]:
    """The unweighted mean of each rate over groups (languages), leaving out those where it has no value."""
    import numpy as np

    found = {}
    for path in groups[0]:
        values = np.stack([group[path] for group in groups])
        present = ~np.isnan(values)
        number = present.sum(axis=0)
        total = np.where(present, values, 0.0).sum(axis=0)
        found[path] = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return found


def or_none(value: Any) -> float | None:
    """A plain number, or None for NaN."""
    return None if math.isnan(value) else float(value)


def nest(leaves: Mapping[RatePath, Any]) -> dict[str, Any]:
    """Turns values by path into nested mappings."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree
