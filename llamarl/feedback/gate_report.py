"""The report of the release gate: one page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import llamarl
from llamarl.feedback.gate_figures import build_love, build_monitors
from llamarl.feedback.gate_settings import Gate
from llamarl.report.figures import Tone
from llamarl.report.page import Notes, Page, Section, Table, Verdict
from llamarl.report.text import format_number

MONITOR_COLUMNS = ("monitor", "control", "candidate", "times", "between", "says")
SAYS = {"quiet": "quiet", "warn": "warns", "stop": "stops"}
TITLES = {"blocked": "Blocked", "undecided": "Undecided", "passed": "Passed"}
SHARES = ("farewell", "love", "phrases", "question", "emoji")


def build_report(result: Mapping[str, Any], settings: Gate) -> Page:
    """The page of a decision, from what `run_gate` returns."""
    return Page(
        title="Release gate",
        subtitle=f"{result['candidate']} against {result['control']}",
        parts=[_verdict(result), *_sections(result, settings)],
        footer=f"llamarl {llamarl.__version__}, feedback gate. P[Love]: {result['reward_model']}.",
    )


def monitor_rows(monitors: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The table of what the monitors read."""
    for each in monitors:
        show = _percent if each["signal"] in SHARES else format_number
        low, high = each["interval"]
        between = f"{format_number(low)} to {'∞' if high is None else format_number(high)}"
        is_nothing = each["control"] == each["value"] == 0  # 0 of 0 is no number of times
        numbers = [show(each["control"]), show(each["value"]), "–" if is_nothing else format_number(each["ratio"])]
        yield [each["monitor"], *numbers, between, SAYS[each["level"]]]


def love_rows(love: Mapping[str, Any]) -> Iterator[list[str]]:
    """The table of what P[Love] predicts."""
    for name in ("control", "candidate"):
        policy = love[name]
        yield [name, f"{policy['score']:.3%}", _between(policy["interval"], "{:.3%}"), f"{policy['responses']:,}"]
    change = love["change"]
    yield ["change", f"{change['relative_change']:+.2%}", _between(change["relative_interval"], "{:+.2%}"), ""]


LOVE_COLUMNS = ("", "P[Love]", "95 % interval", "responses")


def _verdict(result: Mapping[str, Any]) -> Verdict:
    outcome = result["outcome"]
    tone: Tone = "bad" if result["is_blocked"] else "good" if outcome == "passed" else "unsure"
    title = TITLES[outcome] + (
        " (an undecided candidate is blocked)" if tone == "bad" and outcome == "undecided" else ""
    )
    said = [*(result["reasons"] or [result["love"]["text"]]), *result["notes"]]
    text = ". ".join(_capital(each) for each in said)
    return Verdict(tone, title, f"{text}.")


def _sections(result: Mapping[str, Any], settings: Gate) -> Iterator[Section]:
    love = result["love"]
    yield Section(
        "Predicted love rate",
        [
            f"Mean corrected P[Love] of the responses to {love['prompts']:,} prompts, the same for both policies. "
            f"Blocked where the whole interval of the change lies below {-settings.margin or 0.0:.1%}.",
            build_love(love, settings.margin),
            Table(LOVE_COLUMNS, list(love_rows(love))),
        ],
    )
    yield Section(
        "Monitors",
        [
            f"What the candidate's {result['responses']:,} responses do, in times of what the "
            f"control's {result['control_responses']:,} do. A monitor speaks up where the change is beyond its factor "
            "and its interval leaves out 1.",
            build_monitors(result["monitors"], settings.warn, settings.stop),
            Table(MONITOR_COLUMNS, list(monitor_rows(result["monitors"]))),
        ],
    )
    if loud := [each for each in result["monitors"] if each["examples"]]:
        shown = [part for each in loud for part in (f"{_capital(each['text'])}.", Notes(each["examples"]))]
        yield Section("Responses to look at", shown)


def _between(interval: Sequence[float] | None, form: str) -> str:
    return "not defined" if interval is None else f"{form.format(interval[0])} to {form.format(interval[1])}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
