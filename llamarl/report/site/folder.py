"""The runs of a folder, each in one row: how far it came, how well it learns, how old its last record is."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llamarl.core import metric_names as names
from llamarl.core.errors import DataError
from llamarl.report.metrics import column
from llamarl.report.recipe_values import algorithm_names, flatten, model_name
from llamarl.report.rundir import METRICS_FILE, RunFiles, read_run, total_steps

MAX_DEPTH = 3
"""Folders below the folder in which runs are looked for."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run of a folder. None: not measured."""

    name: str
    """Path of the run below the folder."""
    state: str
    """The state that `RunFiles` gives, or `unreadable`."""
    step: int = 0
    total_steps: int | None = None
    reward: float | None = None
    """Mean training reward of the last tenth of its steps."""
    held_out_before: float | None = None
    held_out: float | None = None
    """The newest evaluation's."""
    age: float | None = None
    """Seconds since its last record."""
    seconds: float | None = None
    model: str = ""
    algorithm: str = ""
    seed: int | None = None
    problem: str = ""
    """The reason why it is unreadable."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted name -> value of its recipe."""
    metrics: tuple[str, ...] = ()
    """Names of what it recorded."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values without settings and metrics, for `--json`."""
        return {key: value for key, value in asdict(self).items() if key not in ("settings", "metrics")}

    @property
    def family(self) -> str:
        """Equal for runs that differ in their seed alone."""
        return json.dumps({key: value for key, value in self.settings.items() if key != "seed"}, default=str)


def find_runs(folder: str | Path) -> dict[str, Path]:
    """Name -> directory of the runs in a folder and up to three folders below, by name.

    Raises:
        DataError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with runs in it, such as runs/")
    found = {path.relative_to(folder).as_posix(): path for path in _walk(folder, MAX_DEPTH)}
    return dict(sorted(found.items()))


def is_run(path: Path) -> bool:
    """True for a directory that a run wrote."""
    return (path / METRICS_FILE).is_file() or (path / "recipe.json").is_file()


def describe_row(name: str, path: Path, clock: Callable[[], float] = time.time) -> RunRow:
    """The row of one run; of one whose files are broken it says why."""
    try:
        run = read_run(path, clock, should_read_records=False)
    except (DataError, OSError) as error:
        return RunRow(name, "unreadable", problem=str(error))
    return _row(name, run)


def _row(name: str, run: RunFiles) -> RunRow:
    rewards, held_out = column(run.metrics, names.REWARD)[1], column(run.metrics, names.HELD_OUT_REWARD)[1]
    recent = rewards[-max(1, len(rewards) // 10) :]
    seed = run.recipe.get("seed")
    return RunRow(
        name=name,
        state=run.state,
        step=run.last_step,
        total_steps=total_steps(run.recipe),
        reward=sum(recent) / len(recent) if recent else None,
        held_out_before=held_out[0] if held_out else None,
        held_out=held_out[-1] if len(held_out) > 1 else None,
        age=run.last_record_seconds_ago,
        seconds=None if run.summary is None else run.summary.seconds,
        model=model_name(run.recipe),
        algorithm=" + ".join(algorithm_names(run.recipe)),
        seed=seed if isinstance(seed, int) else None,
        settings=dict(flatten(run.recipe)),
        metrics=tuple(sorted({key for record in run.metrics for key in record} - {"step", "time"})),
    )


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    except OSError:  # a folder of others
        return
    for entry in entries:
        if is_run(entry):
            yield entry
        elif depth > 1:
            yield from _walk(entry, depth - 1)
