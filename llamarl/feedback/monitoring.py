"""The monitors on files: what a policy's responses do more often than the control's.

result = monitor("new.json", Monitoring(control="control.json"))
result["level"], result["monitors"]           # the worst of "quiet", "warn" and "stop", and each reading
monitor_in_turn(["week1.json", "week2.json"], Monitoring(control="control.json"))["looks"]    # one reading of each file
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.feedback.gate_settings import Monitoring
from llamarl.monitors.monitors import Estimates, Monitors, Reading, Session
from llamarl.monitors.responses import read_sessions

EXAMPLES = 3
"""Responses shown of each monitor that speaks up."""
EXAMPLE_CHARACTERS = 160
LEVELS = ("quiet", "warn", "stop")

Source = str | Path | Iterable[Mapping[str, Any]]


def monitor(responses: Source, settings: Monitoring) -> dict[str, Any]:
    """Compares the responses of a policy with the control's, in plain values.

    A monitor of turns that nobody asked for is left out where either side has no conversations.

    Args:
        responses: a file, or rows (`monitors.responses`).
        settings: the control, and what is counted.

    Raises:
        DataError: a bad file, or one without responses, or without the conversations whose turns are to be counted.
        ConfigError: a signal or a language that there is none of.
    """
    result = monitor_in_turn([responses], settings)
    return {key: result[key] for key in ("level", "responses", "control_responses", "monitors")}


def monitor_in_turn(sources: Sequence[Source], settings: Monitoring) -> dict[str, Any]:
    """Compares the responses of several sources, such as those of each week, with one control's.

    All of them together ring in at most `settings.chance` of the cases in which nothing has changed.

    Args:
        sources: at least one, each a file or rows.
        settings: the control, and what is counted.

    Returns:
        The readings of the last source as `monitor` returns them, `level` being the worst of all, and in `looks` those
        of each: its `name`, `level`, `responses` and `monitors`.

    Raises:
        DataError, ConfigError: as `monitor` does.
    """
    control = read_sessions(settings.control)
    sides = [read_sessions(source) for source in sources]
    wanted = [each for each in settings.monitors if each.signal != "turns" or _have_turns(control, *sides)]
    if "signals" in settings.model_fields_set and len(wanted) < len(settings.monitors):
        raise DataError(
            "signals: turns are of conversations, and one of the files has none; give rows with conversation_id, or "
            "whole conversations as messages"
        )
    monitors = Monitors(wanted, settings, looks=len(sides))
    against = monitors.estimate(monitors.measure(control))
    names = [str(source) if isinstance(source, str | Path) else f"source {n}" for n, source in enumerate(sources, 1)]
    looks = [_look(name, side, monitors, against) for name, side in zip(names, sides, strict=True)]
    return {
        "level": _worst(looks),
        "responses": looks[-1]["responses"],
        "control_responses": sum(len(session.texts) for session in control),
        "monitors": looks[-1]["monitors"],
        "looks": looks,
    }


def _look(name: str, sessions: Sequence[Session], monitors: Monitors, control: Estimates) -> dict[str, Any]:
    readings = monitors.compare(monitors.estimate(monitors.measure(sessions)), control)
    texts = [text for session in sessions for text in session.texts]
    described = [_describe(each, monitors, texts) for each in readings]
    return {"name": name, "level": _worst(described), "responses": len(texts), "monitors": described}


def _worst(found: Iterable[Mapping[str, Any]]) -> str:
    return max((each["level"] for each in found), key=LEVELS.index, default="quiet")


def _have_turns(*sides: Sequence[Session]) -> bool:
    return all(any(session.turns is not None for session in side) for side in sides)


def _describe(reading: Reading, monitors: Monitors, texts: Sequence[str]) -> dict[str, Any]:
    examples: Iterator[str] = iter(())
    if reading.level != "quiet":
        examples = (_shorten(texts[place]) for place in monitors.worst(reading.monitor, texts, EXAMPLES))
    return {**reading.as_dict(), "text": reading.describe(), "examples": list(examples)}


def _shorten(text: str) -> str:
    """The end of a response, where most of what monitors count stands."""
    text = " ".join(text.split())
    return text if len(text) <= EXAMPLE_CHARACTERS else "…" + text[-EXAMPLE_CHARACTERS:]
