"""The contents of a store: how often messages are loved, where and when, and which signal would be worth learning from.

Messages of one user are alike, so that intervals count users: the variance of a rate is that of a ratio of sums over
users, and the interval is Wilson's with as many independent messages as that variance stands for.

A signal is worth learning from if there is much of it, if users who give it have the better outcome later, and if it
means one thing (Han et al., "Reinforcement Learning from User Feedback", arXiv 2505.14946, choose theirs so).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llamarl.core.machine import usable_cores
from llamarl.feedback.queries import description as queries
from llamarl.feedback.queries import quote, text_literal
from llamarl.feedback.reactions import NEGATIVE
from llamarl.feedback.settings import Description
from llamarl.feedback.store import Connection, Store, connect
from llamarl.functional.statistics import clustered_rate, fisher_interval, wilson_interval
from llamarl.report.files import write_json
from llamarl.report.page import write_page

SIGNALS = ("love", "sentiment", "continued", "returned")
"""Candidates that every store may have; the columns that were kept come behind them."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate at which messages of one segment are loved."""

    segment: str | None
    """The segment's name; None where the log does not say."""
    messages: int
    users: int
    loves: int
    rate: float
    interval: tuple[float, float]
    """95%, for users drawn at random."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One candidate for what to learn from."""

    name: str
    messages: int
    """Messages of which the log knows the signal."""
    positive: int
    """Messages where it is above 0."""
    share: float
    """`positive` of all messages in the store."""
    users: int
    """Users who gave it at least once."""
    correlation: float | None
    """Pearson's r between users' mean signal and their outcome; None without an outcome, or where nothing varies."""
    correlation_interval: tuple[float, float] | None
    """95%, by Fisher's transform over users."""
    ambiguity: float | None
    """Share of positive messages where another signal objects: the next message is negative, or the reaction is. None
    where no other signal is known."""
    ambiguity_interval: tuple[float, float] | None


def describe(settings: Description) -> dict[str, Any]:
    """Base rates by segment, and candidate signals compared, in plain values.

    Writes `description.json`, `description.png` and `report.html` where `out` is given.

    Raises:
        DataError: there is no store.
    """
    result = _describe(Store.open(settings.store), settings)
    if settings.out is not None:
        from llamarl.feedback.description_report import build_report
        from llamarl.report.description_plots import plot_description

        settings.out.mkdir(parents=True, exist_ok=True)
        plot_description(settings.out / "description.png", result)
        write_page(settings.out / "report.html", build_report(result))
        write_json(settings.out / "description.json", result)
    return result


def _describe(store: Store, settings: Description) -> dict[str, Any]:
    with (
        TemporaryDirectory() as spill,
        connect(threads=settings.threads or usable_cores(), memory=settings.memory, folder=Path(spill)) as connection,
    ):
        connection.execute(f"CREATE VIEW stored AS SELECT * FROM read_parquet({text_literal(store.messages)})")
        total, design_effect = _total_rate(connection)
        return {
            "store": str(store.path),
            "messages": total.messages,
            "users": total.users,
            "loves": total.loves,
            "base_rate": total.rate,
            "base_rate_interval": total.interval,
            "design_effect": design_effect,
            "by": {
                name: [asdict(rate) for rate in _segment_rates(connection, expression, design_effect)]
                for name, expression in queries.SEGMENTS.items()
            },
            "signals": [
                asdict(signal)
                for signal in _compare_signals(connection, store.record["settings"]["keep"], total.messages)
            ],
        }


def _total_rate(connection: Connection) -> tuple[Rate, float]:
    ((_, *sums),) = connection.execute(queries.SELECT_SEGMENT_RATES.format(segment="1")).fetchall()
    rate, interval, effect = clustered_rate(sums)
    return Rate(None, int(sums[1]), int(sums[2]), int(sums[0]), rate, interval), effect


def _segment_rates(connection: Connection, expression: str, design_effect: float) -> list[Rate]:
    found = []
    for segment, *sums in connection.execute(queries.SELECT_SEGMENT_RATES.format(segment=expression)).fetchall():
        rate, interval, _ = clustered_rate(sums, design_effect)
        found.append(Rate(segment, int(sums[1]), int(sums[2]), int(sums[0]), rate, interval))
    return found


def _compare_signals(connection: Connection, kept: Sequence[str], messages: int) -> list[Signal]:
    negative = ", ".join(text_literal(name) for name in NEGATIVE)
    extra = "".join(f"{quote(name)}, " for name in kept)
    connection.execute(f"CREATE TABLE signals AS {queries.SELECT_SIGNALS.format(negative=negative, extra=extra)}")
    # what speaks against a good signal: never the signal itself
    others: Mapping[str, tuple[str, str]] = {
        "love": ("sentiment IS NOT NULL", "sentiment < 0"),
        "sentiment": ("disliked IS NOT NULL", "disliked > 0"),
    }
    either = ("sentiment IS NOT NULL OR disliked IS NOT NULL", "sentiment < 0 OR disliked > 0")
    found = []
    for name in (*SIGNALS, *kept):
        known, bad = others.get(name, either)
        select = queries.SELECT_SIGNAL.format(signal=quote(name), other_known=known, other_bad=bad)
        row = connection.execute(select).fetchone()
        seen, positive, users, with_outcome, correlation, contested, objections = row
        is_known = correlation is not None and math.isfinite(correlation)
        found.append(
            Signal(
                name=name,
                messages=seen,
                positive=positive,
                share=positive / messages,
                users=users,
                correlation=correlation if is_known else None,
                correlation_interval=fisher_interval(correlation, with_outcome) if is_known else None,
                ambiguity=objections / contested if contested else None,
                ambiguity_interval=wilson_interval(objections, contested) if contested else None,
            )
        )
    return found
