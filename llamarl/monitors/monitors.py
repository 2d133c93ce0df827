"""Counts over responses, their change against the control's, and whether that is worth a warning or a stop.

    monitors = Monitors([MonitorConfig(signal="farewell")], Support())
    control = monitors.estimate(monitors.measure(control_sessions))
    for reading in monitors.compare(monitors.estimate(monitors.measure(sessions)), control):
        print(reading.level, reading.describe())

A session is what was drawn independently: all responses to one prompt, or one conversation. A monitor speaks up where
its quantity is beyond its factor of the control's *and* the interval of the change leaves out 1: `warn` from 1.5 times,
`stop` from 2 times by default.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llamarl.functional.change import (
    Change,
    Estimate,
    estimate_collision,
    estimate_mean,
    estimate_share,
    mean_change,
    share_change,
)
from llamarl.monitors.settings import MonitorConfig, Signal, Support, check_names
from llamarl.monitors.signals import asks_question, count_tokens, has_emoji, mark_ending, phrase_test
from llamarl.report.text import format_number

Level = Literal["quiet", "warn", "stop"]


class Session(NamedTuple):
    """Responses that were not drawn independently of each other."""

    texts: Sequence[str]
    """All responses to one prompt, or those of one conversation."""
    turns: int | None = None
    """Responses of the conversation; None where the texts are no conversation."""


Evidence = tuple[float, float] | Mapping[int, float]
"""The evidence of one session: a sum over its responses with their number, or marks of endings with weights."""
Measured = dict[str, list[Evidence]]
"""Evidence by monitor."""
Estimates = Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Reading:
    """A monitor's finding."""

    monitor: str
    signal: Signal
    value: float
    control: float
    change: Change
    """The change of the value against the control's, with its interval."""
    factor: float
    """The factor by which it went in a direction that the monitor watches, at least 1 wherever it went there."""
    level: Level
    limit: float
    """The factor of its level, or of the warning while it is quiet."""
    responses: int
    control_responses: int

    def describe(self) -> str:
        """One sentence with the numbers."""
        words = _WORDINGS[self.signal]
        ratio, low, high = map(format_number, (self.change.ratio, self.change.low, self.change.high))
        times = f"{ratio} times (between {low} and {high})"
        limit = f", {'beyond' if self.level != 'quiet' else 'within'} {self.limit:g} times"
        return (
            f"{self.monitor}: {words.show(self.value)} {words.noun}, {words.show(self.control)} of the control: "
            f"{times}{limit}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; an unbounded end of the interval is null."""
        bounds = (self.change.low, self.change.high)
        return {
            "monitor": self.monitor,
            "signal": self.signal,
            "level": self.level,
            "value": _finite(self.value),
            "control": _finite(self.control),
            "ratio": _finite(self.change.ratio),
            "interval": [_finite(bound) for bound in bounds],
            "limit": self.limit,
            "responses": self.responses,
            "control_responses": self.control_responses,
        }


class Monitors:
    """Several monitors, over the same responses."""

    def __init__(self, monitors: Sequence[MonitorConfig], support: Support, looks: int = 1) -> None:
        """Prepares them.

        Args:
            monitors: what they count, and when they speak up.
            support: how sure they must be.
            looks: how often they will compare, at most; the chance of a false alarm is shared among all looks.

        Raises:
            ConfigError, ValueError: two have one name.
        """
        check_names(monitors)
        self._monitors = {config.label: _KINDS[config.signal](config) for config in monitors}
        # A monitor that watches both directions shares its chance between them.
        self._chance = support.chance / max(1, len(monitors) * looks)
        self._floor = support.floor

    def measure(self, sessions: Sequence[Session]) -> Measured:
        """Each monitor's evidence of each session."""
        return {
            name: [found for session in sessions if (found := monitor.measure(session)) is not None]
            for name, monitor in self._monitors.items()
        }

    def estimate(self, measured: Mapping[str, Sequence[Evidence]]) -> dict[str, Estimate]:
        """The quantity of each monitor over all sessions."""
        return {name: monitor.estimate(measured[name]) for name, monitor in self._monitors.items()}

    def compare(self, now: Estimates, control: Estimates) -> list[Reading]:
        """The reading of each monitor; quiet where a side has too little to tell."""
        return [
            monitor.read(name, now[name], control[name], self._chance, self._floor)
            for name, monitor in self._monitors.items()
        ]

    def worst(self, monitor: str, texts: Sequence[str], most: int) -> list[int]:
        """Places of the texts that show a monitor's signal best, at most so many."""
        return self._monitors[monitor].worst(texts, most)


class _Monitor:
    """One monitor: a number of each response, its mean over all, and the directions that matter."""

    is_two_sided = False

    def __init__(self, config: MonitorConfig) -> None:
        self.config = config
        self.number = _number_of(config)

    def measure(self, session: Session) -> Evidence | None:
        return math.fsum(map(self.number, session.texts)), float(len(session.texts))

    def estimate(self, evidence: Sequence[Any]) -> Estimate:
        return estimate_mean(evidence)

    def change(self, now: Estimate, control: Estimate, chance: float, floor: float) -> Change:
        return mean_change(now, control, chance)

    def worst(self, texts: Sequence[str], most: int) -> list[int]:
        return sorted(range(len(texts)), key=lambda place: (-self.number(texts[place]), place))[:most]

    def read(self, name: str, now: Estimate, control: Estimate, chance: float, floor: float) -> Reading:
        change = self.change(now, control, chance / 2 if self.is_two_sided else chance, floor)
        factor = change.ratio if change.low > 1.0 else 1.0
        if self.is_two_sided and change.high < 1.0 and change.ratio > 0.0:
            factor = 1.0 / change.ratio
        level, limit = self._decide(factor)
        return Reading(
            name,
            self.config.signal,
            now.value,
            control.value,
            change,
            factor,
            level,
            limit,
            now.responses,
            control.responses,
        )

    def _decide(self, factor: float) -> tuple[Level, float]:
        warn, stop = self.config.warn, self.config.stop
        if stop is not None and factor > stop:
            return "stop", stop
        return ("warn" if factor > warn else "quiet"), warn


class _Share(_Monitor):
    """The share of responses that show something."""

    def estimate(self, evidence: Sequence[Any]) -> Estimate:
        return estimate_share(evidence)

    def change(self, now: Estimate, control: Estimate, chance: float, floor: float) -> Change:
        found = share_change(now, control, chance)
        return Change(now.value / max(control.value, floor), found.low, found.high)


class _Length(_Monitor):
    """The mean number of words."""

    is_two_sided = True


class _Turns(_Length):
    """The mean number of responses of a session."""

    def measure(self, session: Session) -> Evidence | None:
        return None if session.turns is None else (float(session.turns), 1.0)

    def worst(self, texts: Sequence[str], most: int) -> list[int]:
        return []


class _Ending(_Monitor):
    """The likeness of the last sentences of two prompts' responses."""

    def measure(self, session: Session) -> Evidence | None:
        weights: dict[int, float] = {}
        for text in session.texts:
            for mark, weight in mark_ending(text).items():
                weights[mark] = weights.get(mark, 0.0) + weight / len(session.texts)
        return weights

    def estimate(self, evidence: Sequence[Any]) -> Estimate:
        return estimate_collision(evidence, len(evidence))

    def change(self, now: Estimate, control: Estimate, chance: float, floor: float) -> Change:
        if control.value >= floor or math.isnan(control.value):
            return mean_change(now, control, chance)
        return mean_change(now, Estimate(floor, control.variance, control.clusters, control.responses), chance)

    def worst(self, texts: Sequence[str], most: int) -> list[int]:
        counts: dict[int, int] = {}
        marks = [mark_ending(text) for text in texts]
        for each in marks:
            for mark in each:
                counts[mark] = counts.get(mark, 0) + 1
        alike = [math.fsum(weight * counts[mark] for mark, weight in each.items()) for each in marks]
        return sorted(range(len(texts)), key=lambda place: (-alike[place], place))[:most]


def _number_of(config: MonitorConfig) -> Callable[[str], float]:
    """The number of a response that a monitor sums up: 1 or 0 for what it shows, or its length."""
    if config.signal in ("length", "turns", "ending"):
        return count_tokens
    tests: dict[str, Callable[[str], bool]] = {"question": asks_question, "emoji": has_emoji}
    test = tests.get(config.signal) or phrase_test(config)
    return lambda text: float(test(text))


_KINDS: Mapping[Signal, type[_Monitor]] = {
    "farewell": _Share,
    "love": _Share,
    "phrases": _Share,
    "question": _Share,
    "emoji": _Share,
    "ending": _Ending,
    "length": _Length,
    "turns": _Turns,
}


class _Wording(NamedTuple):
    show: Callable[[float], str]
    noun: str


def _percent(value: float) -> str:
    return format_number(value) if math.isnan(value) else f"{value:.2%}"


_WORDINGS: Mapping[Signal, _Wording] = {
    "farewell": _Wording(_percent, "of responses take leave"),
    "love": _Wording(_percent, "of responses have words of love"),
    "phrases": _Wording(_percent, "of responses have a phrase"),
    "question": _Wording(_percent, "of responses ask a question"),
    "emoji": _Wording(_percent, "of responses have an emoji"),
    "ending": _Wording(format_number, "is the chance that two responses end alike"),
    "length": _Wording(lambda value: f"{value:.1f}", "words a response"),
    "turns": _Wording(lambda value: f"{value:.2f}", "turns a session"),
}


def plain_estimates(estimates: Estimates) -> dict[str, list[float]]:
    """Estimates as plain JSON, for `read_estimates`."""
    return {
        name: [each.value, each.variance, each.clusters, each.responses, each.design_effect]
        for name, each in estimates.items()
    }


def read_estimates(plain: Mapping[str, Iterable[Any]]) -> dict[str, Estimate]:
    """Estimates from `plain_estimates`."""
    return {name: Estimate(*values) for name, values in plain.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
