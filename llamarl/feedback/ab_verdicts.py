"""The verdict of an A/B test in plain words."""

from collections.abc import Iterator, Mapping
from typing import Any

SIZES_DIFFER = 0.001
"""The p-value below which it isn't chance that arms aren't as large as planned; strict, since it is looked at often."""
SIGNIFICANT = 0.05


def judge_sizes(result: Mapping[str, Any]) -> dict[str, str]:
    """A verdict on the sizes of the arms: if not as planned, they hold other kinds of users, and nothing else counts.

    Args:
        result: with `sample_ratio_p` and `sample_ratio`.
    """
    p, sizes = result["sample_ratio_p"], result["sample_ratio"]
    text = ", ".join(
        f"{name} {each['users']:,} users ({each['share']:.2%}, planned {each['planned']:.2%})"
        for name, each in sizes.items()
    )
    if p < SIZES_DIFFER:
        return {
            "tone": "bad",
            "title": "The arms aren't as large as planned: don't trust this test",
            "text": f"{text}; by chance so far off with p = {format_p(p)}. Something sorts users: an assignment that "
            "is not random, a crash or a filter in one arm, rows that were lost. Find it before you read the rest.",
        }
    return {"tone": "good", "title": "The arms are as large as planned", "text": f"{text}; p = {format_p(p)}."}


def judge_arm(name: str, arm: Mapping[str, Any], num_arms: int) -> dict[str, str]:
    """The gist of one arm for a reader.

    Args:
        name: of the arm.
        arm: its results.
        num_arms: arms that are compared with the control.
    """
    change, interval = format_change(arm["relative_change"]), format_interval(arm["interval"])
    low, high = always = arm["always_valid_interval"]
    corrected = f", corrected for {num_arms} arms" if num_arms > 1 else ""
    p = f"p = {format_p(arm['p_corrected'])}{corrected}"
    did = "raised" if arm["relative_change"] > 0.0 else "lowered"
    if low > 0.0 or (high is not None and high < 0.0):
        found = {
            "tone": "good" if low > 0.0 else "bad",
            "title": f"{name} {did} the love rate",
            "text": f"By {change} ({interval}). The always-valid interval, {format_interval(always)}, leaves out no "
            "change, so that this holds however often you looked, and you may stop.",
        }
    elif arm["p_corrected"] < SIGNIFICANT and not _holds_no_change(arm["interval"]):
        found = {
            "tone": "unsure",
            "title": f"{name} {did} the love rate, if this is the planned end",
            "text": f"By {change} ({interval}; {p}). That holds for one look, on a day fixed before the test began. "
            f"The always-valid interval, {format_interval(always)}, still holds no change: if you stop because it "
            "looks good today, wait.",
        }
    else:
        is_border = arm["p_corrected"] < SIGNIFICANT
        border = " The p-value is small, but the interval holds no change: this is the border." if is_border else ""
        found = {
            "tone": "unsure",
            "title": f"No change of the love rate by {name} can be told from chance",
            "text": f"Measured {change}; changes of {interval} go with these data ({p}).{border} That is no proof "
            "that nothing changed.",
        }
    broken, unsure = (list(_find_guardrails(arm, state)) for state in ("broken", "open"))
    if broken:
        found["tone"] = "bad"
        found["title"] += f", and {' and '.join(name for name, _ in broken)} got worse"
    elif unsure and found["tone"] == "good":
        found["tone"] = "unsure"
    if worries := [text for _, text in (*broken, *unsure)]:
        found["text"] += f" Guardrails: {'; '.join(worries)}."
    return found


def _holds_no_change(interval: tuple[float, float | None]) -> bool:
    """True if the interval holds 0; near the border the p-value, computed in another way, may say otherwise."""
    low, high = interval
    return low <= 0.0 and (high is None or high >= 0.0)


def _find_guardrails(arm: Mapping[str, Any], state: str) -> Iterator[tuple[str, str]]:
    """Names of the guardrails that are broken, or not shown to hold, with what was measured."""
    for name, found in arm["guardrails"].items():
        if found["state"] == state:
            limit = f"{'fallen' if found['margin'] < 0 else 'risen'} by more than {abs(found['margin']):.1%}"
            measured = f"{format_change(found['relative_change'])}, {format_interval(found['interval'])}"
            yield name, f"{name} {'has' if state == 'broken' else 'may have'} {limit} ({measured})"


def format_change(change: float | None) -> str:
    """A relative change: `+9.7%`."""
    return "–" if change is None else f"{100 * change:+.1f}%"


def format_interval(interval: tuple[float, float | None] | None) -> str:
    """Bounds of a relative change: `+4.1 to +15.6%`."""
    if interval is None:
        return "–"
    low, high = interval
    return f"above {100 * low:+.1f}%" if high is None else f"{100 * low:+.1f} to {100 * high:+.1f}%"


def format_p(p: float) -> str:
    """A p-value with two digits that count."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def format_rate(rate: float | None) -> str:
    """A share in percent with digits for rare events: `1.92%`."""
    return "–" if rate is None else f"{100 * rate:.2f}%"
