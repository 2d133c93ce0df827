"""The live view of a run: a terminal panel, or a plain line where something is new, every few seconds at most.

    with LiveView(title="demo") as view:
        view.update(RunStatus(step=3, total_steps=200, reward=0.4))

`update` only remembers the status. A sleeping thread wakes when there is something new, at most eight times a second,
and draws. Whatever goes wrong with the terminal ends the drawing, never the run.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from llamarl.report.console import SafeConsole
from llamarl.report.panel import plain_line, render_status
from llamarl.report.status import ExecutorStatus, RunStatus, executors_now
from llamarl.report.text import one_line

__all__ = ["ExecutorStatus", "LiveView", "RunStatus", "executors_now"]

MAX_REFRESH_HZ = 8.0
TICK_SECONDS = 1.0
"""The interval at which the clock of an idle view moves on."""


class LiveView:
    """Shows the newest `RunStatus` until closed. A context manager.

    Args:
        title: of the run.
        console: where to draw; standard output by default.
        plain: one line now and then, instead of a panel. Also chosen where the console is no terminal, cannot show
            the characters, or `NO_COLOR` is set.
        refresh_hz: most frames a second, at most 8.
        plain_seconds: least time between two plain lines.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        title: str = "llamarl",
        *,
        console: Console | None = None,
        plain: bool = False,
        refresh_hz: float = 4.0,
        plain_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._console = console or SafeConsole()
        self.is_plain = plain or not _can_draw(self._console)
        """True where lines are printed instead of a panel."""
        self.failure: Exception | None = None
        """The error with which the terminal refused output; nothing more is shown after it."""
        self._frame_seconds = 1.0 / min(max(refresh_hz, 0.1), MAX_REFRESH_HZ)
        self._plain_seconds = plain_seconds
        self._clock = clock
        self._status: RunStatus | None = None
        self._first: tuple[float, int] | None = None
        self._messages: deque[str] = deque(maxlen=3)
        self._last_line_at = -float("inf")
        self._last_news = ""
        self._news = threading.Event()
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        self._opened_at = clock()

    def __enter__(self) -> Self:
        self._opened_at = self._clock()
        if not self.is_plain:
            self._attempt(self._open)
            if self._live is None:  # this terminal takes no panel, lines may still do
                self.is_plain, self.failure = True, None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def update(self, status: RunStatus) -> None:
        """Shows this status from the next frame on. Takes microseconds; never raises for the terminal's sake."""
        now = self._clock()
        if self._first is None:
            self._first = (now, status.step)
        is_new = bool(status.message) and (not self._messages or self._messages[0] != status.message)
        if is_new:
            self._messages.appendleft(status.message)
        self._status = _keep_last_known(status, self._status)
        if not self.is_plain:
            self._news.set()
            return
        if is_new:
            self._attempt(lambda: self._print(f"! {one_line(status.message)}"))
        if now - self._last_line_at >= self._plain_seconds:
            self._attempt(self._print_news)

    def tell(self, text: str) -> None:
        """Shows a message beside the last status."""
        if self._status is not None:
            self.update(replace(self._status, message=text))

    def close(self) -> None:
        """Draws the last state and gives the terminal back. Idempotent."""
        self._is_closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)  # a terminal that takes no output must not hold up the run
            self._thread = None
        live, self._live = self._live, None
        if live is not None:
            self._attempt(lambda: self._draw(live))
            self._attempt(live.stop, even_after_failure=True)
        elif self.is_plain and self._status is not None:
            self._attempt(self._print_news)

    def _open(self) -> None:
        live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        live.start()
        self._live = live
        self._thread = threading.Thread(
            target=self._attempt, args=(self._draw_until_closed,), daemon=True, name="live-view"
        )
        self._thread.start()

    def _draw_until_closed(self) -> None:
        while not self._is_closing.is_set():
            self._news.wait(TICK_SECONDS)  # without news a frame now and then, for the clock and a resized terminal
            self._news.clear()
            self._draw(self._live)
            self._is_closing.wait(self._frame_seconds)  # a pause between frames that `close` cuts short

    def _draw(self, live: Live | None) -> None:
        if live is None or self._status is None:
            return
        width, height = self._console.size
        frame = render_status(
            self._status,
            title=self._title,
            elapsed_seconds=self._clock() - self._opened_at,
            eta_seconds=self._eta_seconds(),
            width=width,
            height=height - 1,
            messages=tuple(self._messages),
        )
        live.update(frame, refresh=True)

    def _print_news(self) -> None:
        """A line, unless it would say what the last one said: that time passes is no news."""
        assert self._status is not None, "a status comes before any line"
        news = plain_line(self._status, eta_seconds=None)
        if news != self._last_news:
            self._last_news, self._last_line_at = news, self._clock()
            self._print(plain_line(self._status, self._eta_seconds()))

    def _print(self, line: str) -> None:
        encoding = self._console.encoding
        line = line.encode(encoding, errors="replace").decode(encoding)
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _eta_seconds(self) -> float | None:
        """Steps left at the mean pace since the first status; None before a step was seen to pass."""
        if self._status is None or self._first is None:
            return None
        started, first_step = self._first
        done = self._status.step - first_step
        left = max(0, self._status.total_steps - self._status.step)
        return (self._clock() - started) / done * left if done > 0 else None

    def _attempt(self, action: Callable[[], None], even_after_failure: bool = False) -> None:
        """The border to the terminal: a failure there is kept in `failure` and silences the view; the run goes on."""
        if self.failure is not None and not even_after_failure:
            return
        try:
            action()
        except Exception as error:
            self.failure = self.failure or error
        except SystemExit as error:  # what rich makes of a pipe whose reader has gone; other exits are not ours
            if not isinstance(error.__context__, BrokenPipeError):
                raise
            self.failure = self.failure or error.__context__


def _keep_last_known(status: RunStatus, before: RunStatus | None) -> RunStatus:
    """Keeps the last value of each number that this step did not measure, so that lines don't come and go."""
    if before is None:
        return status
    names = ("mismatch", "weight_sync_seconds", "tokens_per_second")
    kept = {name: getattr(before, name) for name in names if getattr(status, name) is None}
    return replace(status, **kept) if kept else status


def _can_draw(console: Console) -> bool:
    is_terminal = console.is_terminal and not console.is_dumb_terminal
    return is_terminal and console.encoding.startswith("utf") and not os.environ.get("NO_COLOR")
