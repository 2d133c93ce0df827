"""Everything a run directory holds, read once and typed."""

import itertools
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamarl.core.errors import DataError
from llamarl.report.environment import ENVIRONMENT_FILE
from llamarl.report.files import Record, has_torn_tail, read_json
from llamarl.report.metrics import read_metrics, read_outline
from llamarl.report.rollouts import LoggedGroup, read_rollouts
from llamarl.report.summary import SUMMARY_FILE, RunSummary, read_summary
from llamarl.report.timeline import Span, read_timeline

METRICS_FILE = "metrics.jsonl"
ROLLOUTS_FILE = "rollouts.jsonl"
TIMELINE_FILE = "timeline.jsonl"
MESSAGES_FILE = "messages.log"
CHANGES_FILE = "changes.json"
"""The settings of the recipe that differ from their defaults."""
ENDED_BY = "error:"
"""The beginning of a message that says why a run ended early, behind its time."""

State = Literal["finished", "running", "stopped"]
"""`stopped`: it ended before the recipe's last step, or wrote no summary and is silent: crashed, killed, or hanging."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The contents of a run directory. What a run has not written yet is empty or None."""

    path: Path
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: list[Record]
    spans: list[Span]
    rollouts: list[LoggedGroup]
    summary: RunSummary | None
    """None too where the summary is older than the metrics: of a run that was continued since."""
    state: State
    last_record_seconds_ago: float | None
    figures: list[Path]
    checkpoints: list[str]
    messages: list[str]
    """The latest lines of `messages.log`, at most a thousand."""
    torn: list[str]
    """Files whose last line a crash cut off."""
    every: int = 1
    """Distance of the records in `metrics`, where only an outline was read; 1: all are there."""

    @property
    def last_step(self) -> int:
        """Step of the newest record; 0 before the first."""
        return max((record["step"] for record in self.metrics), default=0)


def total_steps(recipe: Mapping[str, Any]) -> int | None:
    """`schedule.steps` of a recipe, where it says so."""
    schedule = recipe.get("schedule")
    steps = schedule.get("steps") if isinstance(schedule, Mapping) else None
    return steps if isinstance(steps, int) else None


def read_run(
    run_dir: str | Path,
    clock: Callable[[], float] = time.time,
    *,
    should_read_records: bool = True,
    max_metrics: int | None = None,
) -> RunFiles:
    """Reads a run directory, of a finished, running or crashed run. A torn last line is left out.

    Args:
        run_dir: that a run wrote.
        clock: seconds since the epoch.
        should_read_records: False leaves `rollouts` and `spans` empty, which may be large.
        max_metrics: of more records of metrics, an outline is read (`read_outline`).

    Raises:
        DataError: no such directory, not a run directory, or a broken file; names the file and the line.
    """
    path = Path(run_dir)
    recipe = _read_recipe(path)
    if not path.is_dir() or (recipe is None and not (path / METRICS_FILE).exists()):
        what = "holds neither metrics.jsonl nor a recipe" if path.is_dir() else "no such directory"
        raise DataError(f"{path}: {what}; give the directory that a run wrote")
    metrics, every = _read_metrics(path / METRICS_FILE, max_metrics)
    summary = read_summary(path) if (path / SUMMARY_FILE).exists() else None
    if summary is not None and metrics and metrics[-1]["step"] > summary.steps:
        summary = None
    recipe = recipe or {}
    age = _age_seconds(metrics, clock())
    return RunFiles(
        path=path,
        recipe=recipe,
        environment=_read_if_there(path / ENVIRONMENT_FILE, read_json) or {},
        metrics=metrics,
        spans=(_read_if_there(path / TIMELINE_FILE, read_timeline) or []) if should_read_records else [],
        rollouts=(_read_if_there(path / ROLLOUTS_FILE, read_rollouts) or []) if should_read_records else [],
        summary=summary,
        state=_state(metrics, age) if summary is None else _final_state(summary.steps, total_steps(recipe)),
        last_record_seconds_ago=age,
        figures=sorted(path.glob("*.png")),
        checkpoints=_names(path / "checkpoints"),
        messages=_last_lines(path / MESSAGES_FILE),
        torn=[name for name in (METRICS_FILE, ROLLOUTS_FILE, TIMELINE_FILE) if _is_torn(path / name)],
        every=every,
    )


def _read_metrics(path: Path, max_records: int | None) -> tuple[list[Record], int]:
    if not path.exists():
        return [], 1
    return (read_metrics(path), 1) if max_records is None else read_outline(path, max_records)


def _read_recipe(path: Path) -> dict[str, Any] | None:
    if (path / "recipe.json").exists():
        return read_json(path / "recipe.json")
    source = path / "recipe.toml"
    if not source.exists():
        return None
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: {error}; restore or delete the file") from None


def _read_if_there(path: Path, read: Callable[[Path], Any]) -> Any:
    return read(path) if path.exists() else None


def _is_torn(path: Path) -> bool:
    return path.exists() and has_torn_tail(path)


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def _last_lines(path: Path, count: int = 1000) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:] if path.is_file() else []


def _final_state(steps: int, total: int | None) -> State:
    return "finished" if total is None or steps >= total else "stopped"


def _age_seconds(metrics: list[Record], now: float) -> float | None:
    times = [record["time"] for record in metrics if isinstance(record.get("time"), (int, float))]
    return max(0.0, now - times[-1]) if times else None


def _state(metrics: list[Record], age: float | None) -> State:
    """Running while the silence is under a minute or five of its longest recent steps."""
    if age is None:
        return "running"
    times = [record["time"] for record in metrics[-20:] if isinstance(record.get("time"), (int, float))]
    longest = max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)
    return "running" if age < max(60.0, 5 * longest) else "stopped"
