import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamarl.core.errors import MissingDependencyError
from llamarl.report.trackers import (
    MlflowSink,
    TensorBoardSink,
    TrackedRun,
    Tracker,
    WandbSink,
    check_trackers,
    flatten,
)

SETTINGS = {"model": "m", "trainer": {"learning_rate": 1e-4}, "judges": [{"weight": 1.0}], "tasks": [], "data": None}


class ScriptedSink:
    """Keeps records; raises where its script says so; waits for `gate` before each write."""

    def __init__(self, failing_steps: tuple[int, ...] = (), gate: threading.Event | None = None) -> None:
        self.records: list[int] = []
        self.is_closed = False
        self.started = threading.Event()
        self._failing_steps, self._gate = failing_steps, gate

    def write(self, step: int, metrics: Any) -> None:
        self.started.set()
        if self._gate is not None:
            self._gate.wait()
        if step in self._failing_steps:
            raise OSError(f"no space for {step}")
        self.records.append(step)

    def close(self) -> None:
        self.is_closed = True


def run(directory: Path, first_step: int = 0, **settings: Any) -> TrackedRun:
    return TrackedRun("project", directory, {**SETTINGS, **settings}, first_step)


# the tracker


def test_a_tracker_writes_in_order_and_closes_its_sink() -> None:
    sink, said = ScriptedSink(), list[str]()
    tracker = Tracker("fake", lambda: sink, said.append)
    for step in range(50):
        tracker.write(step, {"a": 1.0})
    tracker.close()
    assert sink.records == list(range(50)) and sink.is_closed and said == []


def test_failing_records_are_said_once_and_later_ones_are_written() -> None:
    sink, said = ScriptedSink(failing_steps=(1, 2)), list[str]()
    tracker = Tracker("fake", lambda: sink, said.append)
    for step in range(4):
        tracker.write(step, {})
    tracker.close()
    assert sink.records == [0, 3]
    assert said == ["tracker fake: OSError: no space for 1; the run goes on, and metrics.jsonl has every record"]


def test_a_sink_that_cannot_be_opened_costs_no_record_of_the_others() -> None:
    def refuse() -> ScriptedSink:
        raise ConnectionError("nobody listens")

    said = list[str]()
    tracker = Tracker("fake", refuse, said.append)
    tracker.write(1, {})
    tracker.close()
    tracker.write(2, {})
    assert len(said) == 1 and "cannot be opened (ConnectionError: nobody listens)" in said[0]


def test_a_sink_that_hangs_delays_neither_a_write_nor_the_end() -> None:
    gate, said = threading.Event(), list[str]()
    sink = ScriptedSink(gate=gate)
    tracker = Tracker("fake", lambda: sink, said.append, max_waiting=2, close_seconds=0.0)
    tracker.write(1, {})
    assert sink.started.wait(30)
    for step in (2, 3, 4):  # two fit into the queue
        tracker.write(step, {})
    tracker.close()
    assert len(said) == 1 and "2 records wait for it" in said[0]
    gate.set()


def test_a_close_that_takes_too_long_is_said() -> None:
    gate, said = threading.Event(), list[str]()
    tracker = Tracker("fake", lambda: ScriptedSink(gate=gate), said.append, close_seconds=0.0)
    tracker.write(1, {})
    tracker.close()
    assert len(said) == 1 and "did not store everything within 0 s" in said[0]
    gate.set()


def test_a_missing_package_is_refused_with_its_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"llamarl\[no_such_tracker\]"):
        check_trackers(["no_such_tracker"])


def test_settings_are_named_as_overrides_name_them() -> None:
    assert dict(flatten(SETTINGS)) == {
        "model": "m", "trainer.learning_rate": "0.0001", "judges.0.weight": "1.0", "tasks": "{}", "data": "null",
    }  # fmt: skip


# the libraries


def record(
    kind: Callable[[TrackedRun], Any], directory: Path, steps: range, resumed: bool = False, **settings: Any
) -> None:
    sink = kind(run(directory, steps.start if resumed else 0, **settings))
    for step in steps:
        sink.write(step, {"rollout/reward/mean": float(step), "judge/a+b/cost": 1.0, "not/measured": None})
    sink.close()


def test_tensorboard_goes_on_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    record(TensorBoardSink, tmp_path, range(1, 5))
    record(TensorBoardSink, tmp_path, range(3, 6), resumed=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in events.Scalars("rollout/reward/mean")]
    assert points == [(step, float(step)) for step in range(1, 6)]
    assert "not/measured" not in events.Tags()["scalars"] and "settings/text_summary" in events.Tags()["tensors"]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield pytest.importorskip("mlflow")


@pytest.mark.slow  # MLflow migrates each new store through all versions of its tables
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, about what MLflow does
def test_mlflow_goes_on_with_the_same_run(mlflow: Any, tmp_path: Path) -> None:
    directory = tmp_path / "a run"
    record(MlflowSink, directory, range(1, 4))
    record(MlflowSink, directory, range(3, 6), resumed=True, model="other")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{directory / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("project")
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.info.run_name == "a run" and only.info.status == "FINISHED"
    history = client.get_metric_history(only.info.run_id, "rollout/reward/mean")
    assert sorted((point.step, point.value) for point in history) == [(s, float(s)) for s in (1, 2, 3, 3, 4, 5)]
    assert only.data.metrics["judge/a_b/cost"] == 1.0 and "not/measured" not in only.data.metrics
    assert only.data.params["trainer.learning_rate"] == "0.0001" and only.data.params["model"] == "m"
    assert only.data.tags["model"] == "other"


def test_wandb_writes_offline_and_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    record(WandbSink, tmp_path, range(1, 3))
    record(WandbSink, tmp_path, range(2, 4), resumed=True)
    wandb.teardown()  # as at the exit of the process: waits until its own process has written
    identity = json.loads((tmp_path / "wandb" / "run.json").read_text())["id"]
    written = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(written) == 2 and all(file.name == f"run-{identity}.wandb" for file in written)
    for text in (b"rollout/reward/mean", b"judge/a+b/cost", b'{"learning_rate":0.0001}'):
        assert all(text in file.read_bytes() for file in written)
    assert not any(b"not/measured" in file.read_bytes() for file in written)
