"""The one record that says how a run went, and the memory it took."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from llamarl.core.errors import DataError
from llamarl.report.files import read_json, write_json

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The outcome of a run. None is not measured."""

    steps: int
    """Optimizer steps of the run, those before a resume included."""
    version: int
    """Policy version of the final weights."""
    seconds: float
    """Wall time of the training loop."""
    reward_before: float | None = None
    """Mean reward over the held-out prompts before the first step."""
    reward_after: float | None = None
    """The same after the last step."""
    tokens_generated: int = 0
    tokens_per_second: float | None = None
    """Sampled tokens over the loop's wall time."""
    staleness_max: int | None = None
    """Largest staleness of a trained sample."""
    mismatch_max: float | None = None
    """Largest probability gap between generator and trainer on a trained token."""
    weight_sync_seconds_median: float | None = None
    prompts_issued: int = 0
    prompts_trained: int = 0
    prompts_dropped: int = 0
    prompts_failed: int = 0
    """Prompts none of whose samples could be judged."""
    peak_memory_bytes: int | None = None
    """See `peak_memory_bytes`."""
    memory_planned: Mapping[str, int] | None = None
    """Bytes by part, as `--dry-run` shows them; their sum is what the peak should be near."""
    memory_measured: Mapping[str, int] | None = None
    """Bytes that the executors said they held at the end, by part; activations of the largest micro-batch."""


def write_summary(run_dir: str | Path, summary: RunSummary) -> Path:
    """Writes `summary.json` in one atomic replacement; returns its path."""
    path = Path(run_dir) / SUMMARY_FILE
    write_json(path, asdict(summary))
    return path


def read_summary(run_dir: str | Path) -> RunSummary:
    """Reads `summary.json`. Keys this version does not know are left out.

    Raises:
        DataError: the file is missing, broken, or lacks a field; names the file and the field.
    """
    path = Path(run_dir) / SUMMARY_FILE
    record = read_json(path)
    known = {field.name for field in fields(RunSummary)}
    missing = [name for name in ("steps", "version", "seconds") if not isinstance(record.get(name), (int, float))]
    if missing:
        raise DataError(f"{path}: {missing[0]!r} must be a number, got {record.get(missing[0])!r}; delete the file")
    return RunSummary(**{name: value for name, value in record.items() if name in known})


def peak_memory_bytes() -> int | None:
    """Peak resident memory of this process plus that of each living descendant, in bytes.

    The sum of separate peaks, with shared pages counted in each process: an upper bound of the true simultaneous peak.
    Call it before the executors stop; the dead are not counted. Where there is no `/proc`, this process only;
    None where nothing tells.
    """
    own = _status_bytes("self", _PEAK)
    if own is None:
        try:
            import resource
        except ImportError:  # not POSIX
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return own + sum(_status_bytes(pid, _PEAK) or 0 for pid in _descendants("self"))


def resident_memory(executors: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Resident memory now, in bytes: of this process as `main`, and of each executor's processes with their children.

    An executor that is no descendant of this process has no part: it runs inside of it, or on another host. Pages that
    processes share are counted in each. Empty where there is no `/proc`.

    Args:
        executors: name -> ids of its processes.
    """
    own = _status_bytes("self", _NOW)
    if own is None:
        return {}
    living, found = set(_descendants("self")), {"main": own}
    for name, pids in executors.items():
        family = {each for pid in map(str, pids) if pid in living for each in (pid, *_descendants(pid))}
        if family:
            found[name] = sum(_status_bytes(pid, _NOW) or 0 for pid in family)
    return found


def _descendants(pid: str) -> Iterator[str]:
    for path in Path("/proc", pid, "task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:  # it ended between the listing and the read
            continue
        for child in children:
            yield child
            yield from _descendants(child)


_PEAK, _NOW = "VmHWM:", "VmRSS:"
"""Lines of a process' status: its most resident memory, which unlike getrusage's forgets the program before `exec`."""


def _status_bytes(pid: str, line: str) -> int | None:
    try:
        lines = Path("/proc", pid, "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(each.split()[1]) * 1024 for each in lines if each.startswith(line)), None)
