"""Progress of a job: a bar on a terminal, a line now and then elsewhere, or nothing."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich import progress as rich_progress
from rich.console import Console

from llamarl.report.console import SafeConsole
from llamarl.report.text import format_number, format_seconds


class Progress(Protocol):
    """A job's view of itself: a context manager around the work, which tells it of every finished piece."""

    def start(self, done: int, total: int) -> None:
        """Begins with `done` of `total` pieces, which were there before."""

    def update(self, done: int, failed: int = 0, note: str = "") -> None:
        """Shows how many pieces are finished by now, the `failed` ones among them, and what else there is to say."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class NoProgress:
    """A view that shows nothing."""

    def start(self, done: int, total: int) -> None:
        """Does nothing."""

    def update(self, done: int, failed: int = 0, note: str = "") -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class LineProgress(NoProgress):
    """A line every few seconds, with the rate since the start and the time left at that rate.

    Args:
        what: the pieces of work, in the plural.
        console: where to write; standard error by default.
        seconds: least time between two lines.
        clock: monotonic seconds.
        can_go_on: whether the same command goes on where it was stopped.
    """

    def __init__(
        self,
        what: str = "replies",
        console: Console | None = None,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        can_go_on: bool = True,
    ) -> None:
        self._what, self._note, self._can_go_on = what, "", can_go_on
        self._console, self._seconds, self._clock = console or SafeConsole(stderr=True), seconds, clock
        self._done = self._first = self._total = self._failed = 0
        self._started = self._last = clock()
        self._last_line, self._is_begun = "", False

    def start(self, done: int, total: int) -> None:
        """Says what is left to do."""
        self._is_begun = True
        self._done = self._first = done
        self._total, self._started = total, self._clock()
        self._last = self._started
        before = f", {done:,} of them there already" if done else ""
        self._print(f"{total:,} {self._what}{before}")

    def update(self, done: int, failed: int = 0, note: str = "") -> None:
        """Writes a line if the last one is old."""
        self._done, self._failed, self._note = done, failed, note
        if self._clock() - self._last >= self._seconds:
            self._last = self._clock()
            self._print_state()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_begun:  # an error in the input comes before there is any state
            self._print_state()
        if self._can_go_on and kind in (KeyboardInterrupt, asyncio.CancelledError):
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
        note = f", {self._note}" if self._note else ""
        return f"{self._done:,}/{self._total:,} {self._what}{failed}{note}, {format_number(rate)}/s{left}"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarProgress(NoProgress):
    """A bar with rate and time left; clears nothing when it ends.

    Args:
        what: the pieces of work, in the plural.
        console: where to draw; standard error by default.
        can_go_on: whether the same command goes on where it was stopped.
    """

    def __init__(self, what: str = "replies", console: Console | None = None, *, can_go_on: bool = True) -> None:
        self._can_go_on = can_go_on
        self._progress = rich_progress.Progress(
            rich_progress.TextColumn(what),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[rate]}"),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[note]}"),
            rich_progress.TextColumn("[red]{task.fields[failed]}"),
            console=console or SafeConsole(stderr=True),
        )
        self._bar: rich_progress.TaskID | None = None

    def start(self, done: int, total: int) -> None:
        """Draws the bar."""
        self._bar = self._progress.add_task("", completed=done, total=total, rate="", failed="", note="")

    def update(self, done: int, failed: int = 0, note: str = "") -> None:
        """Moves the bar."""
        if self._bar is None:
            return
        speed = self._progress.tasks[0].speed
        self._progress.update(
            self._bar,
            completed=done,
            rate="" if speed is None else f"{format_number(speed)}/s",
            failed=f"{failed:,} failed" if failed else "",
            note=note,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._can_go_on and kind in (KeyboardInterrupt, asyncio.CancelledError):
            self._progress.console.print("stopped; the same command goes on from here", highlight=False)


def make_progress(
    what: str = "replies",
    *,
    quiet: bool = False,
    plain: bool = False,
    console: Console | None = None,
    can_go_on: bool = True,
) -> Progress:
    """The view that fits: nothing if `quiet`; a bar if the console is a terminal; else lines.

    Args:
        what: the pieces of work, in the plural.
        quiet: whether nothing is shown.
        plain: whether a terminal gets lines too.
        console: where to write; standard error by default.
        can_go_on: whether the same command goes on where it was stopped, which a user who stops it is told.
    """
    if quiet:
        return NoProgress()
    console = console or SafeConsole(stderr=True)
    is_bar = console.is_terminal and not console.is_dumb_terminal and not plain
    if is_bar:
        return BarProgress(what, console, can_go_on=can_go_on)
    return LineProgress(what, console, can_go_on=can_go_on)
