"""The reports of an A/B test and of a plan: one page each."""

from collections.abc import Iterator, Mapping
from typing import Any

import llamarl
from llamarl.feedback.ab_figures import build_changes, build_days, build_guardrails, build_power, build_rates
from llamarl.feedback.ab_verdicts import format_change, format_interval, format_p, format_rate
from llamarl.report.page import Notes, Page, Section, Table, Verdict
from llamarl.report.text import format_number

LAST_DAYS = 7
"""Days of the table; the figure and the JSON have all."""


def build_report(result: Mapping[str, Any]) -> Page:
    """The page of a comparison, from what `compare_arms` returns."""
    days = [each["day"] for each in result["by_day"]]
    span = f"{days[0]} to {days[-1]}, " if days else ""
    others = [arm for name, arm in result["arms"].items() if name != result["control"]]
    return Page(
        title=f"A/B test against {result['control']}",
        subtitle=f"{span}{result['rows']:,} rows",
        parts=[
            *([Verdict(**result["size_verdict"])] if result["size_verdict"]["tone"] == "bad" else []),
            *(Verdict(**arm["verdict"]) for arm in others),
            *_sections(result),
        ],
        footer=f"llamarl {llamarl.__version__}, feedback ab. All intervals are 95%.",
    )


def _sections(result: Mapping[str, Any]) -> Iterator[Section]:
    yield Section(
        "Love rate",
        [
            build_rates(result),
            build_changes(result),
            Table(RATE_COLUMNS, list(rate_rows(result))),
            Table(CHANGE_COLUMNS, list(change_rows(result)), "Relative change of the love rate"),
        ],
    )
    if result["by_day"]:
        yield Section(
            "Day by day",
            [
                *build_days(result),
                "The band is the always-valid interval; once it leaves out 0 you may stop. It is tightest for changes "
                f"of about {result['expected_change']:.0%} (--expected-change).",
                Table(DAY_COLUMNS, list(_day_rows(result)), f"The last {min(LAST_DAYS, len(result['by_day']))} days"),
            ],
        )
    if rows := list(guardrail_rows(result)):
        figure = build_guardrails(result)
        note = (
            "A guardrail holds if its 95% interval leaves out the margin. All must hold, so that needs no correction; "
            "whether one changed at all is corrected after Holm."
        )
        yield Section("Guardrails", [*([figure] if figure else []), Table(GUARDRAIL_COLUMNS, rows), note])
    size = result["size_verdict"]
    yield Section("Sample ratio", [*([Verdict(**size)] if size["tone"] != "bad" else []), Notes(list(_notes(result)))])
    yield Section(
        "How it was computed",
        [Notes([f"{name.replace('_', ' ')}: {method}" for name, method in result["methods"].items()])],
    )


RATE_COLUMNS = ("arm", "users", "messages", "reactions", "love rate", "95% interval")
CHANGE_COLUMNS = ("arm", "change", "for one look", "p", "p, Holm", "always valid")
GUARDRAIL_COLUMNS = ("guardrail", "arm", "mean", "change", "95% interval", "p, Holm", "margin", "")
DAY_COLUMNS = ("day", "arm", "messages", "reactions", "change so far", "always valid")


def rate_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """Cells of `RATE_COLUMNS`."""
    for name, arm in result["arms"].items():
        counts = [f"{arm[key]:,}" for key in ("users", "messages", "reactions")]
        low, high = arm["rate_interval"]
        yield [name, *counts, format_rate(arm["rate"]), f"{100 * low:.2f} to {format_rate(high)}"]


def change_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """Cells of `CHANGE_COLUMNS`, with a second row for each arm that a covariate (CUPED) adjusts."""
    for name, arm in result["arms"].items():
        if name == result["control"]:
            continue
        yield [
            name,
            format_change(arm["relative_change"]),
            format_interval(arm["interval"]),
            format_p(arm["p"]),
            format_p(arm["p_corrected"]),
            format_interval(arm["always_valid_interval"]),
        ]
        if arm["cuped"] is not None:
            change, interval = arm["cuped"]["relative_change"], arm["cuped"]["interval"]
            label = f"{name} + {result['covariate']}"
            always = format_interval(arm["cuped"]["always_valid_interval"])
            yield [label, format_change(change), format_interval(interval), format_p(arm["cuped"]["p"]), "", always]


def guardrail_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """Cells of `GUARDRAIL_COLUMNS`."""
    for name, arm in result["arms"].items():
        if name == result["control"]:
            continue
        for column, found in arm["guardrails"].items():
            margin = format_change(found["margin"]) if found["margin"] is not None else ""
            change, interval = format_change(found["relative_change"]), format_interval(found["interval"])
            corrected = format_p(found["p_corrected"])
            yield [
                column,
                name,
                format_number(found["mean"]),
                change,
                interval,
                corrected,
                margin,
                _STATES[found["state"]],
            ]


_STATES = {None: "", "held": "holds", "open": "not shown to hold", "broken": "broken"}


def _day_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    for each in result["by_day"][-LAST_DAYS:]:
        for name, arm in each["arms"].items():
            if name == result["control"]:
                continue
            always = arm["always_valid_interval"]
            shown = "too few reactions" if always[1] is None else format_interval(always)
            counts = [f"{arm['messages']:,}", f"{arm['reactions']:,}"]
            yield [each["day"], name, *counts, format_change(arm["relative_change"]), shown]


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    crossed = result["dropped"]["user_in_two_arms"]
    if crossed["users"]:
        yield describe_crossing(crossed)
    if result["covariate"] and result["users_without_covariate"]:
        count = result["users_without_covariate"]
        yield f"{count:,} users have no {result['covariate']}; they count with the mean of all"
    for name, arm in result["arms"].items():
        yield (
            f"{name}: {arm['design_effect']:.2f} messages count as one (messages of a user are alike by "
            f"{arm['user_correlation']:.3f}; messages by user vary by {arm['activity_spread']:.2f} of their mean)"
        )


def describe_crossing(crossed: Mapping[str, Any]) -> str:
    """A sentence on what was dropped, and why."""
    more = ", ..." if crossed["users"] > len(crossed["first"]) else ""
    names = ", ".join(crossed["first"]) + more
    return f"dropped {crossed['users']:,} users ({crossed['rows']:,} rows) who are in two arms: {names}"


# ---- plans


PLAN_COLUMNS = ("day", "users", "messages", "power", "always valid, by now", "change found")


def build_plan_page(plan: Mapping[str, Any]) -> Page:
    """The page of a plan, from what `plan_test` returns."""
    settings = plan["settings"]
    title, text = describe_plan(plan)
    return Page(
        title="Plan of an A/B test",
        subtitle=f"base rate {format_rate(settings['base_rate'])}, a change of {format_change(settings['change'])}, "
        f"{settings['arms']} arms",
        parts=[
            Verdict("good" if plan["days"] else "bad", title, text),
            Section("Power", [*build_power(plan), PLAN_NOTE, Table(PLAN_COLUMNS, plan_rows(plan))]),
        ],
        footer=f"llamarl {llamarl.__version__}, feedback ab plan.",
    )


PLAN_NOTE = (
    "The power of one look on a day that is fixed now. The always-valid interval needs more for the same change, and "
    "may be looked at every day."
)


def describe_plan(plan: Mapping[str, Any]) -> tuple[str, str]:
    """The gist of a plan in two sentences."""
    settings = plan["settings"]
    aim = f"a change of {format_change(settings['change'])} with power {settings['power']:.0%}"
    counts = f"{plan['users']:,} users, {plan['users_per_arm']:,} an arm, and {plan['messages']:,} messages"
    effect = f"{plan['design_effect']:.2f} messages of a user count as one"
    if plan["days"] is None:
        return (
            f"{settings['max_days']} days don't find {aim}",
            f"After {counts} the power is {plan['power']:.0%}; {effect}. New users help more than the same ones again.",
        )
    return f"{plan['days']} days find {aim}", f"{counts}; {effect}."


def plan_rows(plan: Mapping[str, Any], most: int = 14) -> list[list[str]]:
    """Cells of `PLAN_COLUMNS` for so many days of the curve, the planned end among them."""
    curve = plan["curve"]
    step = max(1, -(-len(curve) // most))
    chosen = [each for each in curve if each["day"] % step == 0 or each["day"] == plan["days"]]
    return [
        [
            str(each["day"]),
            f"{each['users']:,}",
            f"{each['messages']:,}",
            f"{each['power']:.0%}",
            f"{each['always_valid_power']:.0%}",
            format_change(each["detectable_change"]),
        ]
        for each in chosen
    ]
