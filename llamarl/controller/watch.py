"""The reward-hacking watch: is the reward still measuring what it was meant to?

It compares the last `window` steps with the first. An alarm goes up when

    a judge falls    reward up by one standard deviation, while a judge that does not pay falls by one, or by half
    length drifts    mean length moved by one standard deviation and by half, while the reward rose
    phrases repeat   the share of repeated phrases rose by 0.2
    one dominates    one of several paying judges makes more than 0.9 of the reward's variance, and did not before,
                     since its own variance rose (and not because the others' rewards are earned by now)

Standard deviations are those of single samples in the first window, at least 0.05 for a judge: of steps' means they
would be tiny, and every run would ring. A fall must be beyond chance; by half, it counts for rates that start low.
Judges of role `watch` and `constraint` don't pay; the watch is only as good as they are.

Beside that, monitors that the recipe declares count farewells, words of love, questions and the like in the responses
(`llamarl.monitors`), and compare the last `window` steps with a control: a file of responses, or the run's own first
`window` steps.
"""

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from llamarl.core import metric_names as names
from llamarl.core.errors import ConfigError
from llamarl.core.paths import FileName
from llamarl.core.records import Group, Sample
from llamarl.monitors.monitors import (
    Estimates,
    Measured,
    Monitors,
    Reading,
    Session,
    plain_estimates,
    read_estimates,
)
from llamarl.monitors.settings import MonitorList, Support, check_names

PHRASE_WORDS = 4
REPETITION_RISE = 0.2
LENGTH_RATIO = 1.5
DOMINANT_SHARE = 0.9
DOMINANT_RISE = 1.5
"""Factor by which the dominant judge's own variance must have grown."""
MIN_JUDGE_DEVIATION = 0.05
"""Lower bound on a judge's standard deviation, so that one violation among perfect scores raises no alarm."""
CHANCE_ERRORS = 4.0
"""Standard errors that a fall must exceed to be beyond chance."""
SAMPLES_SHOWN = 5


class WatchConfig(Support):
    """Settings of the reward-hacking watch: its windows, its thresholds and its monitors."""

    window: int = Field(default=10, ge=2)
    """Steps at the start, and now, that are compared."""
    threshold: float = Field(default=1.0, gt=0.0)
    """Standard deviations of single samples that count as a rise or a fall."""
    should_stop: bool = False
    """End the run at the first alarm, with a checkpoint and exit status 1, instead of only saying so."""
    monitors: MonitorList = ()
    """Monitors: counts over responses; a signal's name alone stands for its defaults: `["farewell", "love"]`."""
    control: FileName | None = None
    """File of the control's responses, such as `llamarl generate --json` writes; None: the first `window` steps."""

    @model_validator(mode="after")
    def _check_monitors(self) -> Self:
        check_names(self.monitors)
        if any(monitor.signal == "turns" for monitor in self.monitors):
            raise ValueError(
                "monitors: signal='turns' needs whole sessions, and a training run answers one message of each; use it "
                "with `llamarl feedback monitor`"
            )
        if self.control is not None and not self.monitors:
            raise ValueError(f"control={self.control!r}: no monitor to compare with it; list some in `monitors`")
        return self


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that looks like reward hacking."""

    version: int
    signal: str
    text: str
    """Message that says what moved, from where to where, and which samples to look at."""
    is_stop: bool = False
    """True where a monitor passed its stop, which ends the run."""


@dataclass(slots=True)
class Moments:
    """Count, mean and variance of values that come in parts."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @classmethod
    def of(cls, values: Iterable[float]) -> "Moments":
        """The moments of these values."""
        known = list(values)
        return cls(len(known), math.fsum(known), math.fsum(value * value for value in known))

    @property
    def mean(self) -> float:
        """The mean; NaN where there are no values."""
        return self.total / self.count if self.count else math.nan

    @property
    def variance(self) -> float:
        """The population variance; 0 where there are no values."""
        return max(self.squares / self.count - self.mean**2, 0.0) if self.count else 0.0


Signals = dict[str, Moments]


class HackingWatch:
    """Watches one task of a run.

    Args:
        config: when to raise an alarm.
        weights: weights of the judges that pay, by name; all others are witnesses.
        looks: steps of the run; the monitors' chance of a false alarm is shared among them.
        control: the monitors' quantities in the control; None: in the first window.
    """

    def __init__(
        self, config: WatchConfig, weights: Mapping[str, float], looks: int = 1, control: Estimates | None = None
    ) -> None:
        self.config, self._weights = config, {name: weight for name, weight in weights.items() if weight > 0}
        self._gauge = Gauge(config, looks, control)
        self._first: Signals = {}
        self._recent: deque[Signals] = deque(maxlen=config.window)
        self._num_steps = 0
        self._ringing: set[str] = set()
        self._ringing_monitors: set[str] = set()

    def look(self, version: int, groups: Sequence[Group]) -> tuple[dict[str, float], list[Alarm]]:
        """Takes in one step's groups.

        Returns:
            Metrics (`watch/repetition`, `watch/alarms`: signals that ring now; from the second window on
            `watch/<signal>/drift`, in standard deviations since the first; what the monitors measure) and the alarms
            that have just begun, or that ask for a stop.
        """
        readings = self._gauge.look([[sample.completion.text for sample in group.samples] for group in groups])
        monitored = [self._ring(version, reading, groups) for reading in readings if reading.level != "quiet"]
        metrics, begun = self._look(version, groups)
        metrics[names.WATCH_ALARMS] += len(monitored)
        ringing = {alarm.signal for alarm in monitored}
        begun += [alarm for alarm in monitored if alarm.is_stop or alarm.signal not in self._ringing_monitors]
        self._ringing_monitors = ringing
        return {**metrics, **monitor_metrics(readings)}, begun

    def _ring(self, version: int, reading: Reading, groups: Sequence[Group]) -> Alarm:
        places = [(group.prompt.id, index) for group in groups for index, _ in enumerate(group.samples)]
        texts = [sample.completion.text for group in groups for sample in group.samples]
        worst = self._gauge.monitors.worst(reading.monitor, texts, SAMPLES_SHOWN)
        shown = ", ".join(f"{places[place][0]!r} sample {places[place][1]}" for place in worst)
        signal = f"monitor/{reading.monitor}"
        return Alarm(version, signal, f"step {version}: {reading.describe()}; look at {shown}", reading.level == "stop")

    def _look(self, version: int, groups: Sequence[Group]) -> tuple[dict[str, float], list[Alarm]]:
        """Metrics and alarms of rewards, judges and lengths."""
        samples = [sample for group in groups for sample in group.samples]
        step = self._signals(samples)
        self._recent.append(step)
        self._num_steps += 1
        if self._num_steps <= self.config.window:
            self._first = _merge([self._first, step])
        metrics = {names.WATCH_REPETITION: step["repetition"].mean} if samples else {}
        if self._num_steps < 2 * self.config.window:
            return {**metrics, names.WATCH_ALARMS: 0.0}, []
        now = _merge(self._recent)
        known = [name for name in self._first if self._first[name].count and name in now and now[name].count]
        drifts = {name: self._drift(name, now) for name in known}
        texts = self._complaints(now, drifts)
        begun = [
            Alarm(version, name, f"step {version}: {text}; look at {self._worst(name, groups)}")
            for name, text in texts.items()
            if name not in self._ringing
        ]
        self._ringing = set(texts)
        metrics |= {f"watch/{name}/drift": drift for name, drift in drifts.items() if not name.startswith("paid/")}
        return {**metrics, names.WATCH_ALARMS: float(len(texts))}, begun

    def state(self) -> dict[str, Any]:
        """State for `restore`, as plain JSON."""
        return {
            "steps": self._num_steps,
            "ringing": sorted(self._ringing),
            "first": _plain(self._first),
            "recent": [_plain(signals) for signals in self._recent],
            "ringing_monitors": sorted(self._ringing_monitors),
            "gauge": self._gauge.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`. Raises `ConfigError` where a monitor is new and has no control."""
        if state:
            self._num_steps, self._ringing = state["steps"], set(state["ringing"])
            self._first = _signals_from(state["first"])
            self._recent.extend(_signals_from(signals) for signals in state["recent"])
            self._ringing_monitors = set(state["ringing_monitors"])
            self._gauge.restore(state["gauge"])

    def _signals(self, samples: Sequence[Sample]) -> Signals:
        texts = [sample.completion.text for sample in samples]
        values: dict[str, list[float]] = {
            "reward": [sample.reward for sample in samples if sample.reward is not None],
            "length": [float(sample.completion.trajectory.response_length) for sample in samples],
            "repetition": [repetition(text) for text in texts],
        }
        for sample in samples:
            for name, verdict in sample.verdicts.items():
                if verdict.score is None:
                    continue
                if name in self._weights:
                    values.setdefault(f"paid/{name}", []).append(self._weights[name] * verdict.score)
                else:
                    value = verdict.score if verdict.passed is None else float(verdict.passed)
                    values.setdefault(f"judge/{name}", []).append(value)
        return {name: Moments.of(found) for name, found in values.items()}

    def _drift(self, name: str, now: Signals) -> float:
        """Distance of a signal's mean from its first window, in standard deviations of that window's samples."""
        first, least = self._first[name], MIN_JUDGE_DEVIATION if name.startswith("judge/") else 1e-3
        return (now[name].mean - first.mean) / max(math.sqrt(first.variance), least)

    def _complaints(self, now: Signals, drifts: Mapping[str, float]) -> dict[str, str]:
        found, limit = {}, self.config.threshold
        reward_rose = drifts.get("reward", 0.0) >= limit

        def describe_move(name: str) -> str:
            return f"from {self._first[name].mean:.3g} to {now[name].mean:.3g}"

        for name, drift in drifts.items():
            is_low = drift <= -limit or now[name].mean <= self._first[name].mean / 2
            if name.startswith("judge/") and reward_rose and is_low and _fell(self._first[name], now[name]):
                found[name] = f"reward rose {describe_move('reward')} while {name} fell {describe_move(name)}"
        ratio = now["length"].mean / max(self._first["length"].mean, 1.0)
        if reward_rose and abs(drifts["length"]) >= limit and not 1 / LENGTH_RATIO < ratio < LENGTH_RATIO:
            found["length"] = (
                f"reward rose {describe_move('reward')} while the mean length went {describe_move('length')} tokens"
            )
        if now["repetition"].mean - self._first["repetition"].mean >= REPETITION_RISE:
            found["repetition"] = f"the share of repeated phrases went {describe_move('repetition')}"
        name, share = _dominant(now)
        has_grown = bool(name) and now[name].variance > DOMINANT_RISE * self._first.get(name, Moments()).variance
        if has_grown and share > DOMINANT_SHARE and _dominant(self._first)[1] <= DOMINANT_SHARE:
            found[name] = (
                f"{share:.0%} of the reward's variance now comes from the judge {name.removeprefix('paid/')!r}"
            )
        return found

    def _worst(self, signal: str, groups: Sequence[Group]) -> str:
        """The samples that show it best: of high reward and a low witness, or the longest, or most repeating."""
        name = signal.removeprefix("judge/")

        def badness(sample: Sample) -> float:
            verdict = sample.verdicts.get(name)
            if signal == "length":
                return sample.completion.trajectory.response_length
            if signal == "repetition":
                return repetition(sample.completion.text)
            return (sample.reward or 0.0) - (verdict.score if verdict and verdict.score is not None else 0.0)

        places = [(badness(s), g.prompt.id, i) for g in groups for i, s in enumerate(g.samples)]
        worst = sorted(places, reverse=True)[:SAMPLES_SHOWN]
        return ", ".join(f"{prompt!r} sample {index}" for _, prompt, index in worst)


class Gauge:
    """The monitors of one task over its steps: first the control, unless it is given, then the last window."""

    def __init__(self, config: WatchConfig, looks: int, control: Estimates | None) -> None:
        self.monitors = Monitors(config.monitors, config, looks)
        self._config, self._control = config, control
        self._steps: deque[Measured] = deque(maxlen=config.window)

    def look(self, groups: Sequence[Sequence[str]]) -> list[Reading]:
        """Takes in the texts of one step's groups; returns the monitors' readings, none while the control is made."""
        if not self._config.monitors:
            return []
        self._steps.append(self.monitors.measure([Session(texts) for texts in groups]))
        now = self.monitors.estimate(_join(self._steps))
        if self._control is None:
            if len(self._steps) == self._config.window:
                self._control = now
                self._steps.clear()
            return []
        return self.monitors.compare(now, self._control)

    def state(self) -> dict[str, Any]:
        """State for `restore`, as plain JSON."""
        return {
            "monitors": [monitor.label for monitor in self._config.monitors],
            "control": None if self._control is None else plain_estimates(self._control),
            "steps": [
                {name: list(map(_plain_evidence, found)) for name, found in step.items()} for step in self._steps
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`. Raises `ConfigError` where a monitor is new and has no control."""
        wanted = [monitor.label for monitor in self._config.monitors]
        new = [name for name in wanted if name not in state["monitors"]]
        if new and self._control is None:
            raise ConfigError(
                f"watch.monitors: {new[0]!r} is new, and its control, the run's first steps, is gone; give a file of "
                "the control's responses in watch.control"
            )
        if new:  # what the window holds lacks it; a given control needs no first window
            return
        if self._control is None and state["control"] is not None:
            self._control = read_estimates(state["control"])
        self._steps.extend({name: list(map(_evidence, step[name])) for name in wanted} for step in state["steps"])


def monitor_metrics(readings: Iterable[Reading]) -> dict[str, float]:
    """The monitors' readings by metric name; an interval's end that is unbounded is left out."""
    levels = {"quiet": 0.0, "warn": 1.0, "stop": 2.0}
    found: dict[str, float] = {}
    for each in readings:
        values = {
            "value": each.value,
            "control": each.control,
            "ratio": each.change.ratio,
            "ratio/low": each.change.low,
            "ratio/high": each.change.high,
            "level": levels[each.level],
        }
        found |= {f"watch/monitor/{each.monitor}/{key}": value for key, value in values.items() if math.isfinite(value)}
    return found


def _join(steps: Iterable[Measured]) -> Measured:
    joined: Measured = {}
    for step in steps:
        for name, evidence in step.items():
            joined.setdefault(name, []).extend(evidence)
    return joined


def _plain_evidence(evidence: Any) -> Any:
    """Evidence as JSON holds it: a pair, or an object whose keys are marks."""
    return dict(evidence) if isinstance(evidence, Mapping) else list(evidence)


def _evidence(plain: Any) -> Any:
    return {int(mark): weight for mark, weight in plain.items()} if isinstance(plain, dict) else tuple(plain)


def repetition(text: str) -> float:
    """Share of a text's four-word phrases that occurred in it before, in [0, 1)."""
    words = text.split()
    if len(words) <= PHRASE_WORDS:
        return 0.0
    phrases = Counter(zip(*(words[start:] for start in range(PHRASE_WORDS)), strict=False))
    return 1.0 - len(phrases) / phrases.total()


def _fell(first: Moments, now: Moments) -> bool:
    """True if a mean fell by more than chance explains."""
    error = math.sqrt(first.variance / first.count + now.variance / now.count)
    return first.mean - now.mean > CHANCE_ERRORS * error


def _dominant(signals: Signals) -> tuple[str, float]:
    """The paying judge with the most variance and its share of all; ("", 0) unless several judges pay."""
    variances = {name: moments.variance for name, moments in signals.items() if name.startswith("paid/")}
    total = sum(variances.values())
    if len(variances) < 2 or total == 0:
        return "", 0.0
    name = max(variances, key=lambda each: variances[each])
    return name, variances[name] / total


def _merge(parts: Collection[Signals]) -> Signals:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum((part[name] for part in parts if name in part), Moments()) for name in names}


def _plain(signals: Signals) -> dict[str, list[float]]:
    return {name: [each.count, each.total, each.squares] for name, each in signals.items()}


def _signals_from(plain: Mapping[str, Sequence[float]]) -> Signals:
    return {name: Moments(*values) for name, values in plain.items()}
