import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamarl.core.errors import DataError
from llamarl.core.protocols import MetricSink
from llamarl.report.metrics import (
    JsonlSink,
    Meter,
    MultiSink,
    clean,
    column,
    read_metrics,
    summarise,
)
from llamarl.report.names import METRICS, describe


class ListSink:
    def __init__(self, error: Exception | None = None) -> None:
        self.records: list[tuple[int, dict[str, Any]]] = []
        self.is_closed = False
        self._error = error

    def write(self, step: int, metrics: Any) -> None:
        self.records.append((step, dict(metrics)))

    def close(self) -> None:
        self.is_closed = True
        if self._error:
            raise self._error


def test_summarise_golden() -> None:
    # 1..21: mean 11; the 95th percentile lies at position 0.95 * 20 = 19, which is the value 20.
    summary = summarise([None, *range(21, 0, -1)])
    assert (summary.mean, summary.max, summary.p95, summary.count) == (11.0, 21.0, 20.0, 21)
    # Two values: position 0.95, so 0.05 * 0 + 0.95 * 10 = 9.5.
    assert summarise([10.0, 0.0]).p95 == pytest.approx(9.5)


def test_summarise_of_nothing_and_of_nan_is_nan_not_zero() -> None:
    assert math.isnan(summarise([None]).mean) and summarise([None]).count == 0
    assert math.isnan(summarise([1.0, math.nan]).max) and summarise([1.0, math.nan]).count == 2


def test_meter_takes_once() -> None:
    meter = Meter()
    meter.add("time/judge", 0.5, None, 1.5)
    assert meter.take() == {
        "time/judge/mean": 1.0, "time/judge/max": 1.5, "time/judge/p95": pytest.approx(1.45), "time/judge/count": 2,
    }  # fmt: skip
    assert meter.take() == {}


def test_clean_counts_what_is_not_finite() -> None:
    metrics = {"a": 1, "b": math.nan, "c": -math.inf, "d": None, "e": np.float32(0.5), "f": True}
    once = clean(metrics)
    assert once == {"a": 1, "b": None, "c": None, "d": None, "e": 0.5, "f": 1.0, "nonfinite": 3}
    assert clean(once) == once


@pytest.mark.parametrize("name", ["step", "time"])
def test_clean_refuses_the_records_own_keys(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        clean({name: 1.0})


def test_clean_refuses_what_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"'a/b' is 'high'"):
        clean({"a/b": "high"})


def test_jsonl_record_is_on_disk_at_once_with_head_first(tmp_path: Path) -> None:
    sink: MetricSink = JsonlSink(tmp_path / "run" / "metrics.jsonl", clock=lambda: 12.34567)
    sink.write(3, {"rollout/reward/mean": math.nan, "policy_version": 3})
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert list(json.loads(line).items()) == [
        ("step", 3), ("policy_version", 3), ("time", 12.346), ("rollout/reward/mean", None), ("nonfinite", 1),
    ]  # fmt: skip
    sink.close()


def test_rewind_then_resume_gives_the_same_records_as_a_run_without_a_crash(tmp_path: Path) -> None:
    def run(path: Path, steps: range, rewind_to: int | None = None) -> None:
        sink = JsonlSink(path, clock=lambda: 0.0)
        if rewind_to is not None:
            assert sink.rewind(rewind_to) == 2
        for step in steps:
            sink.write(step, {"x": step})
        sink.close()

    run(tmp_path / "whole.jsonl", range(1, 9))
    run(tmp_path / "crashed.jsonl", range(1, 7))
    with (tmp_path / "crashed.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "x"')
    run(tmp_path / "crashed.jsonl", range(5, 9), rewind_to=4)
    assert (tmp_path / "crashed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_read_metrics_refuses_a_record_without_a_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 1}\n')
    with pytest.raises(DataError, match=r"line 2: 'step'"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_column_leaves_out_what_is_missing() -> None:
    assert column([{"step": 1, "a": 0.0}, {"step": 2}, {"step": 3, "a": None}, {"step": 4, "a": 2}], "a") == (
        [1, 4],
        [0.0, 2],
    )


def test_multi_sink_cleans_for_all_and_closes_all_though_one_fails() -> None:
    first, second = ListSink(OSError("disk full")), ListSink()
    sink = MultiSink([first, second])
    sink.write(1, {"a": math.inf})
    assert first.records == second.records == [(1, {"a": None, "nonfinite": 1})]
    with pytest.raises(OSError, match="disk full"):
        sink.close()
    assert second.is_closed


def test_every_mean_and_share_names_its_denominator() -> None:
    for name, metric in METRICS.items():
        assert metric.meaning.endswith("."), name
        if metric.meaning.startswith(("Mean", "Share")):
            assert any(word in metric.meaning for word in (" over ", " of ")), name


def test_describe_knows_judges_and_passes_on_unknown_names() -> None:
    assert describe("judge/a/b/pass_rate").title == "a/b: pass rate"
    assert describe("judge/x/latency_p95").unit == "s"
    assert describe("algorithm/budget/0.25/used/long").title == "q+ 0.25: long: trained share"
    assert describe("my/own").title == "my/own"
