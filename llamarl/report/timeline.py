"""Spans of what each executor did and when: on disk, and as busy fractions.

    {"executor": "generator-0", "activity": "decode", "start": 12.5, "end": 13.1}

An activity whose name starts with `wait` is idle time; every other activity is work.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from llamarl.report.files import JsonlFile, read_jsonl

Window = tuple[float, float]
"""Start and end in seconds."""


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of one executor's time."""

    executor: str
    activity: str
    start: float
    """Seconds on the timeline's clock."""
    end: float

    @property
    def is_busy(self) -> bool:
        """True where this was work, not waiting."""
        return is_busy(self.activity)


def is_busy(activity: str) -> bool:
    """True for an activity that is work: everything but `wait...` and `idle`."""
    return not activity.startswith(("wait", "idle"))


class Timeline:
    """Records spans. Safe to call from several threads.

    Args:
        path: `timeline.jsonl` of the run directory; None keeps spans in memory only.
        clock: seconds. The default is the time of day, so that processes and resumed runs share one axis.
        keep: how many of the latest spans stay in memory.
    """

    def __init__(
        self, path: str | Path | None = None, clock: Callable[[], float] = time.time, keep: int = 4096
    ) -> None:
        self._file = None if path is None else JsonlFile(path)
        self._clock = clock
        self._recent: deque[Span] = deque(maxlen=keep)
        self._open: dict[int, tuple[str, str, float]] = {}
        self._executors: dict[str, None] = {}
        self._next_token = 0
        self._lock = threading.Lock()  # spans open and end on the threads of several executors

    @contextmanager
    def span(self, executor: str, activity: str) -> Iterator[None]:
        """Records the time of the `with` block, also when it raises."""
        start = self._clock()
        with self._lock:
            token = self._next_token = self._next_token + 1
            self._open[token] = (executor, activity, start)
            self._executors[executor] = None
        try:
            yield
        finally:
            with self._lock:
                is_open = self._open.pop(token, None) is not None
            if is_open:  # `close` has recorded it otherwise
                self.record(executor, activity, start, self._clock())

    def record(self, executor: str, activity: str, start: float, end: float) -> None:
        """Records a span whose times are known. A span that ends before its start (a stepped clock) gets length 0."""
        span = Span(executor, activity, start, max(start, end))
        with self._lock:
            self._recent.append(span)
            self._executors[executor] = None
        file = self._file
        if file is not None:
            file.append(asdict(span))

    def spans(self) -> list[Span]:
        """The latest spans in order of their end, then those still open, which end now."""
        now = self._clock()
        with self._lock:
            return [*self._recent, *(Span(*item, max(item[2], now)) for item in self._open.values())]

    def activities(self) -> dict[str, str]:
        """The activity of each executor right now: its newest open span; absent where none is open."""
        with self._lock:
            return {executor: activity for executor, activity, _ in self._open.values()}

    def utilisation(self, seconds: float) -> dict[str, float]:
        """Busy fraction over the last `seconds` of each executor that ever had a span."""
        now = self._clock()
        recent = itertools.takewhile(lambda span: span.end > now - seconds, reversed(self.spans()))
        with self._lock:
            fractions = dict.fromkeys(self._executors, 0.0)
        return fractions | utilisation(recent, (now - seconds, now))

    def close(self) -> None:
        """Ends the open spans now and closes the file; later spans stay in memory only. Idempotent."""
        with self._lock:
            unfinished = list(self._open.values())
            self._open.clear()
        for executor, activity, start in unfinished:
            self.record(executor, activity, start, self._clock())
        file, self._file = self._file, None
        if file is not None:
            file.close()


def utilisation(spans: Iterable[Span], window: Window | None = None) -> dict[str, float]:
    """Share of the window in which each executor worked. Overlapping spans of one executor count once.

    Args:
        spans: in any order.
        window: start and end; None is from the first start to the last end.

    Returns:
        Executor -> fraction in [0, 1], for every executor that has a span, in order of first appearance.
    """
    spans = list(spans)
    if window is None:
        window = extent(spans)
    length = window[1] - window[0]
    busy: dict[str, list[Window]] = {span.executor: [] for span in spans}
    for span in spans:
        if span.is_busy:
            busy[span.executor].append((max(span.start, window[0]), min(span.end, window[1])))
    return {name: covered_seconds(pieces) / length if length > 0 else 0.0 for name, pieces in busy.items()}


def extent(spans: Iterable[Span]) -> Window:
    """First start and last end; (0, 0) without spans."""
    spans = list(spans)
    return (min((span.start for span in spans), default=0.0), max((span.end for span in spans), default=0.0))


def read_timeline(path: str | Path) -> list[Span]:
    """The spans of a `timeline.jsonl`. Raises `DataError` naming file and line."""
    fields: dict[str, type] = {"executor": str, "activity": str, "start": float, "end": float}
    return [Span(**{name: record[name] for name in fields}) for record in read_jsonl(path, required=fields)]


def covered_seconds(pieces: Iterable[Window]) -> float:
    """Seconds that at least one of the pieces covers."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(pieces):
        start = max(start, reached)
        if end > start:
            total += end - start
            reached = end
    return total
