"""The panel that shows a `RunStatus` in a terminal, from 40 columns up."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llamarl.report.charts import line_chart, sparkline
from llamarl.report.status import ExecutorStatus, RunStatus
from llamarl.report.text import format_number, format_seconds, one_line
from llamarl.report.timeline import is_busy

WIDE = 96
"""Columns from which chart and numbers stand side by side."""
MAX_WIDTH = 140
SIDE = 48
"""Columns of the numbers beside the chart."""
SHORT = 20
"""Rows below which numbers share lines and blank lines go."""


def render_status(
    status: RunStatus,
    *,
    title: str,
    elapsed_seconds: float,
    eta_seconds: float | None,
    width: int,
    height: int,
    messages: Sequence[str] = (),
) -> RenderableType:
    """One frame of the live view, at most `width` by `height` characters.

    Args:
        status: what to show.
        title: of the run.
        elapsed_seconds: since the view opened.
        eta_seconds: until the last step; None while unknown.
        width: columns of the terminal.
        height: rows of the terminal; with few of them the chart shrinks to one line.
        messages: the latest first.
    """
    width = min(width, MAX_WIDTH)
    inner = width - 4
    is_short = height < SHORT
    gap = [] if is_short else [Text()]
    notes = [Text(f"! {one_line(message, inner - 2)}", style="yellow") for message in messages[: 1 if is_short else 3]]
    executors = executor_table(status.executors, bar_width=0 if width < 50 else 8)
    numbers = number_line(status) if is_short else number_table(status)
    head = [_progress(status, elapsed_seconds, eta_seconds), *gap]
    if width >= WIDE:
        chart = reward_chart(status, inner - SIDE - 3, max(3, min(10, height - len(head) - len(notes) - 8)))
        body: list[RenderableType] = [_beside(chart, Group(executors, Text(), numbers), inner)]
    else:
        rows = len(head) + len(status.executors) + (4 if is_short else 8) + len(notes) + 2
        body = [reward_chart(status, inner, min(8, height - rows - 3)), *gap, executors, *gap, numbers]
    parts = [*head, *body, *gap, *notes] if notes else [*head, *body]
    return Panel(Group(*parts), title=Text(one_line(title, inner - 4)), title_align="left", width=width)


def _beside(left: RenderableType, right: RenderableType, width: int) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(width=width - SIDE - 3)
    table.add_column(width=SIDE)
    table.add_row(left, right)
    return table


def reward_chart(status: RunStatus, width: int, height: int) -> RenderableType:
    """The reward of every step so far, under a headline; one line of blocks where `height` is under 3."""
    history = status.reward_history
    headline = Text.assemble("reward ", (format_number(status.reward), "bold green"))
    if len(history) > 1:
        headline.append(f"  first {format_number(history[0])}", style="dim")
    if height < 3:
        headline.append("  ")
        return headline.append(sparkline(history, width - len(headline)), style="green")
    first = max(1, status.step - len(history) + 1)
    curve = "\n".join(line_chart(history, width, height, first)) if history else "no step yet"
    return Group(headline, Text(curve, style="green" if history else "dim", no_wrap=True, overflow="crop"))


def executor_table(executors: Mapping[str, ExecutorStatus], bar_width: int = 8) -> Table:
    """One line per executor: name, busy bar (none of width 0), busy share, what it does now."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, max_width=16)
    if bar_width:
        table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True, min_width=4)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for name, executor in executors.items():
        fraction = executor.busy_fraction
        percent = "–" if fraction is None else f"{fraction:.0%}"
        style = "cyan" if is_busy(executor.activity) else "dim"
        bar = [busy_bar(fraction, bar_width)] if bar_width else []
        table.add_row(one_line(name), *bar, percent, Text(one_line(executor.activity), style))
    return table


def busy_bar(fraction: float | None, width: int = 8) -> Text:
    """A bar of `width` characters, filled to the fraction; readable without colours too."""
    filled = round(min(1.0, max(0.0, fraction or 0.0)) * width)
    return Text.assemble(("━" * filled, "cyan"), ("╌" * (width - filled), "bright_black"))


def numbers(status: RunStatus) -> dict[str, Text]:
    """The numbers to watch, by name; what is not known yet is left out."""
    found: dict[str, Text] = {}
    if status.staleness_max is not None:
        mean = "" if status.staleness_mean is None else f", mean {format_number(status.staleness_mean, 2)}"
        found["staleness"] = Text(f"max {format_number(status.staleness_max)}{mean}")
    if status.tokens_per_second is not None:
        found["tokens/s"] = Text(format_number(status.tokens_per_second))
    if status.mismatch is not None:
        found["mismatch"] = Text(format_number(status.mismatch))
    if status.weight_sync_seconds is not None:
        found["weight sync"] = Text(format_seconds(status.weight_sync_seconds))
    if status.counters:
        found["prompts"] = _counters(status.counters)
    return found


def number_table(status: RunStatus) -> Table:
    """The numbers to watch, one a line."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in numbers(status).items():
        table.add_row(name, value)
    return table


def number_line(status: RunStatus) -> Text:
    """The numbers to watch, in a running line."""
    return Text("; ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in numbers(status).items())


def plain_line(status: RunStatus, eta_seconds: float | None) -> str:
    """The state in one line, for logs and pipes."""
    parts = [f"step {status.step}/{status.total_steps}", f"reward {format_number(status.reward)}"]
    if status.phase and status.step < status.total_steps:
        parts.insert(1, status.phase)
    if status.staleness_max is not None:
        parts.append(f"staleness max {format_number(status.staleness_max)}")
    if status.tokens_per_second is not None:
        parts.append(f"{format_number(status.tokens_per_second)} tokens/s")
    parts += [f"{name} {format_number(status.counters[name])}" for name in _BAD if status.counters.get(name)]
    if eta_seconds is not None and status.step < status.total_steps:
        parts.append(f"ETA {_whole_seconds(eta_seconds)}")
    return "  ".join(parts)


_BAD = ("dropped", "failed")


def _counters(counters: Mapping[str, float]) -> Text:
    text = Text()
    for name, count in counters.items():
        style = "yellow" if count and name in _BAD else ""
        text.append(f"{', ' if text else ''}{format_number(count)}\N{NO-BREAK SPACE}{one_line(name)}", style=style)
    return text


def _whole_seconds(seconds: float | None) -> str:
    return format_seconds(None if seconds is None else max(1, round(seconds)))


def _progress(status: RunStatus, elapsed: float, eta: float | None) -> RenderableType:
    total = max(1, status.total_steps)
    remaining = "done" if status.step >= status.total_steps else f"ETA {_whole_seconds(eta)}"
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_row(
        f"step {status.step}/{status.total_steps}",
        ProgressBar(total=total, completed=min(status.step, total)),
        f"{_whole_seconds(elapsed)}, {remaining}",
    )
    return line
