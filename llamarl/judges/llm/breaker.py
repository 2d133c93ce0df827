"""Stops asking a server that does not answer."""

import math
import time
from collections.abc import Callable


class CircuitBreaker:
    """Opens after `max_failures` failures in a row; while open, lets one try through every `seconds`.

    The first success closes it. A try that failed while others succeeded does not count: failing takes longer than
    succeeding, so of many tries at once the failures come last, and in a row, however well the server is. A try that
    never reports back (its caller was cancelled) holds nothing up.
    """

    def __init__(self, max_failures: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_failures, self._seconds, self._clock = max_failures, seconds, clock
        self._failures = 0
        self._opened, self._next_try, self._last_success = 0.0, 0.0, -math.inf

    @property
    def is_open(self) -> bool:
        """True if the last `max_failures` tries all failed."""
        return self._failures >= self._max_failures

    @property
    def open_seconds(self) -> float:
        """Seconds since it opened; 0 while closed."""
        return self._clock() - self._opened if self.is_open else 0.0

    def allows(self) -> bool:
        """Says whether to try now. While open, True once every `seconds`."""
        if not self.is_open:
            return True
        if self._clock() < self._next_try:
            return False
        self._next_try = self._clock() + self._seconds  # set now: this one try may never report back
        return True

    def note_success(self) -> None:
        """Notes a try that succeeded."""
        self._failures, self._last_success = 0, self._clock()

    def note_failure(self, started: float) -> None:
        """Notes a try that failed, begun at `started`, by the breaker's clock."""
        if started <= self._last_success:
            return
        self._failures += 1
        if self._failures == self._max_failures:  # tries that fail later put nothing off
            self._opened = self._clock()
            self._next_try = self._opened + self._seconds
