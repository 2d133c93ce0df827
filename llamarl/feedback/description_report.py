"""The report on a store: one page, and the figure beside it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import llamarl
from llamarl.feedback.description_figures import build_days, build_segments, build_signals
from llamarl.report.page import Page, Part, Section, Table

RATE_COLUMNS = ("messages", "users", "loved (95%)")
SIGNAL_COLUMNS = ("signal", "known", "good", "users", "r with outcome", "ambiguity")


def build_report(result: Mapping[str, Any]) -> Page:
    """The page of what `describe` returns."""
    loved = format_share(result["base_rate"], result["base_rate_interval"])
    effect = f"{result['design_effect']:.2f} messages count as one, as messages of one user are alike."
    return Page(
        title="A store of messages",
        subtitle=f"{result['messages']:,} messages of {result['users']:,} users",
        parts=[
            f"{loved} of the messages are loved. Intervals are 95%, for users drawn at random: {effect}",
            Section("Love rate", [build_days(result), *build_segments(result)]),
            *(
                Section(
                    f"By {name.replace('_', ' ')}",
                    [Table((name.replace("_", " "), *RATE_COLUMNS), list(rate_rows(rates)))],
                )
                for name, rates in result["by"].items()
                if name != "day" and len(rates) > 1
            ),
            Section("What one could learn from", _signals(result)),
        ],
        footer_note=str(result["store"]),
        footer=f"llamarl {llamarl.__version__}, feedback describe. {PurePath(result['store']).name}.",
    )


def _signals(result: Mapping[str, Any]) -> list[Part]:
    return [
        "A good signal has volume; users who give it have the better outcome later (Pearson's r over users, with "
        "Fisher's interval); and it means one thing: ambiguity is the share of messages with a good signal to which "
        "another signal objects.",
        *build_signals(result),
        Table(SIGNAL_COLUMNS, list(signal_rows(result["signals"]))),
    ]


def rate_rows(rates: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The table of love rates."""
    for rate in rates:
        counts = [f"{rate['messages']:,}", f"{rate['users']:,}"]
        yield [rate["segment"] or "not said", *counts, format_share(rate["rate"], rate["interval"])]


def signal_rows(signals: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The table of signals."""
    for signal in signals:
        correlation, ambiguity = "", ""
        if signal["correlation"] is not None:
            low, high = signal["correlation_interval"]
            correlation = f"{signal['correlation']:+.2f} ({low:+.2f} to {high:+.2f})"
        if signal["ambiguity"] is not None:
            ambiguity = format_share(signal["ambiguity"], signal["ambiguity_interval"])
        counts = [f"{signal['messages']:,}", f"{signal['positive']:,}", f"{signal['users']:,}"]
        yield [signal["name"], *counts, correlation, ambiguity]


def format_share(share: float, interval: Sequence[float]) -> str:
    """A share with its interval."""
    return f"{share:.2%} ({interval[0]:.2%} to {interval[1]:.2%})"
