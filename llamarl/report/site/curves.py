"""Every metric of a run in a chart: which group and chart it belongs to, and its values by step."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamarl.core import metric_names as names
from llamarl.report.colours import colour_indices
from llamarl.report.figures import DIGITS
from llamarl.report.files import Record
from llamarl.report.names import describe

if TYPE_CHECKING:
    import numpy as np

GROUPS = (
    "Learning",
    "Constraints",
    "Budget",
    "Policy",
    "Completions",
    "Off-policy",
    "Judges",
    "Watch",
    "Speed",
    "Prompts",
    "Other",
)
MAX_POINTS = 2000
"""Points of a curve in a page; longer runs are shown as means of several steps, with their extremes."""
MONITOR_RATIOS = "Monitors, times the control"

_FIXED: dict[str, tuple[str, str, str]] = {
    names.REWARD: ("Learning", "Reward", "training"),
    names.HELD_OUT_REWARD: ("Learning", "Reward", "held-out"),
    names.REWARD_STD: ("Learning", "Reward spread", "spread"),
    names.CALIBRATED_REWARD: ("Learning", "Reward that trains", "calibrated"),
    names.REGULARIZED_REWARD: ("Learning", "Reward that trains", "regularised"),
    names.BEST_REWARD: ("Learning", "Reward that trains", "best of group"),
    names.LOSS: ("Learning", "Loss", "training"),
    names.HELD_OUT_LOSS: ("Learning", "Loss", "held-out"),
    names.ACCURACY: ("Learning", "Accuracy", "training"),
    names.HELD_OUT_ACCURACY: ("Learning", "Accuracy", "held-out"),
    names.HELD_OUT_AUROC: ("Learning", "AUROC", "held-out"),
    names.MARGIN: ("Learning", "Margin", "training"),
    names.HELD_OUT_MARGIN: ("Learning", "Margin", "held-out"),
    names.KEPT: ("Learning", "Share that trains", "kept"),
    names.VIOLATIONS: ("Constraints", "Violations", "any constraint"),
    names.SATISFIED: ("Constraints", "Satisfied", "training"),
    names.HELD_OUT_SATISFIED: ("Constraints", "Satisfied", "held-out"),
    names.KL_REFERENCE: ("Policy", "KL to reference", "KL"),
    names.SEQUENCE_KL: ("Policy", "KL of completions", "KL"),
    names.ENTROPY: ("Policy", "Entropy", "entropy"),
    names.GRAD_NORM: ("Policy", "Gradient norm", "norm"),
    names.CLIP_LOW: ("Policy", "Clipped tokens", "low"),
    names.CLIP_HIGH: ("Policy", "Clipped tokens", "high"),
    names.CLIP_DELTA: ("Policy", "Clipped tokens", "dual"),
    names.RESPONSE_LENGTH: ("Completions", "Completion length", "mean"),
    names.RESPONSE_LENGTH_MAX: ("Completions", "Completion length", "longest"),
    names.HELD_OUT_LENGTH: ("Completions", "Completion length", "held-out"),
    names.TRUNCATED: ("Completions", "Truncated", "truncated"),
    names.FRAC_ZERO_STD: ("Completions", "Groups without signal", "share"),
    names.WATCH_REPETITION: ("Completions", "Repeated phrases", "share"),
    names.STALENESS_MAX: ("Off-policy", "Staleness", "oldest token"),
    names.STALENESS_MEAN: ("Off-policy", "Staleness", "mean"),
    names.MIXED_VERSIONS: ("Off-policy", "Mixed versions", "share"),
    names.MISMATCH_KL: ("Off-policy", "Mismatch", "KL"),
    names.MISMATCH_PROB_MAX: ("Off-policy", "Mismatch", "largest gap"),
    names.PROBE_GAP: ("Off-policy", "Weight proof", "probe gap"),
    names.RATIO_MEAN: ("Off-policy", "Ratio", "mean"),
    names.TOKENS_PER_SECOND: ("Speed", "Throughput", "tokens/s"),
    names.TIME_STEP: ("Speed", "Seconds of a step", "whole step"),
    names.TIME_GENERATE: ("Speed", "Seconds of a step", "generate"),
    names.TIME_JUDGE: ("Speed", "Seconds of a step", "judge"),
    names.TIME_TRAIN: ("Speed", "Seconds of a step", "train"),
    names.TIME_WAIT_BATCH: ("Speed", "Seconds of a step", "wait"),
    names.TIME_SYNC: ("Speed", "Weight sync", "sync"),
    names.DATA_ISSUED: ("Prompts", "Prompts", "issued"),
    names.DATA_FINISHED: ("Prompts", "Prompts", "waiting to train"),
    names.DATA_TRAINED: ("Prompts", "Prompts", "trained"),
    names.DATA_DROPPED: ("Prompts", "Prompts", "dropped"),
    names.DATA_FAILED: ("Prompts", "Prompts", "failed"),
    names.UNSCORED: ("Judges", "Unscored samples", "share"),
    names.WATCH_ALARMS: ("Watch", "Alarms", "alarms"),
}
"""Metric -> group, chart, label of its curve."""
_JUDGE = {
    "mean": ("Judges", "Mean score"),
    "pass_rate": ("Judges", "Pass rate"),
    "violation_rate": ("Constraints", "Violations"),
    "abstain_rate": ("Judges", "Abstained"),
    "error_rate": ("Judges", "Failed verdicts"),
    "latency_p95": ("Judges", "Latency, 95th percentile"),
    "canary_error_rate": ("Judges", "Canaries misjudged"),
    "cost": ("Judges", "Cost"),
}
_BUDGET = {"used": "Trained share", "slack": "Slack", "sampled": "Sampled share", "margin": "Margin of groups"}
_TASK_KEY = re.compile(r"task/(?P<task>[^/]+)/(?P<rest>.+)$")
_JUDGE_KEY = re.compile(rf"(?P<eval>eval/)?judge/(?P<name>.+)/(?P<what>{'|'.join(_JUDGE)})$")
_BUDGET_KEY = re.compile(
    rf"(?P<eval>eval/)?algorithm/(budget/(?P<budget>[^/]+)/)?(?P<what>{'|'.join(_BUDGET)})/(?P<name>.+)$"
)
_MEMORY_KEY = re.compile(rf"{names.PROCESS_MEMORY}/(?P<name>.+)$")
_MONITOR_KEY = re.compile(r"watch/monitor/(?P<name>[^/]+)/(?P<what>ratio|level)$")
_SCALES = {"bytes": "bytes", "share": "%"}
"""Units that stand at the numbers of the axis."""
_LOG = frozenset({names.MISMATCH_KL, names.MISMATCH_PROB_MAX})
_NUMBERS = frozenset({int, float, type(None)})
_HIDDEN = frozenset({"step", "time", names.POLICY_VERSION})


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric in a chart."""

    key: str
    metric: str
    """The key without its task."""
    label: str
    colour: str
    """The name that its colour belongs to: of a task, a judge, or its own."""
    is_points: bool
    """True for evaluations, which stand between two steps and are no line."""


@dataclass(slots=True)
class Chart:
    """Curves that share an axis."""

    group: str
    title: str
    curves: list[Curve] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The chart as the page's script reads it."""
        colours = colour_indices(curve.colour for curve in self.curves)
        metric = describe(self.curves[0].key)
        return {
            "id": f"{self.group}/{self.title}",
            "group": self.group,
            "title": self.title,
            **describe_axis(self.curves[0].key),
            "meaning": metric.meaning,
            "better": metric.better,
            "legend": len(self.curves) > 1 or self._needs_label(self.curves[0]),
            "log": any(curve.metric in _LOG for curve in self.curves),
            "curves": [
                {
                    "key": curve.key,
                    "label": curve.label,
                    "colour": colours[curve.colour],
                    "points": curve.is_points,
                    "meaning": describe(curve.key).meaning,
                }
                for curve in self.curves
            ],
        }

    def _needs_label(self, only: Curve) -> bool:
        """False where the title says it already."""
        return only.is_points or (only.key not in _FIXED and only.label.lower() != self.title.lower())


def describe_axis(key: str) -> dict[str, str]:
    """The unit of a metric as the page's script reads it: beside the title, or as the scale of the numbers."""
    unit = describe(key).unit
    return {"unit": "" if unit in _SCALES else unit, "scale": _SCALES.get(unit, "")}


def charts_of(keys: Iterable[str]) -> list[Chart]:
    """A place for every metric: charts in the order of `GROUPS`, within a group as they are listed above."""
    charts: dict[tuple[str, str], Chart] = {}
    ranks = {key: rank for rank, key in enumerate(_FIXED)}
    for key in sorted(set(keys) - _HIDDEN, key=lambda key: (_rank(key, ranks), key.startswith("task/"), key)):
        group, title, curve = _place(key)
        charts.setdefault((group, title), Chart(group, title)).curves.append(curve)
    return sorted(charts.values(), key=lambda chart: GROUPS.index(chart.group))


def _rank(key: str, ranks: Mapping[str, int]) -> int:
    match = _TASK_KEY.match(key)
    return ranks.get(match["rest"], len(ranks)) if match else ranks.get(key, len(ranks))


def _place(key: str) -> tuple[str, str, Curve]:
    """Group, title of the chart, and the curve of one metric."""
    match = _TASK_KEY.match(key)
    task, rest = (match["task"], match["rest"]) if match else ("", key)
    is_evaluation = rest.startswith("eval/")
    if judge := _JUDGE_KEY.match(rest):
        group, title = _JUDGE[judge["what"]]
        label = f"{task}: {judge['name']}" if task else judge["name"]
        shown = f"{label}, held-out" if judge["eval"] else label
        return group, title, Curve(key, rest, shown, label, is_evaluation)
    if budget := _BUDGET_KEY.match(rest):
        parts = [task, f"q+ {budget['budget']}" if budget["budget"] else "", budget["name"]]
        label = ": ".join(filter(None, parts))
        shown = f"{label}, held-out" if budget["eval"] else label
        return "Budget", _BUDGET[budget["what"]], Curve(key, rest, shown, label, is_evaluation)
    if monitor := _MONITOR_KEY.match(rest):
        title = MONITOR_RATIOS if monitor["what"] == "ratio" else "Monitors that ring"
        label = f"{task}: {monitor['name']}" if task else monitor["name"]
        return "Watch", title, Curve(key, rest, label, label, False)
    if memory := _MEMORY_KEY.match(rest):
        return "Speed", "Memory of processes", Curve(key, rest, memory["name"], memory["name"], False)
    if rest in _FIXED:
        group, title, label = _FIXED[rest]
        if task:
            if label not in ("training", "held-out") and _shares_chart(rest):
                title = f"{title}, {label}"
            name = f"{task}, held-out" if is_evaluation else task
            return group, f"{title} by task", Curve(key, rest, name, task, is_evaluation)
        return group, title, Curve(key, rest, label, label, is_evaluation)
    title = describe(rest).title
    group = "Watch" if rest.startswith("watch/") else "Budget" if "budget" in rest else "Other"
    own = task or ("held-out" if is_evaluation else title)
    return group, f"{title} by task" if task else title, Curve(key, rest, own, own, is_evaluation)


def _shares_chart(key: str) -> bool:
    group, title, _ = _FIXED[key]
    return sum((g, t) == (group, title) for g, t, _ in _FIXED.values()) > 1


def tabulate(records: Sequence[Record], max_points: int = MAX_POINTS, *, has_extremes: bool = True) -> dict[str, Any]:
    """The values of all metrics by step, a record of an evaluation merged with its step's.

    Args:
        records: of `metrics.jsonl`.
        max_points: the most points of a curve; of more steps, each point is the mean of several.
        has_extremes: False leaves out `low` and `high`, two thirds of what a long run's page has to read.

    Returns:
        `steps`, `values` (metric -> a value or None per step), `bin` (steps behind one point) and, where that is over
        1, `low` and `high` (metric -> the extremes behind each point).
    """
    import numpy as np

    rows: dict[int, Mapping[str, Any]] = {}
    for record in records:
        before = rows.get(record["step"])
        rows[record["step"]] = record if before is None else {**before, **record}
    steps = sorted(rows)
    ordered = [rows[step] for step in steps]
    size = -(-len(steps) // max_points) or 1
    starts = range(0, len(steps), size)
    table: dict[str, Any] = {"steps": [steps[(start + min(start + size, len(steps))) // 2] for start in starts]}
    table |= {"bin": size, "values": {}} | ({"low": {}, "high": {}} if size > 1 and has_extremes else {})
    for key in sorted(set().union(*ordered) - _HIDDEN):
        found = [row.get(key) for row in ordered]
        if not set(map(type, found)) <= _NUMBERS:
            found = [value if type(value) in _NUMBERS else None for value in found]
        values = np.array(found, float)  # None becomes NaN
        is_known = np.isfinite(values)
        if not is_known.any():
            continue
        counts = np.add.reduceat(is_known, starts, dtype=float)
        sums = np.add.reduceat(np.where(is_known, values, 0.0), starts)
        table["values"][key] = _round(np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0))
        if size > 1 and has_extremes:
            values[~is_known] = np.nan
            table["low"][key] = _round(np.fmin.reduceat(values, starts))
            table["high"][key] = _round(np.fmax.reduceat(values, starts))
    return table


def _round(values: "np.ndarray[Any, np.dtype[np.float64]]") -> list[float | None]:
    """The values in `DIGITS` significant digits, None for NaN; for all at once, since a long run has a million."""
    import numpy as np

    sizes = np.floor(np.log10(np.abs(values), out=np.zeros(len(values)), where=(values != 0) & np.isfinite(values)))
    scales = 10.0 ** (DIGITS - 1 - sizes)
    return [None if value != value else value for value in (np.round(values * scales) / scales).tolist()]
