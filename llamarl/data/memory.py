"""Rows that stand in no file: a list of dictionaries, or a data set such as `datasets.Dataset`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, overload

from llamarl.data.rows import RowError
from llamarl.data.tables import plain_or_error


class Rows(Sequence[Mapping[str, Any]]):
    """Rows held in memory, as they were when they were given; a data source wherever a file is one.

    Args:
        rows: a list of dictionaries, a `datasets.Dataset`, or whatever else has a length and iterates over mappings.

    Raises:
        ValueError: it is no collection of rows.
    """

    def __init__(self, rows: Any) -> None:
        if isinstance(rows, Mapping | str | bytes) or not (isinstance(rows, Sized) and isinstance(rows, Iterable)):
            raise ValueError(
                "must be the name of a file or data set, or rows: a list of dictionaries, a datasets.Dataset"
            )
        self._rows: tuple[Any, ...] = tuple(rows)

    def plain(self) -> list[dict[str, Any]]:
        """Returns the rows as files hold them, without those that no file could hold (readers refuse these)."""
        return [row for row in map(plain_or_error, self._rows) if not isinstance(row, RowError)]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        return self._rows[index]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"{len(self)} rows in memory"
