import math

from llamarl.report.health import warnings_of
from llamarl.report.monitors import last_readings
from llamarl.report.names import describe


def record(step: int, prefix: str = "", level: float = 0.0, **bounds: float) -> dict[str, float]:
    values = {
        "value": 0.05,
        "control": 0.01,
        "ratio": 5.0,
        "level": level,
        **{f"ratio/{k}": v for k, v in bounds.items()},
    }
    return {"step": step, **{f"{prefix}watch/monitor/farewell/{name}": value for name, value in values.items()}}


def test_the_newest_reading_of_each_task_is_found() -> None:
    metrics = [record(1, "task/chat/", 0.0, low=0.5, high=9.0), record(2, "task/chat/", 2.0, low=1.5), {"step": 2}]
    (found,) = last_readings(metrics)
    assert (found.name, found.value, found.control, found.ratio) == ("chat/farewell", 0.05, 0.01, 5.0)
    assert (found.low, found.high, found.level) == (1.5, math.inf, 2.0)
    assert list(last_readings([{"step": 1, "reward/mean": 1.0}])) == []


def test_a_monitor_that_rings_is_a_warning() -> None:
    assert warnings_of([record(1)]) == []
    assert warnings_of([record(1, level=1.0)]) == ["the monitor farewell warns: 5.00 times the control's"]
    assert warnings_of([record(1, level=2.0)]) == ["the monitor farewell passed its stop: 5.00 times the control's"]


def test_what_monitors_log_is_explained() -> None:
    for name in record(1, low=1.0, high=2.0):
        if name != "step":
            assert describe(name).title.startswith("farewell: ") and describe(name).meaning, name
    assert describe("task/chat/watch/monitor/farewell/ratio").title == "chat: farewell: change"
