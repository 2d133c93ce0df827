"""The report of the monitors on files: one page, of one comparison or of several in turn."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import llamarl
from llamarl.feedback.gate_figures import LEVELS, build_course, build_monitors
from llamarl.feedback.gate_settings import Monitoring
from llamarl.report.page import Notes, Page, Section, Table, Verdict
from llamarl.report.text import format_number, name_files

MONITOR_COLUMNS = ("monitor", "control", "responses", "times", "between", "says")
SAYS = {"quiet": "quiet", "warn": "warns", "stop": "stops"}
SAID = {"stop": "Beyond the stop, in times of the control", "warn": "Beyond the warning"}
SHARES = ("farewell", "love", "phrases", "question", "emoji")


def build_monitor_page(result: Mapping[str, Any], settings: Monitoring) -> Page:
    """The page of what `monitor_in_turn` returns."""
    looks = result["looks"]
    files = [each["name"] for each in looks]
    *names, control = name_files([*files, settings.control])
    shown, whole = (
        each[0] if len(looks) == 1 else f"{len(looks)} files, {each[0]} to {each[-1]}," for each in (names, files)
    )
    return Page(
        title="Monitors",
        subtitle=f"{shown} against {control}",
        subtitle_note=f"{whole} against {settings.control}",
        parts=[_verdict(result, names), *_sections(result, names, settings)],
        footer=f"llamarl {llamarl.__version__}, feedback monitor. All monitors together ring by chance in at most "
        f"{settings.chance:.1%} of such reports.",
    )


def monitor_rows(monitors: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Cells of `MONITOR_COLUMNS`."""
    for each in monitors:
        show = _percent if each["signal"] in SHARES else format_number
        low, high = each["interval"]
        between = f"{format_number(low)} to {'∞' if high is None else format_number(high)}"
        is_nothing = each["control"] == each["value"] == 0  # 0 of 0 is no number of times
        numbers = [show(each["control"]), show(each["value"]), "–" if is_nothing else format_number(each["ratio"])]
        yield [each["monitor"], *numbers, between, SAYS[each["level"]]]


def show_examples(monitors: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    """A section of responses that show what rang; none where nothing did."""
    if loud := [each for each in monitors if each["examples"]]:
        shown = [part for each in loud for part in (f"{capitalize(each['text'])}.", Notes(each["examples"]))]
        yield Section("Responses to look at", shown)


def capitalize(text: str) -> str:
    """The text with a capital at its beginning, the rest as it is."""
    return text[:1].upper() + text[1:]


def _verdict(result: Mapping[str, Any], names: Sequence[str]) -> Verdict:
    """What rang worst, then what warned, each with the first file in which it did."""
    first: dict[str, dict[str, str]] = {"stop": {}, "warn": {}, "quiet": {}}
    for name, look in zip(names, result["looks"], strict=True):
        for each in look["monitors"]:
            where = f" in {name}" if len(names) > 1 else ""
            first[each["level"]].setdefault(each["monitor"], f"{each['monitor']} {_times(each)}{where}")
    if result["level"] == "quiet":
        return Verdict("good", "No monitor speaks up", "The intervals say what they could not rule out.")
    first["warn"] = {monitor: said for monitor, said in first["warn"].items() if monitor not in first["stop"]}
    texts = [f"{SAID[level]}: {', '.join(first[level].values())}." for level in SAID if first[level]]
    title = {"stop": "Stop", "warn": "Warning"}[result["level"]]
    return Verdict(LEVELS[result["level"]], f"{title}: {', '.join(first[result['level']])}", " ".join(texts))


def _sections(result: Mapping[str, Any], names: Sequence[str], settings: Monitoring) -> Iterator[Section]:
    looks, last = result["looks"], result["monitors"]
    counts = (
        f"{result['responses']:,} responses, in times of what the control's {result['control_responses']:,} do. "
        "A monitor speaks up where the change is beyond its factor and its interval leaves out 1."
    )
    if len(looks) > 1:
        yield Section(
            "File by file",
            [
                "Each count in times of the control's, with its interval.",
                *build_course(looks, names, settings.warn, settings.stop),
                Table(
                    ["file", "responses", *(each["monitor"] for each in last), "says"], list(_look_rows(looks, names))
                ),
            ],
        )
    yield Section(
        "Monitors" if len(looks) == 1 else f"The last file, {names[-1]}",
        [
            counts,
            build_monitors(last, settings.warn, settings.stop),
            Table(MONITOR_COLUMNS, list(monitor_rows(last))),
        ],
    )
    yield from show_examples(last)


def _look_rows(looks: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[list[str]]:
    for name, look in zip(names, looks, strict=True):
        yield [name, f"{look['responses']:,}", *map(_times, look["monitors"]), SAYS[look["level"]]]


def _times(reading: Mapping[str, Any]) -> str:
    is_nothing = reading["ratio"] is None or reading["control"] == reading["value"] == 0  # 0 of 0 is no number of times
    return "–" if is_nothing else f"{format_number(reading['ratio'])}×"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"
