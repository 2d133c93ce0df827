from benchmarks.controller_overhead import milliseconds


def test_idle_executors_fit_the_controller() -> None:
    assert 0.0 < milliseconds("inprocess", is_full=True, steps=2) < 10_000.0
