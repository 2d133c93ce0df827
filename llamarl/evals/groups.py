"""Rates of groups of conversations: all of them pooled, each language, and the mean of languages.

    found = group_rates({"official": counts, "fixed": other_counts}, languages, num_turns=3)
    found["fr"]["official"].point["turns", "1", "overall"]

Everything that is compared, modes of one evaluation or two evaluations in one mode, is resampled together: a resample
draws the same conversations for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamarl.evals import scores
from llamarl.evals.scores import RatePath
from llamarl.functional.statistics import NUM_RESAMPLES, percentile_interval, resample_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

POOLED, MACRO = "pooled", "macro"


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The settings of the resampling that draws intervals."""

    seed: int = 0
    num_resamples: int = NUM_RESAMPLES

    def sums(self, counts: "Sequence[NDArray[Any]]", group: str) -> "list[NDArray[Any]]":
        """Resampled column sums of tables over the same conversations; each group has draws of its own."""
        import numpy as np

        drawn = resample_sums(np.hstack(list(counts)), [self.seed, *group.encode()], self.num_resamples)
        return np.split(drawn, len(counts), axis=1)


@dataclass(frozen=True, slots=True)
class GroupRates:
    """The rates of one group."""

    point: Mapping[RatePath, Any]
    drawn: Mapping[RatePath, Any]
    """The rates of each resample, as arrays."""
    of: Mapping[RatePath, int]
    """Denominators."""
    num_conversations: int

    def interval(self, path: RatePath, baseline: "GroupRates | None" = None) -> tuple[float | None, float | None]:
        """Ends of a rate's interval, or of its difference to a baseline; a single conversation has none."""
        drawn = self.drawn[path] - (baseline.drawn[path] if baseline else 0.0)
        return (percentile_interval(drawn) if self.num_conversations > 1 else None) or (None, None)


def group_rates(
    counts: "Mapping[str, NDArray[Any]]",
    languages: Sequence[str],
    num_turns: int,
    bootstrap: Bootstrap | None = None,
) -> dict[str, dict[str, GroupRates]]:
    """Group -> name -> rates; the groups are `pooled`, `macro` and the languages.

    Args:
        counts: name -> `scores.count`, all over the same conversations.
        languages: of each conversation.
        num_turns: as in `scores.count`.
        bootstrap: of the intervals.
    """
    bootstrap = bootstrap or Bootstrap()
    rows: dict[str, list[int]] = {POOLED: list(range(len(languages)))}
    for row, language in enumerate(languages):
        rows.setdefault(language, []).append(row)
    found: dict[str, dict[str, GroupRates]] = {}
    for group, chosen in rows.items():
        tables = {name: table[chosen] for name, table in counts.items()}
        drawn = bootstrap.sums(list(tables.values()), group)
        found[group] = {
            name: _rates(table, sums, num_turns) for (name, table), sums in zip(tables.items(), drawn, strict=True)
        }
    by_language = [found[group] for group in found if group != POOLED]
    found[MACRO] = {name: _mean([each[name] for each in by_language]) for name in counts}
    return found


def grouped_tree(trees: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`{"pooled", "macro", "languages": {code: ...}}`, of a value for each group."""
    languages = {name: tree for name, tree in trees.items() if name not in (POOLED, MACRO)}
    return {POOLED: trees[POOLED], MACRO: trees[MACRO], "languages": languages}


def _rates(table: "NDArray[Any]", drawn: "NDArray[Any]", num_turns: int) -> GroupRates:
    sums = table.sum(axis=0)
    return GroupRates(
        scores.rates(sums, num_turns),
        scores.rates(drawn, num_turns),
        scores.denominators(sums, num_turns),
        len(table),
    )


def _mean(groups: Sequence[GroupRates]) -> GroupRates:
    return GroupRates(
        scores.macro([group.point for group in groups]),
        scores.macro([group.drawn for group in groups]),
        {},
        sum(group.num_conversations for group in groups),
    )
