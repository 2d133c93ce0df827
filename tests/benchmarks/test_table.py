from benchmarks.common import RESULTS
from benchmarks.table import README, markdown, refreshed
from benchmarks.targets import TARGETS, at_least, at_most, read_results


def test_table_says_what_is_met_missed_and_not_measured() -> None:
    targets = [
        at_least(2.0, "speed", "x", "a", "headlines", "speed"),
        at_most(1.0, "memory", "GB", "a", "headlines", "memory"),
        at_most(1.0, "other", "s", "b", "headlines", "other"),
    ]
    git = {"commit": "0123456789", "is_dirty": True}
    results = {"a": {"date": "2030-01-02T03", "environment": {"git": git}, "headlines": {"speed": 2.0, "memory": 1.01}}}
    assert markdown(targets, results).splitlines()[2:] == [
        "| speed | ≥ 2 x | 2 | `a` | 2030-01-02, 0123456+ |",
        "| memory | ≤ 1 GB | 1.01 (not met) | `a` | 2030-01-02, 0123456+ |",
        "| other | ≤ 1 s | not measured | `b` |  |",
    ]


def test_readme_shows_the_committed_results() -> None:
    text = README.read_text()
    assert refreshed(text, markdown(TARGETS, read_results(RESULTS))) == text, "run: python -m benchmarks.table"
