"""The page of a simulated plan: who works when, how old trained tokens are, who stands idle."""

from collections.abc import Mapping
from typing import Any

import llamarl
from llamarl.planner.simulation import Simulation
from llamarl.report.figures import Dot, Row, RowChart
from llamarl.report.page import Page, Section, Timeline
from llamarl.report.site.overview import describe_timeline
from llamarl.report.text import format_seconds

MOST_GENERATORS = 12
"""Generators shown; of more, the first."""


def build_page(title: str, found: Simulation) -> Page:
    """The page.

    Args:
        title: of the plan.
        found: of `simulate_plan`.
    """
    generators = sorted({span.executor for span in found.spans} - {"trainer"}, key=lambda name: (len(name), name))
    shown = {"trainer", *generators[:MOST_GENERATORS]}
    hidden = len(generators) - MOST_GENERATORS
    drawn = (span for span in found.spans if span.executor in shown)
    order = {name: place for place, name in enumerate(["trainer", *generators])}
    spans = sorted(drawn, key=lambda span: order[span.executor])  # rows stand in the order of the spans
    timeline: Mapping[str, Any] = describe_timeline(spans, [])
    steps = [[number, round(end - timeline["start"], 3)] for number, end in enumerate(found.ends, start=1)]
    lags = [Row(f"{lag} behind", [Dot(share, text=f"{share:.1%}")]) for lag, share in sorted(found.lags.items())]
    idle = [Row(name, [Dot(share, text=f"{share:.1%}")]) for name, share in found.idle.items()]
    more = f" The first {MOST_GENERATORS} of {len(generators)} generators are drawn." if hidden > 0 else ""
    return Page(
        title=title,
        subtitle=f"Simulated: {format_seconds(found.step_seconds)} from one update to the next, "
        f"{found.filled:.0%} of the generators' slots taken",
        parts=[
            Section("Who works when", [f"In simulated time.{more}", Timeline({**timeline, "steps": steps})]),
            Section(
                "In the steady state",
                [
                    RowChart("Trained tokens by the versions they were behind", lags, unit="%", marks=[0.0]),
                    RowChart("Idle share of the time", idle, unit="%", marks=[0.0]),
                    "The first third of the steps, which fill the pipeline, and the last are left out.",
                ],
            ),
        ],
        footer=f"llamarl {llamarl.__version__}, plan --simulate.",
    )
