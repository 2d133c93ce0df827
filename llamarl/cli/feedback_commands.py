"""feedback simulate, feedback ingest, feedback describe: from a log of users' reactions to what it says."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from llamarl.cli.common import print_json, say
from llamarl.cli.options import Output, Positional
from llamarl.feedback.settings import Description, Ingest, Simulation

if TYPE_CHECKING:
    from rich.table import Table

MOST_SEGMENTS = 20
"""Rows of a table on the terminal; --json has all."""
MOST_BAD_ROWS = 10


class IngestSettings(Ingest):
    """Logs, and how they become a store."""

    logs: Positional[tuple[str, ...]] = Field(min_length=1)
    """Files or globs: .jsonl, .csv, .tsv or .parquet; text may be compressed as .gz."""


class DescribeSettings(Description):
    """Store to describe."""

    store: Positional[Path]
    """Directory of a store, the --out of an ingest."""


def simulate(settings: Simulation, output: Output) -> int:
    """Write the log of simulated users whose preference is known, and the truth beside it.

    Examples:
        llamarl feedback simulate --out log
        llamarl feedback simulate --out log --users 5000 --days 60 --seed 7 --bots 0.05
    """
    from llamarl.feedback import simulate

    counts = simulate(settings)
    if output.json:
        print_json(counts)
        return 0
    users = ", ".join(f"{count} {kind}" for kind, count in counts["users"].items())
    say(f"{counts['rows']:,} messages, {counts['love_rate']:.2%} loved, of users {users}")
    say(f"the log is {counts['logs']}; the truth is {counts['truth']}")
    return 0


def ingest(settings: IngestSettings, output: Output) -> int:
    """Read logs of messages and reactions into one store: checked, without ids and secrets, without bots.

    The same command again goes on where a killed one stopped, if --key-env names a key. A row that is not kept is
    counted with its reason, and listed in the store with file, line and field.

    Examples:
        llamarl feedback ingest log/logs.jsonl --out store
        llamarl feedback ingest 'logs/*.parquet' --out store --columns user=uid --columns response=message.text
        llamarl feedback ingest logs.csv --out store --key-env FEEDBACK_KEY --keep stars --reactions sparkles=love
    """
    from llamarl.feedback import ingest

    store = ingest(settings)
    record = store.record
    if output.json:
        print_json({name: value for name, value in record.items() if name not in ("format", "data", "settings")})
        return 0
    say(f"{record['kept']:,} of {record['rows']:,} rows kept, of {record['users']:,} users; {record['loves']:,} loved")
    for reason, count in sorted(record["dropped"].items(), key=lambda item: -item[1]):
        say(f"  dropped: {count:,} {reason}")
    if record["suspicious_users"]:
        say(f"{record['suspicious_users']:,} suspicious users, with reasons in {store.suspicious}")
    for bad in record["bad_rows"][:MOST_BAD_ROWS]:
        field = f", field {bad['field']}" if bad["field"] else ""
        say(f"  {bad['file']}, line {bad['line']}{field}: {bad['reason']}")
    for note in record["notes"]:
        say(f"note: {note}")
    say(f"the store is {store.path}; llamarl feedback describe {store.path} says what it holds")
    return 0


def describe(settings: DescribeSettings, output: Output) -> int:
    """Show how often messages of a store are loved, where and when, and which signal is worth learning from.

    Intervals are 95 %, for users drawn at random. Ambiguity is the share of good signals to which another objects.

    Examples:
        llamarl feedback describe store
        llamarl feedback describe store --json
    """
    from llamarl.feedback import describe
    from llamarl.report.console import SafeConsole

    result = describe(settings)
    if output.json:
        print_json(result)
        return 0
    loved = _percent(result["base_rate"], result["base_rate_interval"])
    say(f"{result['messages']:,} messages of {result['users']:,} users; {loved} loved")
    console = SafeConsole()
    for name, rates in result["by"].items():
        if len(rates) > 1:
            console.print(build_table([name, "messages", "users", "loved"], _rate_rows(rates[:MOST_SEGMENTS])))
        if len(rates) > MOST_SEGMENTS:
            say(f"  and {len(rates) - MOST_SEGMENTS} more; --json has all")
    columns = ["signal", "known", "good", "users", "r with outcome", "ambiguity"]
    console.print(build_table(columns, _signal_rows(result["signals"])))
    return 0


def _rate_rows(rates: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for rate in rates:
        counts = [f"{rate['messages']:,}", f"{rate['users']:,}"]
        yield [rate["segment"] or "not said", *counts, _percent(rate["rate"], rate["interval"])]


def _signal_rows(signals: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for signal in signals:
        correlation, ambiguity = "", ""
        if signal["correlation"] is not None:
            low, high = signal["correlation_interval"]
            correlation = f"{signal['correlation']:+.2f} ({low:+.2f} to {high:+.2f})"
        if signal["ambiguity"] is not None:
            ambiguity = _percent(signal["ambiguity"], signal["ambiguity_interval"])
        counts = [f"{signal['messages']:,}", f"{signal['positive']:,}", f"{signal['users']:,}"]
        yield [signal["name"], *counts, correlation, ambiguity]


def _percent(share: float, interval: tuple[float, float]) -> str:
    return f"{share:.2%} ({interval[0]:.2%} to {interval[1]:.2%})"


def build_table(columns: Sequence[str], rows: Iterator[list[str]]) -> "Table":
    """A plain table for the terminal; the first column stands left, numbers right."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
