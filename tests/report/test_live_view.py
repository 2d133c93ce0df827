import builtins
import io
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from llamarl.report.console import SafeConsole
from llamarl.report.live import ExecutorStatus, LiveView, RunStatus
from llamarl.report.panel import busy_bar, plain_line, render_status

STATUS = RunStatus(
    step=57,
    total_steps=200,
    version=57,
    reward=0.774,
    reward_history=[0.2 + 0.01 * step for step in range(57)],
    staleness_max=2,
    staleness_mean=0.84,
    tokens_per_second=10438.2,
    mismatch=1.23e-6,
    weight_sync_seconds=0.0031,
    executors={
        "generator-0": ExecutorStatus("generating 96 rows", 0.81),
        "trainer": ExecutorStatus("waiting for weights", 0.4),
    },
    counters={"issued": 912, "trained": 880, "dropped": 3, "failed": 0},
)


class HeldClock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class BrokenTerminal(io.StringIO):
    """Breaks after some writes, as a terminal that hung up does."""

    encoding = "utf-8"

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.writes_left = writes

    def write(self, text: str) -> int:
        self.writes_left -= 1
        if self.writes_left < 0:
            raise OSError("input/output error")
        return len(text)


def shown(status: RunStatus, width: int, height: int, messages: tuple[str, ...] = ()) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), record=True, force_terminal=True)
    console.print(
        render_status(
            status,
            title="demo",
            elapsed_seconds=83,
            eta_seconds=200,
            width=width,
            height=height,
            messages=messages,
        )
    )
    return console.export_text().rstrip("\n").split("\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Console]:
    monkeypatch.delenv("NO_COLOR", raising=False)

    def build(file: io.StringIO | None = None) -> Console:
        return Console(
            file=file or io.StringIO(), force_terminal=True, width=100, height=30, _environ={"TERM": "xterm"}
        )

    return build


@pytest.mark.parametrize("width", [60, 95, 96, 100, 200])
def test_everything_a_person_watches_is_on_the_panel(width: int) -> None:
    text = "\n".join(shown(STATUS, width, 40, ("weights were late",)))
    for part in (
        "step 57/200", "1m 23s", "ETA 3m 20s", "reward 0.774", "first 0.200", "generator-0", "81%",
        "generating 96 rows", "waiting for weights", "40%", "max 2, mean 0.84", "10,438", "1.2e-6", "3.10 ms",
        "3 dropped", "0 failed", "! weights were late", "step 1", "0.76 ┤", "0.20 ┤",
    ):  # fmt: skip
        assert part.replace(" ", "") in text.replace("\N{NO-BREAK SPACE}", "").replace(" ", ""), part


@pytest.mark.parametrize("width", [40, 60, 80, 96, 120])
@pytest.mark.parametrize("height", [14, 20, 24, 30, 50])
def test_the_panel_fits_the_terminal(width: int, height: int) -> None:
    lines = shown(STATUS, width, height, ("a", "b", "c"))
    assert max(map(len, lines)) <= width
    if width >= 60:
        assert len(lines) <= height


def test_before_the_first_step() -> None:
    text = "\n".join(shown(RunStatus(step=0, total_steps=200), 80, 24))
    assert "step 0/200" in text and "no step yet" in text and "reward –" in text


def test_untrusted_text_is_shown_not_obeyed() -> None:
    evil = "\x1b[2J [bold]x[/bold]"
    status = replace(STATUS, executors={evil: ExecutorStatus(evil, 0.5)}, counters={evil: 1})
    text = "\n".join(shown(status, 200, 40, (evil,)))
    assert "\x1b" not in text and text.count("␛[2J [bold]x[/bold]") >= 2


def test_busy_bar_needs_no_colour() -> None:
    assert busy_bar(0.5, 8).plain == "━━━━╌╌╌╌"
    assert busy_bar(None, 4).plain == busy_bar(-1.0, 4).plain == "╌╌╌╌"
    assert busy_bar(7.0, 4).plain == "━━━━"


def test_plain_line() -> None:
    assert plain_line(STATUS, 200.0) == (
        "step 57/200  reward 0.774  staleness max 2  10,438 tokens/s  dropped 3  ETA 3m 20s"
    )
    assert plain_line(RunStatus(step=2, total_steps=2), 0.0) == "step 2/2  reward –"


def test_pipes_get_a_line_now_and_then_and_each_message_once() -> None:
    clock, out = HeldClock(), io.StringIO()
    with LiveView(console=Console(file=out, width=20), plain_seconds=5.0, clock=clock) as view:
        assert view.is_plain
        for second in range(12):
            clock.time = float(second)
            message = "weights were late" if second >= 3 else ""
            view.update(RunStatus(step=second, total_steps=100, reward=0.5, message=message))
    # Lines at seconds 0, 5 and 10, and the last state; ETA at second 5: 95 steps left at 1 s each.
    assert out.getvalue().split("\n") == [
        "step 0/100  reward 0.500",
        "! weights were late",
        "step 5/100  reward 0.500  ETA 1m 35s",
        "step 10/100  reward 0.500  ETA 1m 30s",
        "step 11/100  reward 0.500  ETA 1m 29s",
        "",
    ]


def test_a_line_is_printed_only_where_something_is_new() -> None:
    clock, out = HeldClock(), io.StringIO()
    with LiveView(console=Console(file=out), plain_seconds=5.0, clock=clock) as view:
        for tick in range(240):  # a step of two minutes after one of 20 s
            clock.time = tick / 2
            step = int(clock.time >= 20.0)
            phase = "training" if clock.time >= 71.0 else "generating 20 of 32 groups" if clock.time >= 42.0 else ""
            view.update(RunStatus(step=step, total_steps=3, reward=0.5, phase=phase))
    assert out.getvalue().split("\n") == [
        "step 0/3  reward 0.500",
        "step 1/3  reward 0.500  ETA 40 s",
        "step 1/3  generating 20 of 32 groups  reward 0.500  ETA 1m 24s",
        "step 1/3  training  reward 0.500  ETA 2m 22s",
        "",
    ]


def test_news_that_come_too_soon_are_told_a_little_later() -> None:
    clock, out = HeldClock(), io.StringIO()
    with LiveView(console=Console(file=out), plain_seconds=5.0, clock=clock) as view:
        for second in range(8):
            clock.time = float(second)
            view.update(RunStatus(step=min(second, 2), total_steps=9))
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == ["step 0/9", "step 2/9"]


@pytest.mark.parametrize("reason", ["plain", "NO_COLOR", "dumb", "ascii"])
def test_plain_wherever_a_panel_cannot_be_drawn(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = io.StringIO()
    if reason == "ascii":
        file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")  # type: ignore[assignment]
    if reason == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=file, force_terminal=True, _environ={"TERM": "dumb" if reason == "dumb" else "xterm"})
    with LiveView(console=console, plain=reason == "plain") as view:
        assert view.is_plain
        view.update(replace(STATUS, message="– not ASCII"))
    assert view.failure is None


def test_a_terminal_gets_the_panel_and_is_given_back(terminal: Callable[..., Console]) -> None:
    out, stdout = io.StringIO(), sys.stdout
    with LiveView(title="demo", console=terminal(out)) as view:
        assert not view.is_plain
        view.update(STATUS)
    assert view.failure is None and sys.stdout is stdout
    assert "step 57/200" in out.getvalue() and "generating 96 rows" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor is shown again"
    view.close()


def test_numbers_not_measured_this_step_keep_their_last_value(terminal: Callable[..., Console]) -> None:
    out = io.StringIO()
    with LiveView(console=terminal(out)) as view:
        view.update(STATUS)
        view.update(replace(STATUS, step=58, mismatch=None, weight_sync_seconds=None, tokens_per_second=99.0))
    last_frame = out.getvalue()[out.getvalue().rindex("step 58/200") :]
    assert "1.2e-6" in last_frame and "3.10 ms" in last_frame and "99.0" in last_frame


def test_updates_draw_nothing_and_frames_are_few(terminal: Callable[..., Console]) -> None:
    def frames() -> int:
        return out.getvalue().count("generating 96 rows")

    out, updates, started = io.StringIO(), 0, time.perf_counter()
    with LiveView(console=terminal(out), refresh_hz=100.0) as view:
        while frames() < 3:
            view.update(STATUS)
            updates += 1
    assert frames() <= updates
    assert frames() <= 8 * (time.perf_counter() - started) + 3  # 8 Hz, whatever was asked; one at either end


@pytest.mark.parametrize("writes", [0, 1, 3])
def test_a_breaking_terminal_never_breaks_the_run(terminal: Callable[..., Console], writes: int) -> None:
    stdout = sys.stdout
    with LiveView(console=terminal(BrokenTerminal(writes))) as view:
        view.update(STATUS)
        view.update(replace(STATUS, step=58, message="x"))
    assert isinstance(view.failure, OSError)
    assert sys.stdout is stdout


def test_lines_to_a_broken_file_never_break_the_run() -> None:
    with LiveView(console=Console(file=BrokenTerminal(0)), plain=True) as view:
        view.update(STATUS)
    assert isinstance(view.failure, OSError)


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    program = f"""
import sys
from llamarl.report.live import LiveView, RunStatus
with LiveView(plain_seconds=0.0) as view:
    for step in range(1000):
        view.update(RunStatus(step=step, total_steps=1000))
        if step == 0:
            sys.stdin.read()  # until the reader of our lines has closed its end
open({str(tmp_path / "end")!r}, "w").write(type(view.failure).__name__)
"""
    run = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdin is not None and run.stdout is not None
    assert run.stdout.readline() == b"step 0/1000  reward \xe2\x80\x93\n"
    run.stdout.close()
    run.stdin.close()
    assert run.wait(timeout=600) == 0
    assert (tmp_path / "end").read_text() == "BrokenPipeError"


def test_an_exit_asked_for_is_obeyed(terminal: Callable[..., Console]) -> None:
    class Exiting(io.StringIO):
        def write(self, text: str) -> int:
            raise SystemExit(3)

    with pytest.raises(SystemExit), LiveView(console=Console(file=Exiting()), plain=True) as view:
        view.update(STATUS)


def test_the_runs_own_error_passes_through(terminal: Callable[..., Console]) -> None:
    with pytest.raises(KeyError, match="boom"), LiveView(console=terminal()) as view:
        view.update(STATUS)
        raise KeyError("boom")


def test_a_resumed_run_counts_its_pace_from_where_it_resumed() -> None:
    clock, out = HeldClock(), io.StringIO()
    with LiveView(console=Console(file=out), plain_seconds=0.0, clock=clock) as view:
        view.update(RunStatus(step=90, total_steps=100))
        clock.time = 4.0
        view.update(RunStatus(step=92, total_steps=100))
    # 2 steps in 4 s, 8 steps left: 16 s. Counting from step 0 would say under 1 s.
    assert "ETA 16 s" in out.getvalue()


def test_a_notebook_gets_lines_though_its_stream_calls_itself_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZMQInteractiveShell:
        """By this name rich knows a kernel's shell."""

    class Stream(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    def lines() -> str:
        stream = Stream()
        with LiveView("run", console=SafeConsole(file=stream)) as view:
            view.update(RunStatus(step=1, total_steps=2, reward=0.5, message="\x1b[2K"))
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "╭" in lines()
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    assert lines() == "! ␛[2K\nstep 1/2  reward 0.500\n"


def test_news_between_two_statuses_are_shown_once() -> None:
    """A trainer was lost, say, and until the next one is up nobody else speaks."""
    text = io.StringIO()
    view = LiveView("run", console=SafeConsole(file=text, width=200), plain=True, clock=HeldClock())
    view.tell("nobody has begun")
    view.update(STATUS)
    view.tell("trainer lost; starting over")
    view.update(STATUS)
    assert text.getvalue().count("! trainer lost; starting over") == 1
    assert "nobody has begun" not in text.getvalue()
