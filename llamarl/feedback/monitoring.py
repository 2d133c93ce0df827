"""The monitors on files: what a policy's responses do more often than the control's.

result = monitor("new.json", Monitoring(control="control.json"))
result["level"], result["monitors"]           # the worst of "quiet", "warn" and "stop", and each reading
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.feedback.gate_settings import Monitoring
from llamarl.monitors.monitors import Monitors, Reading, Session
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
    now, control = read_sessions(responses), read_sessions(settings.control)
    wanted = [each for each in settings.monitors if each.signal != "turns" or _have_turns(now, control)]
    if "signals" in settings.model_fields_set and len(wanted) < len(settings.monitors):
        raise DataError(
            "signals: turns are of conversations, and one of the files has none; give rows with conversation_id, or "
            "whole conversations as messages"
        )
    monitors = Monitors(wanted, settings)
    readings = monitors.compare(*(monitors.estimate(monitors.measure(each)) for each in (now, control)))
    texts = [text for session in now for text in session.texts]
    return {
        "level": max((each.level for each in readings), key=LEVELS.index, default="quiet"),
        "responses": len(texts),
        "control_responses": sum(len(session.texts) for session in control),
        "monitors": [_describe(each, monitors, texts) for each in readings],
    }


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
