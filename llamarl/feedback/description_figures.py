"""The figures of a store of messages: love rates by day and by segment, and what one could learn from, compared."""

from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Any

from llamarl.report.figures import Curve, Dot, LineChart, Row, RowChart

MOST_SEGMENTS = 12
"""Segments of one kind that a figure shows, those with the most messages."""
MANY_DAYS = 60
"""The most days that are drawn as points: with more, a point would hide its neighbours."""


def build_days(result: Mapping[str, Any]) -> LineChart:
    """The love rate by day; days without a message are a gap."""
    rates = [rate for rate in result["by"]["day"] if rate["segment"] is not None]
    days = [date.fromisoformat(rate["segment"]) for rate in rates]
    places = [(day - days[0]).days for day in days]
    curve = Curve(
        "love rate",
        [(place, rate["rate"]) for place, rate in zip(places, rates, strict=True)],
        [tuple(rate["interval"]) for rate in rates],
        style="marked" if len(days) <= MANY_DAYS else "line",
        colour="mean",
    )
    return LineChart(
        "Love rate by day",
        [curve],
        x="",
        x_names=[(days[0] + timedelta(place)).isoformat() for place in range(places[-1] + 1)] if days else [],
        unit="%",
        limits=(0.0, min(1.0, 1.1 * max([result["base_rate"], *(rate["interval"][1] for rate in rates)]) or 1.0)),
        y_marks=[result["base_rate"]],
        caption=f"The band is the 95% interval, over users; dashed: all messages, {result['base_rate']:.2%}.",
    )


def build_segments(result: Mapping[str, Any]) -> Iterator[RowChart]:
    """Yields the love rate by surface, language and model version, for segments of several."""
    for name, rates in result["by"].items():
        if name == "day" or len(rates) < 2:
            continue
        chosen = sorted(rates, key=lambda rate: -rate["messages"])[:MOST_SEGMENTS]
        hidden = len(rates) - len(chosen)
        rows = [
            Row(rate["segment"] or "not said", [Dot(rate["rate"], tuple(rate["interval"]), text=f"{rate['rate']:.2%}")])
            for rate in chosen
        ]
        title = f"Love rate by {name.replace('_', ' ')}" + (f" ({hidden} more)" if hidden else "")
        caption = "The line is the rate of all messages. Of many segments, those with the most messages are drawn."
        yield RowChart(title, rows, unit="%", marks=[result["base_rate"]], caption=caption)


def build_signals(result: Mapping[str, Any]) -> list[RowChart]:
    """Volume, correlation with the outcome and ambiguity of the signals."""
    signals = result["signals"]
    volume = [Row(each["name"], [Dot(each["share"], text=f"{each['share']:.2%}")]) for each in signals]
    return [
        RowChart("Good signals, share of messages", volume, unit="%", marks=[0.0]),
        RowChart(
            "r with the outcome, over users",
            [Row(each["name"], [_dot(each, "correlation", "+.2f")]) for each in signals],
            marks=[0.0],
            is_signed=True,
        ),
        RowChart(
            "Ambiguity: another signal objects",
            [Row(each["name"], [_dot(each, "ambiguity", ".1%")]) for each in signals],
            unit="%",
            marks=[0.0],
        ),
    ]


def _dot(signal: Mapping[str, Any], key: str, form: str) -> Dot:
    if signal[key] is None:
        return Dot(None, text="not known")
    low, high = signal[f"{key}_interval"]
    return Dot(signal[key], (low, high), text=f"{signal[key]:{form}} ({low:{form}} to {high:{form}})")
