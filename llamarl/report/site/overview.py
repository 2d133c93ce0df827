"""A run in plain values for the page: what it is, how far it came, what to look at, and every curve."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import Any

import llamarl
from llamarl.core import metric_names as names
from llamarl.report.colours import colour_indices
from llamarl.report.files import Record, read_json
from llamarl.report.metrics import column
from llamarl.report.names import describe
from llamarl.report.recipe_values import flatten, title_parts
from llamarl.report.rundir import CHANGES_FILE, ENDED_BY, RunFiles, total_steps
from llamarl.report.site.curves import MONITOR_RATIOS, charts_of, tabulate
from llamarl.report.tasks_of_run import describe_tasks, ends_of
from llamarl.report.text import format_bytes, format_number, format_seconds
from llamarl.report.timeline import Span, Window, covered_seconds, extent, utilisation
from llamarl.report.view import warnings_about

MAX_EVENTS = 200
MAX_SPANS = 20_000
"""Spans of the timeline in a page: the latest ones."""
MAX_SYNCS = 50
_KINDS = (
    (re.compile(r"possible reward hacking|monitor|canary", re.I), "alarm"),
    (re.compile(r" lost \(|starting it again|starting over|no answer", re.I), "restart"),
    (re.compile(rf"^{ENDED_BY}|not written|damaged", re.I), "error"),
)
_TASK = re.compile(r"task/([^/]+)/")
_ALARM_KEY = re.compile(r"(task/[^/]+/)?watch/monitor/[^/]+/level$")


def describe_run(
    run: RunFiles, ledger: Mapping[str, Any] | None = None, *, has_extremes: bool = True
) -> dict[str, Any]:
    """Everything the page shows of a run but its rollouts and its timeline.

    Args:
        run: as `read_run` gives it.
        ledger: `counts` by state and `reasons` of drops, where the caller has read the ledger.
        has_extremes: see `tabulate`.
    """
    table = tabulate(run.metrics, has_extremes=has_extremes)
    return {
        "llamarl": llamarl.__version__,
        "made": time.time(),
        "every": run.every,
        "name": run.path.resolve().name,
        "state": run.state,
        "step": run.last_step,
        "total_steps": total_steps(run.recipe),
        "age": run.last_record_seconds_ago,
        "seconds": None if run.summary is None else run.summary.seconds,
        "title": list(title_parts(run.recipe)),
        "tasks": describe_tasks(run),
        "learning": _learning(run),
        "warnings": warnings_about(run),
        "events": list(islice(_events(run), MAX_EVENTS)),
        "charts": [chart.as_dict() | _marks(chart.title, run.recipe) for chart in charts_of(table["values"])],
        "table": table,
        "recipe": _settings(run),
        "facts": _facts(run),
        "environment": [{"name": name, "value": value} for name, value in flatten(run.environment)],
        "ledger": None if ledger is None else dict(ledger),
        "memory": _memory(run),
        "syncs": _syncs(run.metrics),
        "messages": run.messages,
        "checkpoints": run.checkpoints,
        "summary": None if run.summary is None else asdict(run.summary),
    }


def describe_timeline(spans: Sequence[Span], metrics: Sequence[Record]) -> dict[str, Any]:
    """The latest spans as `[executor, activity, start, seconds]` with names by number, and busy shares of all."""
    shown = sorted(spans, key=lambda span: span.start)[-MAX_SPANS:]
    start, end = extent(spans)
    executors = list(dict.fromkeys(span.executor for span in spans))
    activities = list(dict.fromkeys(span.activity for span in spans))
    colours = colour_indices(name for name in activities if not name.startswith(("wait", "idle")))
    rows = {name: index for index, name in enumerate(executors)}
    kinds = {name: index for index, name in enumerate(activities)}
    pieces: dict[str, dict[str, list[Window]]] = {name: {} for name in executors}
    for span in spans:
        pieces[span.executor].setdefault(span.activity, []).append((span.start, span.end))
    return {
        "start": start,
        "end": end,
        "shown": len(shown),
        "total": len(spans),
        "executors": executors,
        "activities": [{"name": name, "colour": colours.get(name)} for name in activities],
        "busy": utilisation(spans),
        "seconds": {
            name: {activity: covered_seconds(each) for activity, each in own.items()} for name, own in pieces.items()
        },
        "spans": [
            [rows[span.executor], kinds[span.activity], round(span.start - start, 4), round(span.end - span.start, 4)]
            for span in shown
        ],
        "steps": [
            [record["step"], round(record["time"] - start, 3)]
            for record in metrics
            if names.LOSS in record and isinstance(record.get("time"), (int, float))
        ],
    }


def _marks(title: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The lines across the chart of the monitors: the control's count, and where they warn and stop the run."""
    if title != MONITOR_RATIOS:
        return {}
    monitors = [each for each in (recipe.get("watch") or {}).get("monitors") or [] if isinstance(each, Mapping)]
    limits = [(each.get(level), verb) for each in monitors for level, verb in (("warn", "warns"), ("stop", "stops"))]
    marks = {1.0: "control"} | {limit: verb for limit, verb in limits if isinstance(limit, (int, float))}
    return {"scale": "×", "unit": "", "marks": {"x": [], "y": list(marks), "names": list(marks.values())}}


def _learning(run: RunFiles) -> dict[str, Any]:
    """The first screen's answer on learning: held-out reward before and after, or the training reward where none."""
    held_out = column(run.metrics, names.HELD_OUT_REWARD)
    counts = column(run.metrics, names.HELD_OUT_COUNT)[1]
    found: dict[str, Any] = {"reward": ends_of(run.metrics, names.REWARD)}
    if held_out[1]:
        found["held_out"] = [held_out[1][0], held_out[1][-1]]
        found["held_out_steps"] = [held_out[0][0], held_out[0][-1]]
        found["held_out_count"] = counts[-1] if counts else None
    return found


def _events(run: RunFiles) -> Iterator[dict[str, Any]]:
    """Alarms, restarts and errors by step, for marks on the curves."""
    stamps = [
        (record["time"], record["step"]) for record in run.metrics if isinstance(record.get("time"), (int, float))
    ]
    for line in run.messages:
        stamp, _, text = line.partition(" ")
        kind = next((kind for pattern, kind in _KINDS if pattern.search(text)), None)
        if kind is not None:
            yield {"step": _step_at(stamp, stamps), "kind": kind, "text": text}
    keys: set[str] = set().union(*run.metrics)
    alarms = [key for key in keys if key.endswith(names.WATCH_ALARMS) or _ALARM_KEY.match(key)]
    counts = [key for key in keys if key in (names.SKIPPED_NONFINITE, names.GRAD_SPIKE)]
    for key in sorted(alarms + counts):
        before = 0.0
        for step, value in zip(*column(run.metrics, key), strict=True):
            if value > (0.0 if key in counts else before):
                kind = "alarm" if key in alarms else "update"
                text, task = f"{describe(key).title}: {value:g}", _TASK.match(key)
                yield {"step": step, "kind": kind, "text": text} | ({"task": task[1]} if task else {})
            before = value


def _step_at(stamp: str, stamps: Sequence[tuple[float, int]]) -> int:
    """The step under way at a message's local time; 0 before the first record or where the time is no time."""
    try:
        seconds = datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return 0
    return max((step for at, step in stamps if at <= seconds + 1.0), default=0)


def _settings(run: RunFiles) -> dict[str, Any]:
    """Every setting by its dotted name, and whether it differs from its default where the run recorded that."""
    path = run.path / CHANGES_FILE
    changes = read_json(path).get("settings") if path.is_file() else None
    settings = [{"name": name, "value": value, **_change(name, changes or [])} for name, value in flatten(run.recipe)]
    return {"settings": settings, "has_changes": changes is not None}


def _change(name: str, changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tells if a setting, or the table it stands in, differs from its default, and that default where there is one."""
    found = next((each for each in changes if f"{name}.".startswith(f"{each['name']}.")), None)
    if found is None:
        return {"is_changed": False}
    is_whole = "default" in found and found["name"] == name
    return {"is_changed": True} | ({"default": found["default"]} if is_whole else {})


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """The run in numbers, as texts."""
    summary = run.summary
    if summary is None:
        return []
    sync, peak = summary.weight_sync_seconds_median, summary.peak_memory_bytes
    facts = [
        ("duration", format_seconds(summary.seconds)),
        ("tokens sampled", format_number(summary.tokens_generated)),
        ("tokens per second", format_number(summary.tokens_per_second)),
        ("largest staleness", format_number(summary.staleness_max)),
        ("largest mismatch", format_number(summary.mismatch_max)),
        ("weight sync, median", format_seconds(sync)),
        ("peak memory", format_bytes(peak)),
    ]
    return [(name, value) for name, value in facts if value != "–"]


def _memory(run: RunFiles) -> list[dict[str, Any]]:
    """Bytes by part, as planned and as measured."""
    planned = (run.summary and run.summary.memory_planned) or {}
    measured = (run.summary and run.summary.memory_measured) or {}
    return [
        {"part": part, "planned": planned.get(part), "measured": measured.get(part)} for part in {**planned, **measured}
    ]


def _syncs(metrics: Sequence[Record]) -> list[dict[str, Any]]:
    """The latest weight syncs: version, seconds, and the largest log-prob gap on the probe that proved it."""
    rows = [
        {"step": record["step"], "seconds": record[names.TIME_SYNC], "gap": record.get(names.PROBE_GAP)}
        for record in metrics
        if record.get(names.TIME_SYNC) is not None
    ]
    return rows[-MAX_SYNCS:]
