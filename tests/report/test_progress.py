import asyncio
import io

import pytest
from rich.console import Console

from llamarl.report.progress import BarProgress, LineProgress, NoProgress, make_progress


def console(is_terminal=False):
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100, legacy_windows=False, _environ={})


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_lines_state_rate_and_time_left_of_what_is_new():
    screen, clock = console(), Clock()
    progress = LineProgress("replies", screen, seconds=10.0, clock=clock)
    with progress:
        progress.start(done=400, total=1000)
        for done in range(401, 461):  # 2 turns a second: the 10th and 20th second write a line, the 30th too
            clock.now += 0.5
            progress.update(done, failed=3 if done > 430 else 0)
    assert screen.file.getvalue().splitlines() == [
        "1,000 replies, 400 of them there already",
        "420/1,000 replies, 2.00/s, 4m 50s left",
        "440/1,000 replies, 3 failed, 2.00/s, 4m 40s left",
        "460/1,000 replies, 3 failed, 2.00/s, 4m 30s left",
    ]


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interrupt_says_how_to_go_on(is_terminal, error):
    screen = console(is_terminal)
    with pytest.raises(error), make_progress(console=screen) as progress:
        progress.start(0, 3)
        progress.update(1, 0)
        raise error
    assert "the same command goes on from here" in screen.file.getvalue()


def test_an_error_before_the_first_piece_shows_no_state():
    screen = console()
    with pytest.raises(ValueError, match="bad row"), LineProgress("steps", screen):
        raise ValueError("bad row")
    assert screen.file.getvalue() == ""


def test_a_terminal_gets_a_bar():
    screen = console(is_terminal=True)
    with make_progress(console=screen) as progress:
        assert isinstance(progress, BarProgress)
        progress.start(2, 6)
        for done in range(3, 7):
            progress.update(done, failed=1)
    assert "6/6" in screen.file.getvalue() and "1 failed" in screen.file.getvalue()


def test_who_gets_what():
    assert isinstance(make_progress(console=console()), LineProgress)
    assert isinstance(make_progress(console=console(True), plain=True), LineProgress)
    quiet = make_progress(console=console(True), quiet=True)
    assert isinstance(quiet, NoProgress) and not isinstance(quiet, LineProgress)
