"""The page of a run as one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamarl.report.files import write_text
from llamarl.report.rundir import ROLLOUTS_FILE, TIMELINE_FILE, RunFiles, read_run
from llamarl.report.site.overview import describe_run, describe_timeline
from llamarl.report.site.rollouts import sample_groups
from llamarl.report.site.shell import render_document
from llamarl.report.timeline import read_timeline

PAGE_FILE = "index.html"
MAX_ROLLOUT_BYTES = 8 << 20
"""About as much of `rollouts.jsonl` as a page's file holds."""


def write_run_page(
    run_dir: str | Path,
    ledger: Mapping[str, Any] | None = None,
    *,
    path: str | Path | None = None,
    max_rollout_bytes: int = MAX_ROLLOUT_BYTES,
) -> Path:
    """Writes the page of a run that is finished, running or crashed, in one step.

    Args:
        run_dir: that the run wrote.
        ledger: `counts` by state and `reasons` of drops, where the caller has read the ledger.
        path: of the page; None: `index.html` in the run directory.
        max_rollout_bytes: about as much of `rollouts.jsonl` goes into the page; it says what it leaves out.

    Returns:
        The path.

    Raises:
        DataError: see `read_run`.
        OSError: the disk does not take it.
    """
    run = read_run(run_dir, should_read_records=False)
    path = run.path / PAGE_FILE if path is None else Path(path)
    write_text(path, render_document(run.path.resolve().name, file_values(run, ledger, max_rollout_bytes)))
    return path


def file_values(
    run: RunFiles, ledger: Mapping[str, Any] | None = None, max_rollout_bytes: int = MAX_ROLLOUT_BYTES
) -> dict[str, Any]:
    """The values that a page's file holds: all of a run but the rollouts that are too many."""
    return {
        "mode": "file",
        "run": describe_run(run, ledger),
        "timeline": read_spans(run),
        "rollouts": sample_groups(run.path / ROLLOUTS_FILE, max_rollout_bytes),
    }


def read_spans(run: RunFiles) -> dict[str, Any]:
    """The run's timeline for the page; empty where it recorded none."""
    path = run.path / TIMELINE_FILE
    return describe_timeline(read_timeline(path) if path.is_file() else [], run.metrics)
