from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.errors import DataError
from llamarl.report.status import executors_now
from llamarl.report.timeline import Span, Timeline, read_timeline, utilisation


class HeldClock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_utilisation_golden() -> None:
    spans = [
        Span("g", "decode", 0.0, 4.0),
        Span("g", "weights", 3.0, 6.0),  # overlaps by 1: busy 0..6
        Span("t", "wait for a batch", 0.0, 7.0),  # waiting is idle
        Span("t", "train", 7.0, 10.0),
        Span("j", "idle", 0.0, 1.0),
    ]
    assert utilisation(spans) == {"g": 0.6, "t": 0.3, "j": 0.0}  # of 0..10
    # Window 5..9: g is busy 5..6 of 4 seconds, t 7..9.
    assert utilisation(spans, (5.0, 9.0)) == {"g": 0.25, "t": 0.5, "j": 0.0}


def test_utilisation_of_nothing() -> None:
    assert utilisation([]) == {}
    assert utilisation([Span("g", "decode", 1.0, 1.0)]) == {"g": 0.0}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), min_size=1, max_size=12))
def test_utilisation_equals_counting_busy_seconds(pieces: list[tuple[int, int]]) -> None:
    spans = [Span("x", "work", float(start), float(start + length)) for start, length in pieces]
    first, last = min(s.start for s in spans), max(s.end for s in spans)
    seconds = [any(s.start <= second < s.end for s in spans) for second in range(int(first), int(last))]
    expected = sum(seconds) / len(seconds) if seconds else 0.0
    assert utilisation(spans)["x"] == pytest.approx(expected)
    assert utilisation(reversed(spans)) == utilisation(spans)


def test_spans_reach_disk_also_when_the_block_raises(tmp_path: Path) -> None:
    clock = HeldClock()
    timeline = Timeline(tmp_path / "timeline.jsonl", clock)
    with pytest.raises(KeyError), timeline.span("trainer", "train"):
        clock.time = 2.0
        raise KeyError("boom")
    timeline.record("judge", "judge", 3.0, 2.5)  # the clock was set back
    timeline.close()
    assert read_timeline(tmp_path / "timeline.jsonl") == [
        Span("trainer", "train", 0.0, 2.0),
        Span("judge", "judge", 3.0, 3.0),
    ]


def test_open_spans_count_until_now_and_say_what_happens() -> None:
    clock = HeldClock()
    timeline = Timeline(clock=clock)
    with timeline.span("trainer", "wait"):
        clock.time = 1.0
    with timeline.span("trainer", "train"), timeline.span("judge", "wait"):
        clock.time = 4.0
        assert timeline.activities() == {"trainer": "train", "judge": "wait"}
        assert timeline.utilisation(4.0) == {"trainer": 0.75, "judge": 0.0}
    now = executors_now(timeline, 4.0)
    assert (now["trainer"].activity, now["trainer"].busy_fraction) == ("idle", 0.75)


def test_closing_ends_open_spans_once(tmp_path: Path) -> None:
    clock = HeldClock()
    timeline = Timeline(tmp_path / "t.jsonl", clock)
    with timeline.span("generator-0", "generate"):
        clock.time = 3.0
        timeline.close()
        clock.time = 5.0
    timeline.record("late", "x", 5.0, 6.0)
    timeline.close()
    assert read_timeline(tmp_path / "t.jsonl") == [Span("generator-0", "generate", 0.0, 3.0)]


def test_an_executor_long_silent_is_still_listed() -> None:
    clock = HeldClock()
    timeline = Timeline(clock=clock)
    timeline.record("judge", "judge", 0.0, 1.0)
    timeline.record("trainer", "train", 5.0, 9.0)
    clock.time = 10.0
    assert timeline.utilisation(5.0) == {"judge": 0.0, "trainer": 0.8}


def test_memory_is_bounded_and_disk_is_not(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "t.jsonl", HeldClock(), keep=3)
    for index in range(10):
        timeline.record("x", "work", index, index + 1)
    assert [span.start for span in timeline.spans()] == [7, 8, 9]
    timeline.close()
    assert len(read_timeline(tmp_path / "t.jsonl")) == 10


def test_read_timeline_names_file_line_and_field(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"executor": "a", "activity": "b", "start": 0, "end": "late"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl, line 1: 'end' must be of type float, got 'late'"):
        read_timeline(tmp_path / "t.jsonl")
