"""The state of a run at one moment, as the live view shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llamarl.report.timeline import Timeline


@dataclass(frozen=True, slots=True)
class ExecutorStatus:
    """The activity of one executor."""

    activity: str
    """The activity in words, for people: `generating 96 rows`, `judging`, `training`, `waiting for weights`."""
    busy_fraction: float | None = None
    """Share of recent time spent working, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run at one moment. None: not known yet."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    phase: str = ""
    """The next step's wait, in words: `generating 20 of 32 groups`, `training`; empty where not known."""
    version: int = 0
    """Policy version of the trainer."""
    reward: float | None = None
    """Mean reward of the latest step."""
    reward_history: Sequence[float | None] = ()
    """Mean reward of every step so far, the first step first. May be a list that grows: it is only read."""
    staleness_max: float | None = None
    staleness_mean: float | None = None
    tokens_per_second: float | None = None
    mismatch: float | None = None
    """Generator against trainer, as `train/mismatch_kl`."""
    weight_sync_seconds: float | None = None
    executors: Mapping[str, ExecutorStatus] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    """Prompts by fate: issued, trained, dropped, failed, ..."""
    message: str = ""
    """The latest warning or event; empty for none."""


def executors_now(timeline: Timeline, seconds: float = 10.0) -> dict[str, ExecutorStatus]:
    """The executors of a timeline: what each does now (`idle` between spans) and its busy share of the last seconds."""
    activities = timeline.activities()
    return {
        name: ExecutorStatus(activities.get(name, "idle"), fraction)
        for name, fraction in timeline.utilisation(seconds).items()
    }
