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
"""

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from llamarl.core import metric_names as names
from llamarl.core.config import Config
from llamarl.core.records import Group, Sample

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


class WatchConfig(Config):
    """Settings of the reward-hacking watch: its windows and its thresholds."""

    window: int = Field(default=10, ge=2)
    """Steps at the start, and now, that are compared."""
    threshold: float = Field(default=1.0, gt=0.0)
    """Standard deviations of single samples that count as a rise or a fall."""
    should_stop: bool = False
    """End the run with a checkpoint at the first alarm, instead of only saying so."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that looks like reward hacking."""

    version: int
    signal: str
    text: str
    """Message that says what moved, from where to where, and which samples to look at."""


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
    """

    def __init__(self, config: WatchConfig, weights: Mapping[str, float]) -> None:
        self.config, self._weights = config, {name: weight for name, weight in weights.items() if weight > 0}
        self._first: Signals = {}
        self._recent: deque[Signals] = deque(maxlen=config.window)
        self._num_steps = 0
        self._ringing: set[str] = set()

    def look(self, version: int, groups: Sequence[Group]) -> tuple[dict[str, float], list[Alarm]]:
        """Takes in one step's groups.

        Returns:
            Metrics (`watch/repetition`, `watch/alarms`: signals that ring now; from the second window on
            `watch/<signal>/drift`, in standard deviations since the first) and the alarms that have just begun.
        """
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
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`."""
        if state:
            self._num_steps, self._ringing = state["steps"], set(state["ringing"])
            self._first = _signals_from(state["first"])
            self._recent.extend(_signals_from(signals) for signals in state["recent"])

    def _signals(self, samples: Sequence[Sample]) -> Signals:
        texts = [sample.completion.text for sample in samples]
        values: dict[str, list[float]] = {
            "reward": [sample.reward for sample in samples if sample.reward is not None],
            "length": [float(len(sample.completion.token_ids)) for sample in samples],
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
                return len(sample.completion.token_ids)
            if signal == "repetition":
                return repetition(sample.completion.text)
            return (sample.reward or 0.0) - (verdict.score if verdict and verdict.score is not None else 0.0)

        places = [(badness(s), g.prompt.id, i) for g in groups for i, s in enumerate(g.samples)]
        worst = sorted(places, reverse=True)[:SAMPLES_SHOWN]
        return ", ".join(f"{prompt!r} sample {index}" for _, prompt, index in worst)


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
