"""Cache rows behind the active ones, kept so that prompts that go on where one of them ends aren't read again.

    rows     0 .. n-1    active
             n .. S-1    kept: what finished completions left; free for whoever starts, the oldest first

A kept row holds its blocks of the cache until another needs its place. Only equal tokens count, so a chat template that
rewrites the history just finds less.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

MIN_KNOWN = 16
"""Fewer known tokens aren't worth a pass of their own."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Moves of cache rows that must be made before new ones start."""

    num_known: list[int]
    """Number of each prompt's first tokens that its rows hold after the moves."""
    sources: list[int]
    targets: list[int]


class KeptRows:
    """The tokens of kept rows.

    Args:
        slots: all rows.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._tokens: dict[int, tuple[int, ...]] = {}  # by row, the oldest first

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def rows(self) -> Collection[int]:
        """The kept rows."""
        return self._tokens.keys()

    def keep(self, row: int, tokens: tuple[int, ...]) -> None:
        """Notes that a row which is no longer active holds `tokens`."""
        self._tokens[row] = tokens

    def clear(self) -> None:
        """Forgets all of them, as new weights demand."""
        self._tokens.clear()

    def make_room(
        self, rows_of: Mapping[tuple[int, ...], Sequence[int]], active: Mapping[tuple[int, ...], int]
    ) -> Arrangement:
        """Finds what is known of new prompts, and saves what is worth it from the rows that they take.

        Args:
            rows_of: the rows that each new prompt takes: all those behind the active ones, without a gap.
            active: prompts of active rows and one row that holds each.

        Returns:
            What to copy, all at once; from then on the kept rows are where it puts them.
        """
        end = 1 + max(map(max, rows_of.values()))
        num_known: list[int] = []
        sources: list[int] = []
        targets: list[int] = []
        continued = set()
        for prompt, rows in rows_of.items():
            row, known = _best(prompt, [*active.items(), *((tokens, row) for row, tokens in self._tokens.items())])
            num_known.append(known)
            if not known:
                continue
            moved = [target for target in rows if target != row]
            sources += [row] * len(moved)
            targets += moved
            if known == len(self._tokens.get(row, ())):
                continued.add(row)
        stay = (
            [row for row in self._tokens if row not in continued][-(self._slots - end) :] if end < self._slots else []
        )
        homes = sorted(set(range(end, self._slots)).difference(stay), reverse=True)
        kept: dict[int, tuple[int, ...]] = {}
        for row in stay:
            home = row
            if row < end:
                home = homes.pop()
                sources.append(row)
                targets.append(home)
            kept[home] = self._tokens[row]
        self._tokens = kept
        return Arrangement(num_known, sources, targets)


def _best(prompt: Sequence[int], held: Iterable[tuple[tuple[int, ...], int]]) -> tuple[int, int]:
    """The row that knows most first tokens of `prompt`, but not all, and how many; (-1, 0) if none knows enough."""
    best, known = -1, 0
    for tokens, row in held:
        num_needed = max(known + 1, MIN_KNOWN)
        if tokens[:num_needed] == prompt[:num_needed]:
            length = min(_common(tokens, prompt), len(prompt) - 1)
            if length >= num_needed:
                best, known = row, length
    return best, known


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of equal first tokens, by bisection: comparing slices is quick."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
