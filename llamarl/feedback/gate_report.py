"""The report of the release gate: one page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import llamarl
from llamarl.feedback.gate_figures import build_love, build_monitors
from llamarl.feedback.gate_settings import Gate
from llamarl.feedback.monitor_report import MONITOR_COLUMNS, capitalize, monitor_rows, show_examples
from llamarl.report.figures import Tone
from llamarl.report.page import Page, Section, Table, Verdict
from llamarl.report.text import name_files

TITLES = {"blocked": "Blocked", "undecided": "Undecided", "passed": "Passed"}


def build_report(result: Mapping[str, Any], settings: Gate) -> Page:
    """The page of a decision, from what `run_gate` returns."""
    files = [str(result["candidate"]), str(result["control"])]
    return Page(
        title="Release gate",
        subtitle=" against ".join(name_files(files)),
        subtitle_note=" against ".join(files),
        parts=[_verdict(result), *_sections(result, settings)],
        footer_note=str(result["reward_model"]),
        footer=f"llamarl {llamarl.__version__}, feedback gate. P[Love]: {PurePath(result['reward_model']).name}.",
    )


def love_rows(love: Mapping[str, Any]) -> Iterator[list[str]]:
    """The table of what P[Love] predicts."""
    for name in ("control", "candidate"):
        policy = love[name]
        yield [name, f"{policy['score']:.3%}", _between(policy["interval"], "{:.3%}"), f"{policy['responses']:,}"]
    change = love["change"]
    yield ["change", f"{change['relative_change']:+.2%}", _between(change["relative_interval"], "{:+.2%}"), ""]


LOVE_COLUMNS = ("", "P[Love]", "95% interval", "responses")


def _verdict(result: Mapping[str, Any]) -> Verdict:
    outcome = result["outcome"]
    tone: Tone = "bad" if result["is_blocked"] else "good" if outcome == "passed" else "unsure"
    title = TITLES[outcome] + (
        " (an undecided candidate is blocked)" if tone == "bad" and outcome == "undecided" else ""
    )
    said = [*(result["reasons"] or [result["love"]["text"]]), *result["notes"]]
    text = ". ".join(capitalize(each) for each in said)
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
            Table(
                ["candidate" if name == "responses" else name for name in MONITOR_COLUMNS],
                list(monitor_rows(result["monitors"])),
            ),
        ],
    )
    yield from show_examples(result["monitors"])


def _between(interval: Sequence[float] | None, form: str) -> str:
    return "not defined" if interval is None else f"{form.format(interval[0])} to {form.format(interval[1])}"
