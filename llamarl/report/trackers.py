"""Experiment trackers: a run's metrics and settings also in TensorBoard, Trackio, Weights & Biases and MLflow.

    loop -> Tracker.write -> queue -> thread of the tracker -> its library -> files of this machine, or its server

`metrics.jsonl` stays the record of the run. A tracker is a copy: the loop never waits for it, and where it fails, the
run says so once and goes on. Nothing leaves this machine unless the tracker's own environment variables ask for it. A
resumed run goes on as the same run of each tracker.
"""

import importlib.util
import json
import os
import queue
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llamarl.core.errors import MissingDependencyError
from llamarl.core.protocols import MetricSink
from llamarl.report.files import read_json, write_json

MAX_WAITING = 1000
"""Most records that wait for a slow tracker; further ones are left out of it."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run as a tracker is told of it before the first record."""

    project: str
    """The tracker's name for a group of runs; MLflow calls it an experiment."""
    directory: Path
    """The run directory. Its name is the run's name."""
    settings: Mapping[str, Any]
    """The resolved recipe, nested."""
    first_step: int = 0
    """The first step that this process records; what an earlier attempt recorded from there on is void."""


class TensorBoardSink:
    """Writes scalars to event files in the run directory's `tensorboard/`, and the settings as a text."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = str(run.directory / "tensorboard")
        self._writer: Any = SummaryWriter(directory, purge_step=run.first_step)  # type: ignore[no-untyped-call]
        lines = json.dumps(run.settings, indent=2, default=str).splitlines()
        self._writer.add_text("settings", "\n".join(f"    {line}" for line in lines), run.first_step)

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Adds the finite values."""
        for name, value in _finite(metrics).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class TrackioSink:
    """Logs to Trackio, on this machine unless its own environment variables say otherwise."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._trackio: Any = trackio
        with redirect_stdout(sys.stderr):  # it chats, and standard output may carry `--json`
            trackio.init(
                project=run.project, name=run.directory.name, config=dict(run.settings), resume="allow", embed=False
            )

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Logs the finite values."""
        self._trackio.log(_finite(metrics), step=step)

    def close(self) -> None:
        """Waits until everything is stored."""
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


class WandbSink:
    """Logs to Weights & Biases: into the run directory's `wandb/`, or to its server where `WANDB_MODE=online`.

    Curves are drawn over `step`, a metric of its own. W&B's own step may not go back, but a resumed run repeats the
    steps after its checkpoint, and an evaluation may end after later steps.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        identity = run.directory / "wandb" / "run.json"
        if not identity.exists():
            write_json(identity, {"id": secrets.token_hex(8)})
        mode: Any = os.environ.get("WANDB_MODE", "offline")  # W&B itself refuses an unknown one
        self._run: Any = wandb.init(
            project=run.project,
            name=run.directory.name,
            id=str(read_json(identity)["id"]),
            resume="allow",
            dir=str(run.directory),
            config=dict(run.settings),
            allow_val_change=True,  # a resume may have overrides
            mode=mode,
            # Neither its banner nor its capture of the terminal: standard output may carry `--json`.
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Logs the finite values and the step."""
        self._run.log({"step": step, **_finite(metrics)})

    def close(self) -> None:
        """Ends this process's part of the run; W&B's own process stores it, at the latest when this one exits."""
        self._run.finish()


class MlflowSink:
    """Logs to MLflow: into the run directory's `mlflow/mlflow.db`, or the store that `MLFLOW_TRACKING_URI` names."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import: it would report usage to its makers
        from mlflow import MlflowClient

        folder = run.directory / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        own_store = f"sqlite:///{folder / 'mlflow.db'}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or own_store
        self._client: Any = MlflowClient(tracking_uri=uri)
        artifacts = (folder / "artifacts").as_uri() if uri == own_store else None
        self._run_id = self._continue(folder / "run.json", uri) or self._begin(folder / "run.json", uri, run, artifacts)
        self._log_settings(run.settings)

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Logs the finite values, characters that MLflow refuses in a name replaced by `_`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(_mlflow_name(name), value, now, step) for name, value in _finite(metrics).items()]
        for batch in _batches(values, 1000):  # MLflow's own limit
            self._client.log_batch(self._run_id, metrics=batch)

    def close(self) -> None:
        """Marks the run as ended; a resume opens it again."""
        self._client.set_terminated(self._run_id)

    def _continue(self, identity: Path, uri: str) -> str | None:
        """Opens the run that an earlier process began in this store and returns its id; None where there is none."""
        known = read_json(identity) if identity.exists() else {}
        if known.get("store") != uri:
            return None
        self._client.update_run(known["run_id"], status="RUNNING")
        return str(known["run_id"])

    def _begin(self, identity: Path, uri: str, run: TrackedRun, artifacts: str | None) -> str:
        """Begins a run and keeps its id."""
        from mlflow.exceptions import MlflowException

        try:
            experiment = self._client.create_experiment(run.project, artifact_location=artifacts)
        except MlflowException:  # it exists; asked for first, another run could create it in between
            experiment = self._client.get_experiment_by_name(run.project).experiment_id
        begun = self._client.create_run(experiment, run_name=run.directory.name)
        write_json(identity, {"store": uri, "run_id": begun.info.run_id})
        return str(begun.info.run_id)

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        """Logs settings as parameters. MLflow never changes one, so what a resume overrides becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self._run_id).data.params
        values = {_mlflow_name(name): value for name, value in flatten(settings)}
        params = [Param(name, value) for name, value in values.items() if name not in known]
        tags = [RunTag(name, value) for name, value in values.items() if known.get(name, value) != value]
        for batch in _batches(params, 100):  # MLflow's own limit
            self._client.log_batch(self._run_id, params=batch)
        for batch in _batches(tags, 100):
            self._client.log_batch(self._run_id, tags=batch)


SINKS: Mapping[str, Callable[[TrackedRun], MetricSink]] = {
    "tensorboard": TensorBoardSink,
    "trackio": TrackioSink,
    "wandb": WandbSink,
    "mlflow": MlflowSink,
}
"""The sink of each tracker, by the name of its module, which is also the name of its extra."""


class Tracker:
    """Copies records to one sink on a thread of its own, so that a slow or broken one costs the run nothing.

    The first failure is said, and only the first. A sink that cannot be opened gets no records; one that fails to write
    a record is given the next.

    Args:
        name: of the tracker, for messages.
        open_sink: opens the sink; called on the tracker's thread.
        say: takes the message of the first failure; called on the thread that calls `write` or `close`.
        max_waiting: records that may wait for the sink.
        close_seconds: how long `close` waits for the sink to store what it was given.
    """

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], MetricSink],
        say: Callable[[str], None],
        *,
        max_waiting: int = MAX_WAITING,
        close_seconds: float = 60.0,
    ) -> None:
        self._name, self._open_sink, self._say, self._close_seconds = name, open_sink, say, close_seconds
        self._records: queue.Queue[tuple[int, Mapping[str, float | None]] | None] = queue.Queue(max_waiting)
        self._failure: str | None = None
        self._has_said = False
        # A daemon, so that a library that hangs cannot keep the process alive.
        self._thread = threading.Thread(target=self._copy, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Queues a record; never waits and never raises."""
        if self._thread.is_alive():
            try:
                self._records.put_nowait((step, metrics))
            except queue.Full:
                self._note(f"slower than the run: {self._records.maxsize} records wait for it, and others are left out")
        self._say_once()

    def close(self) -> None:
        """Waits until everything is stored, at most `close_seconds`."""
        deadline = time.monotonic() + self._close_seconds
        with suppress(queue.Full):  # then it hangs, as is found out below
            self._records.put(None, timeout=self._close_seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._note(f"did not store everything within {self._close_seconds:g} s")
        self._say_once()

    def _copy(self) -> None:
        """Opens the sink, and writes records until `close`."""
        try:
            sink = self._open_sink()
        except Exception as error:  # a third party's code, and its fault is named
            self._note(f"cannot be opened ({type(error).__name__}: {error})")
            return
        while (record := self._records.get()) is not None:
            self._attempt(sink.write, *record)
        self._attempt(sink.close)

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # a third party's code, and its fault is named
            self._note(f"{type(error).__name__}: {error}")

    def _note(self, failure: str) -> None:
        self._failure = self._failure or failure

    def _say_once(self) -> None:
        if self._failure is not None and not self._has_said:
            self._has_said = True
            self._say(f"tracker {self._name}: {self._failure}; the run goes on, and metrics.jsonl has every record")


def check_trackers(names: Iterable[str]) -> None:
    """Raises `MissingDependencyError` where the package of one of these trackers is not installed; names the extra."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError.for_extra(name, name)


def open_trackers(
    projects: Mapping[str, str],
    directory: Path,
    settings: Mapping[str, Any],
    say: Callable[[str], None],
    first_step: int = 0,
) -> list[Tracker]:
    """Starts the trackers of a run.

    Args:
        projects: the project that each tracker logs to, by the tracker's name in `SINKS`.
        directory: of the run.
        settings: the resolved recipe, nested.
        say: takes the message of each tracker's first failure.
        first_step: the first step that this process will record.
    """
    runs = {name: TrackedRun(project, directory, settings, first_step) for name, project in projects.items()}
    return [Tracker(name, partial(SINKS[name], run), say) for name, run in runs.items()]


def flatten(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields each setting by its dotted name, as an override names it: `("judges.0.weight", "1.0")`."""
    for key, value in settings.items():
        if isinstance(value, (list, tuple)):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            yield from ((f"{key}.{name}", text) for name, text in flatten(value))
        else:
            yield key, value if isinstance(value, str) else json.dumps(value, default=str)


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w./ -]", "_", name)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
