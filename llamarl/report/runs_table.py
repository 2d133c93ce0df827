"""The runs of a folder as a table in a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from llamarl.report.site.folder import RunRow
from llamarl.report.text import format_number, format_seconds, one_line
from llamarl.report.view import STATE_STYLE


def runs_table(rows: Sequence[RunRow]) -> Table:
    """One line for each run, in the order given."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for header in ("step", "reward", "held-out", "age"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("model, algorithm")
    for row in rows:
        step = f"{row.step}/{row.total_steps}" if row.total_steps else str(row.step)
        before, after = format_number(row.held_out_before), format_number(row.held_out)
        table.add_row(
            one_line(row.name),
            Text(row.state, STATE_STYLE.get(row.state, "bold red")),
            step,
            format_number(row.reward),
            before if row.held_out is None else f"{before} → {after}",
            format_seconds(row.age),
            one_line(row.problem or ", ".join(filter(None, (row.model, row.algorithm))), 60),
        )
    return table
