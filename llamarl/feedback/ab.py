"""A/B tests of policies: by how much arms changed the love rate, and how sure that is.

    result = compare_arms(AbTest(files=["test.parquet"], control="base"))
    result["arms"]["warm"]["relative_change"], result["arms"]["warm"]["interval"]
    plan_test(AbPlan(base_rate=0.02, change=0.1, users_per_day=2000))["days"]

The love rate is reactions by messages shown. A user is in one arm, and the messages of one user are alike, so that all
intervals and p-values are over users.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any

from llamarl.feedback.ab_rows import ArmRows, Rows, read_rows
from llamarl.feedback.ab_settings import AbPlan, AbTest
from llamarl.feedback.ab_verdicts import judge_arm, judge_sizes
from llamarl.feedback.readers import OnProgress
from llamarl.functional import experiments as statistics
from llamarl.functional.experiments import Estimate, Moments
from llamarl.functional.statistics import clustered_rate

METHODS = {
    "interval": "bootstrap over users, studentized and symmetric, in Fieller's form (Hwang, 1995), 95%",
    "p": "two-proportion score test with errors clustered by user",
    "p_unclustered": "two-proportion z test as if all messages were independent; for comparison only",
    "p_corrected": "Holm, over the arms for the love rate, over arms and guardrails for the guardrails",
    "always_valid_interval": "asymptotic confidence sequence, normal mixture (Waudby-Smith et al., 2024), 95%",
    "sample_ratio_p": "chi-square of users by arm",
    "cuped": "log of the quotient less a covariate's part (Deng et al., 2013), 95%",
}
NO_UPPER_BOUND = (-1.0, None)
BEYOND = 0.025
"""One-sided, as a 95% interval that leaves out the margin."""


def compare_arms(
    settings: AbTest, now: datetime | None = None, *, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Compares arms with a control, in plain values; writes the report if one is asked for.

    Args:
        settings: files, arms, metrics.
        now: no row is from more than a day after it; the clock's time by default.
        on_progress: called with the megabytes of the files that are read, and all.

    Raises:
        ConfigError: a setting names what is not there.
        DataError: a row cannot be counted, or arms lack what a comparison needs. Nothing is written then.
    """
    from llamarl.report.page import check_page_path, write_page

    if settings.report is not None:
        check_page_path(settings.report)
    result = compare_rows(read_rows(settings, now, on_progress), settings)
    if settings.report is not None:
        from llamarl.feedback.ab_report import build_report

        result["report"] = str(write_page(settings.report, build_report(result)))
    return result


def compare_rows(rows: Rows, settings: AbTest) -> dict[str, Any]:
    """Compares the arms of what was read."""
    control = rows.arms[settings.control]
    drawn = {
        name: statistics.resample_moments(arm.patterns, arm.pattern_users, [settings.seed, place], settings.resamples)
        for place, (name, arm) in enumerate(rows.arms.items())
    }
    arms: dict[str, dict[str, Any]] = {}
    for name, arm in rows.arms.items():
        arms[name] = _describe(arm)
        if name == settings.control:
            arms[name] |= _UNCHANGED
            continue
        bounds = statistics.bootstrap_interval(arm.moments, control.moments, drawn[name], drawn[settings.control])
        arms[name] |= _compare(arm, control, settings) | {"interval": bounds}
    others = [arms[name] for name in arms if name != settings.control]
    _correct(others)
    sizes = _compare_sizes(rows, settings)
    for name, arm_result in arms.items():
        is_control = name == settings.control
        arm_result["verdict"] = None if is_control else judge_arm(name, arm_result, len(others))
    return {
        "control": settings.control,
        "arms": arms,
        **sizes,
        "size_verdict": judge_sizes(sizes),
        "by_day": _by_day(rows, settings),
        "rows": rows.rows,
        "dropped": {
            "user_in_two_arms": {
                "users": rows.crossed_users,
                "rows": rows.crossed_rows,
                "first": list(rows.crossed_names),
            }
        },
        "covariate": settings.covariate,
        "users_without_covariate": rows.users_without_covariate,
        "expected_change": settings.expected_change,
        "methods": METHODS,
    }


_UNCHANGED = {
    "relative_change": 0.0,
    "interval": (0.0, 0.0),
    "p": 1.0,
    "p_corrected": 1.0,
    "p_unclustered": 1.0,
    "always_valid_interval": (0.0, 0.0),
    "cuped": None,
}
"""The control beside itself."""


def _describe(arm: ArmRows) -> dict[str, Any]:
    moments = arm.moments
    rate, interval, effect = clustered_rate(moments)
    return {
        "users": int(moments.users),
        "messages": int(moments.size),
        "reactions": int(moments.total),
        "rate": rate,
        "rate_interval": interval,
        "design_effect": effect,
        "user_correlation": statistics.user_correlation(moments),
        "activity_spread": statistics.activity_spread(moments),
        "guardrails": {name: {"mean": found.ratio, "rows": int(found.size)} for name, found in arm.guardrails.items()},
    }


def _compare(arm: ArmRows, control: ArmRows, settings: AbTest) -> dict[str, Any]:
    return {
        "relative_change": arm.moments.ratio / control.moments.ratio - 1.0,
        "p": statistics.difference_p(arm.moments, control.moments),
        "p_unclustered": statistics.unclustered_p(arm.moments, control.moments),
        "always_valid_interval": _always_valid(arm.moments, control.moments, settings.expected_change),
        "cuped": _adjust(arm, control, settings.expected_change),
        "guardrails": {
            name: {
                "mean": found.ratio,
                "rows": int(found.size),
                **_compare_guardrail(found, control.guardrails[name], settings.margins.get(name)),
            }
            for name, found in arm.guardrails.items()
        },
    }


def _always_valid(arm: Moments, control: Moments, spread: float) -> tuple[float, float | None]:
    """Bounds of the relative change; before there are some reactions in both arms, nothing is known."""
    estimate = statistics.log_change(arm, control)
    if estimate is None or not statistics.is_settled(arm, control):
        return NO_UPPER_BOUND
    return statistics.relative(statistics.always_valid_interval(estimate, spread))


def _adjust(arm: ArmRows, control: ArmRows, spread: float) -> dict[str, Any] | None:
    if arm.covariate is None or control.covariate is None:
        return None
    plain = statistics.log_change(arm.moments, control.moments)
    adjusted = statistics.adjust(arm.covariate, control.covariate)
    if plain is None or adjusted is None:
        return None
    return {
        "relative_change": math.expm1(adjusted.value),
        "interval": statistics.relative(adjusted.interval()),
        "p": adjusted.p,
        "always_valid_interval": statistics.relative(statistics.always_valid_interval(adjusted, spread)),
        "variance_reduction": 1.0 - (adjusted.error / plain.error) ** 2 if plain.error else 0.0,
    }


def _compare_guardrail(arm: Moments, control: Moments, margin: float | None) -> dict[str, Any]:
    size = abs(control.ratio)
    difference = Estimate(arm.ratio - control.ratio, math.hypot(arm.error, control.error))
    change = None
    if size > 0.0:  # linearised quotient
        change = Estimate(difference.value / size, math.hypot(arm.error, arm.ratio / size * control.error) / size)
    result: dict[str, Any] = {
        "difference": difference.value,
        "relative_change": change.value if change else None,
        "interval": change.interval() if change else None,
        "p": statistics.difference_p(arm, control),
        "margin": margin,
        "p_margin": None,
        "state": None,
    }
    if margin is not None:
        beyond = statistics.compare_to_margin(arm, control, margin)
        good_side = beyond.value if margin < 0.0 else -beyond.value
        # of a column that is 0 in both arms nothing got worse
        result["p_margin"] = statistics.one_sided_p(good_side, beyond.error) if any(beyond) else 0.0
        states = {"held": result["p_margin"] < BEYOND, "broken": result["p_margin"] > 1.0 - BEYOND}
        result["state"] = next((state for state, is_so in states.items() if is_so), "open")
    return result


def _correct(arms: Sequence[dict[str, Any]]) -> None:
    """Adds `p_corrected` to the love rate of all arms, one family, and to their guardrails, another."""
    guardrails = [found for arm in arms for found in arm["guardrails"].values()]
    for family in (arms, guardrails):
        for found, corrected in zip(family, statistics.holm([each["p"] for each in family]), strict=True):
            found["p_corrected"] = corrected


def _compare_sizes(rows: Rows, settings: AbTest) -> dict[str, Any]:
    users = {name: arm.moments.users for name, arm in rows.arms.items()}
    planned = {name: settings.shares.get(name, 1.0) for name in users}
    total = sum(planned.values())
    return {
        "sample_ratio_p": statistics.sample_ratio_p(list(users.values()), list(planned.values())),
        "sample_ratio": {
            name: {"users": int(count), "share": count / sum(users.values()), "planned": planned[name] / total}
            for name, count in users.items()
        },
    }


def _by_day(rows: Rows, settings: AbTest) -> list[dict[str, Any]]:
    """Each day's numbers of every arm, and what was known at its end."""
    days = sorted({day for arm in rows.arms.values() for day in arm.days})
    known: dict[str, Moments] = {}
    result = []
    for day in days:
        known |= {name: arm.days[day].until for name, arm in rows.arms.items() if day in arm.days}
        arms = {name: _day_of(day, name, arm, known, settings) for name, arm in rows.arms.items() if name in known}
        result.append({"day": day.isoformat(), "arms": arms})
    return result


def _day_of(day: date, name: str, arm: ArmRows, known: Mapping[str, Moments], settings: AbTest) -> dict[str, Any]:
    today = arm.days.get(day)
    messages, reactions = (today.messages, today.reactions) if today else (0.0, 0.0)
    found: dict[str, Any] = {
        "users": int(known[name].users),
        "messages": int(messages),
        "reactions": int(reactions),
        "rate": reactions / messages if messages else None,
        "relative_change": None,
        "always_valid_interval": NO_UPPER_BOUND,
    }
    control = known.get(settings.control)
    if name == settings.control:
        found |= {"relative_change": 0.0, "always_valid_interval": (0.0, 0.0)}
    elif control is not None and control.total > 0.0:
        found["relative_change"] = known[name].ratio / control.ratio - 1.0
        found["always_valid_interval"] = _always_valid(known[name], control, settings.expected_change)
    return found


# ---- planning


def plan_test(settings: AbPlan) -> dict[str, Any]:
    """The length that a test needs to find a change, and its power after each day, in plain values.

    A day brings `users_per_day`, of whom on later days a share was there before: users grow by those who are new. The
    more messages of one user, the more alike they are: waiting for the same users helps less than new ones.
    """
    from llamarl.report.page import check_page_path, write_page

    if settings.report is not None:
        check_page_path(settings.report)
    alpha = settings.alpha / (settings.arms - 1)
    days = [_plan_day(settings, day, alpha) for day in range(1, settings.max_days + 1)]
    enough = next((each for each in days if each["power"] >= settings.power), None)
    shown = days if enough is None else days[: max(14, 2 * enough["day"])]
    last = enough or days[-1]
    result: dict[str, Any] = {
        "days": enough["day"] if enough else None,
        "users": last["users"],
        "users_per_arm": math.ceil(last["users"] / settings.arms),
        "messages": last["messages"],
        "power": last["power"],
        "always_valid_power": last["always_valid_power"],
        "detectable_change": last["detectable_change"],
        "design_effect": last["design_effect"],
        "alpha_each": alpha,
        "settings": settings.model_dump(mode="json", exclude={"report"}),
        "curve": shown,
    }
    if settings.report is not None:
        from llamarl.feedback.ab_report import build_plan_page

        result["report"] = str(write_page(settings.report, build_plan_page(result)))
    return result


def _plan_day(settings: AbPlan, day: int, alpha: float) -> dict[str, Any]:
    users = settings.users_per_day * (1.0 + (1.0 - settings.returning) * (day - 1))
    messages = settings.users_per_day * settings.messages_per_user * day
    effect = settings.design_effect or statistics.design_effect(messages / users, settings.correlation, settings.spread)
    plan = statistics.Plan(settings.base_rate, settings.change, messages / settings.arms, effect)
    return {
        "day": day,
        "users": math.ceil(users),
        "messages": math.ceil(messages),
        "power": plan.power(alpha),
        "always_valid_power": plan.always_valid_power(abs(settings.change), alpha),
        "detectable_change": _detectable(plan, settings.power, alpha),
        "design_effect": effect,
    }


def _detectable(plan: statistics.Plan, power: float, alpha: float) -> float | None:
    """The smallest relative change in the planned direction that has the power; None where none has."""
    sign = math.copysign(1.0, plan.change)
    low, high = 0.0, min(10.0, 1.0 / plan.base_rate - 1.0) * 0.999 if sign > 0 else 0.999
    if replace(plan, change=sign * high).power(alpha) < power:
        return None
    for _ in range(40):
        middle = (low + high) / 2.0
        is_found = replace(plan, change=sign * middle).power(alpha) >= power
        low, high = (low, middle) if is_found else (middle, high)
    return sign * high
