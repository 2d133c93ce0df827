"""The planner's score on public measurements: where a demand is not met, the test says by how much."""

import pytest

from llamarl.planner.cost import default_rates
from llamarl.planner.public import Score, fit_rates, public_rows, score_ladder, score_memory, score_syncs, score_times

TIMES = score_times()


def test_memory_within_a_tenth_without_any_fit() -> None:
    scores = score_memory()
    assert {score.row for score in scores} >= {7, 8, 9, 10, 15}
    assert max(abs(score.error) for score in scores) < 0.10


@pytest.mark.parametrize(
    "score", [each for each in TIMES if each.is_held_out], ids=lambda each: f"{each.row} {each.what}"
)
def test_held_out_rows_within_a_quarter(score: Score) -> None:
    assert abs(score.error) < 0.25


def test_rows_3_5_and_9_are_held_out() -> None:
    assert {each.row for each in TIMES if each.is_held_out} == {3, 5, 9}


def test_where_asynchrony_was_slower_the_planner_says_so() -> None:
    seconds = {each.quantity: each.predicted for each in TIMES if each.row == 4}
    assert seconds["synchronous step"] < seconds["asynchronous step"]


def test_where_asynchrony_was_faster_the_planner_says_so() -> None:
    seconds = {each.quantity: each.predicted for each in TIMES if each.row == 2}
    assert seconds["asynchronous step"] < seconds["synchronous step"]


def test_what_the_model_does_not_describe() -> None:
    """Training and serving of mixtures of experts, one request alone, and whole weight syncs are slower or faster."""
    errors = {(each.row, each.quantity): each.error for each in TIMES}
    assert errors[6, "synchronous step"] < -0.5 and errors[4, "synchronous step"] < -0.35
    assert errors[13, "decoding"] < -0.5
    assert min(each.error for each in score_syncs()) < -0.8


def test_the_rates_are_those_of_the_fit() -> None:
    fitted, stored = fit_rates(), default_rates()
    assert fitted.compute_share == pytest.approx(stored.compute_share, rel=0.01)
    assert fitted.memory_share == pytest.approx(stored.memory_share, rel=0.01)


def test_every_row_names_its_source() -> None:
    assert all(row["source"] for rows in public_rows().values() for row in rows)


def test_the_papers_ladder_grows_with_size() -> None:
    rows = score_ladder()
    for row in rows:
        assert row["asynchronous"] < row["synchronous"] < row["baseline"]
    for name in ("asynchronous", "synchronous", "baseline"):
        assert sorted(row[name] for row in rows) == [row[name] for row in rows]
