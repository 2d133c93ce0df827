"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere, or nothing."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from llamarl.report.console import SafeConsole
from llamarl.report.text import format_number, format_seconds


class EvalProgress(Protocol):
    """Told of every finished turn. A context manager around the work."""

    def start(self, done: int, total: int) -> None:
        """`done` of `total` turns were there before."""

    def update(self, done: int, failed: int) -> None:
        """So many turns are finished by now, the `failed` ones among them."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class NoProgress:
    """Shows nothing."""

    def start(self, done: int, total: int) -> None:
        """Ignored."""

    def update(self, done: int, failed: int) -> None:
        """Ignored."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class LineProgress(NoProgress):
    """A line every few seconds, with the rate since the start and the time left at that rate.

    Args:
        console: where to write; standard error by default.
        seconds: least time between two lines.
        clock: monotonic seconds.
    """

    def __init__(
        self, console: Console | None = None, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._seconds, self._clock = console or SafeConsole(stderr=True), seconds, clock
        self._done = self._first = self._total = self._failed = 0
        self._started = self._last = clock()
        self._last_line = ""

    def start(self, done: int, total: int) -> None:
        """Says what is left to do."""
        self._done = self._first = done
        self._total, self._started = total, self._clock()
        self._last = self._started
        before = f", {done:,} of them there already" if done else ""
        self._print(f"{total:,} replies{before}")

    def update(self, done: int, failed: int) -> None:
        """Writes a line if the last one is old."""
        self._done, self._failed = done, failed
        if self._clock() - self._last >= self._seconds:
            self._last = self._clock()
            self._print_state()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._print_state()
        if kind in (KeyboardInterrupt, asyncio.CancelledError):
            self._print("stopped; the same command goes on from here")

    def _print_state(self) -> None:
        line = self._line()
        if line != self._last_line:
            self._last_line = line
            self._print(line)

    def _line(self) -> str:
        seconds, new = self._clock() - self._started, self._done - self._first
        rate = new / seconds if seconds > 0 else 0.0
        left = (
            f", {format_seconds((self._total - self._done) / rate)} left" if rate and self._done < self._total else ""
        )
        failed = f", {self._failed:,} failed" if self._failed else ""
        return f"{self._done:,}/{self._total:,} replies{failed}, {format_number(rate)}/s{left}"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarProgress(NoProgress):
    """A bar with rate and time left; clears nothing when it ends."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("replies"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("[red]{task.fields[failed]}"),
            console=console or SafeConsole(stderr=True),
        )
        self._bar: TaskID | None = None

    def start(self, done: int, total: int) -> None:
        """Draws the bar."""
        self._bar = self._progress.add_task("", completed=done, total=total, rate="", failed="")

    def update(self, done: int, failed: int) -> None:
        """Moves the bar."""
        if self._bar is None:
            return
        speed = self._progress.tasks[0].speed
        self._progress.update(
            self._bar,
            completed=done,
            rate="" if speed is None else f"{format_number(speed)}/s",
            failed=f"{failed:,} failed" if failed else "",
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        if kind in (KeyboardInterrupt, asyncio.CancelledError):
            self._progress.console.print("stopped; the same command goes on from here", highlight=False)


def make_progress(*, quiet: bool = False, plain: bool = False, console: Console | None = None) -> EvalProgress:
    """Nothing if `quiet`; a bar if `console` (standard error by default) is a terminal; else lines."""
    if quiet:
        return NoProgress()
    console = console or SafeConsole(stderr=True)
    is_bar = console.is_terminal and not console.is_dumb_terminal and not plain
    return BarProgress(console) if is_bar else LineProgress(console)
