"""Sharing the cores of one process between executors that compute at the same time."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from llamarl.core.errors import ConfigError


class Cores:
    """Work-conserving shares: who computes alone gets all cores; those who compute together split them by weight.

    Example:
        >>> granted = []
        >>> cores = Cores(8, granted.append, {"trainer": 3.0})
        >>> with cores.using("generator") as adjust:  # alone: all eight
        ...     with cores.using("trainer"):          # 3/4 of them
        ...         _ = adjust()                      # 1/4: call it before each unit of work
        ...     _ = adjust()                          # alone again
        >>> granted
        [8, 6, 2, 8]

    Args:
        total: cores to share.
        set_threads: sets the calling thread's number of compute threads. For torch, whose setting is per thread but is
            overwritten by a thread's first query, pass `lambda n: (torch.get_num_threads(), torch.set_num_threads(n))`.
        weights: by name; 1 where absent.
        is_split: False gives everybody all cores all the time: sums are then taken in the same order whatever the
            clock says, which work that hardly overlaps can afford.
    """

    def __init__(
        self,
        total: int,
        set_threads: Callable[[int], object],
        weights: Mapping[str, float] | None = None,
        is_split: bool = True,
    ) -> None:
        if total < 1:
            raise ConfigError(f"cores: must be at least 1, got {total}")
        for name, weight in (weights or {}).items():
            if not weight > 0:
                raise ConfigError(f"cores: the weight of {name!r} must be above 0, got {weight}")
        self.total = total
        self._set_threads = set_threads
        self._weights, self._is_split = dict(weights or {}), is_split
        self._active: Counter[str] = Counter()
        # Executors compute on threads of their own, and each reads what the others change.
        self._lock = threading.Lock()

    def share(self, name: str) -> int:
        """Cores for `name` while it computes beside those who compute now; at least 1."""
        if not self._is_split:
            return self.total
        with self._lock:
            active = {other for other, times in self._active.items() if times > 0} | {name}
        mine = self._weights.get(name, 1.0) / sum(self._weights.get(other, 1.0) for other in active)
        return max(1, round(self.total * mine))

    @contextmanager
    def using(self, name: str) -> Iterator[Callable[[], int]]:
        """Marks `name` as computing and sets the calling thread's share.

        Yields:
            A function that sets the share anew, for who else computes by then, and returns it. It costs microseconds.
        """

        def adjust() -> int:
            share = self.share(name)
            self._set_threads(share)
            return share

        self._mark(name, 1)
        try:
            adjust()
            yield adjust
        finally:
            self._mark(name, -1)

    def _mark(self, name: str, change: int) -> None:
        with self._lock:
            self._active[name] += change
