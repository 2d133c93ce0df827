"""The release gate: may a candidate policy go to users, by what it answers to a fixed set of prompts?

    blocked      the predicted love rate falls by more than the margin, or a monitor passed its stop
    undecided    the interval of the predicted change holds both what is tolerated and what is not
    passed       neither

The prediction is the mean corrected P[Love] of the candidate against the control's, prompt by prompt, with a bootstrap
over prompts, as a relative change. So the authors of the method use it: to block a model that is predicted to lower
the love rate (Han et al., "Reinforcement Learning from User Feedback", arXiv 2505.14946).
"""

from collections.abc import Callable, Mapping
from typing import Any

from llamarl.core.errors import ConfigError
from llamarl.feedback.gate_settings import Gate
from llamarl.feedback.monitoring import monitor
from llamarl.feedback.policies import PolicyScores, find_doubts, score_policies
from llamarl.report.page import check_page_path, write_page

CANDIDATE, CONTROL = "candidate", "control"
Score = Callable[..., PolicyScores]
"""Scores policies: `feedback.policies.score_policies`."""


def run_gate(settings: Gate, score: Score = score_policies) -> dict[str, Any]:
    """Decides on a candidate, in plain values; writes the report where one is asked for.

    Args:
        settings: the files, the reward model, and when to block.
        score: scores both files with P[Love].

    Raises:
        DataError: a bad file, or candidate and control answered different prompts.
        ConfigError: no P[Love], or a report that is no page.
    """
    if settings.report is not None:
        check_page_path(settings.report)
    watched = monitor(settings.candidate, settings)
    policies = {CONTROL: settings.control, CANDIDATE: settings.candidate}
    scores = score(policies, settings.reward_model, device=settings.device)
    love = _compare(scores, settings)
    stops = [each for each in watched["monitors"] if each["level"] == "stop"]
    outcome = "blocked" if stops else love["outcome"]
    result = {
        "outcome": outcome,
        "is_blocked": outcome == "blocked" or (outcome == "undecided" and settings.undecided == "block"),
        "reasons": [*([love["text"]] if love["outcome"] != "passed" else []), *(each["text"] for each in stops)],
        "love": love,
        **{key: watched[key] for key in ("responses", "control_responses", "monitors")},
        "candidate": settings.candidate,
        "control": settings.control,
        "reward_model": settings.reward_model,
        "margin": settings.margin,
        "undecided": settings.undecided,
        "notes": find_doubts(settings.reward_model),
    }
    if settings.report is not None:
        from llamarl.feedback.gate_report import build_report

        result["report"] = str(write_page(settings.report, build_report(result, settings)))
    return result


def decide(interval: tuple[float, float] | None, margin: float) -> str:
    """`blocked` where the whole interval lies below -margin, `passed` where none of it does, else `undecided`."""
    if interval is None:
        return "undecided"
    low, high = interval
    return "blocked" if high < -margin else "passed" if low >= -margin else "undecided"


def _compare(scores: PolicyScores, settings: Gate) -> dict[str, Any]:
    """The two policies by P[Love]."""
    means, change = scores.summarize(settings.seed), scores.compare(CONTROL, settings.seed)[CANDIDATE]
    if means[CONTROL]["score"] <= 0.0:
        raise ConfigError("reward_model: it gives every response of the control a probability of 0; nothing compares")
    outcome = decide(change["relative_interval"], settings.margin)
    return {
        "outcome": outcome,
        "prompts": len(scores.prompts),
        **means,
        "change": change,
        "text": _say(outcome, change),
    }


def _say(outcome: str, change: Mapping[str, Any]) -> str:
    ends = change["relative_interval"]
    between = f" (between {ends[0]:+.2%} and {ends[1]:+.2%})" if ends else ""
    verb = {"blocked": "falls", "undecided": "may fall", "passed": "does not fall"}[outcome]
    return f"the predicted love rate {verb} by more than is tolerated: {change['relative_change']:+.2%}{between}"
