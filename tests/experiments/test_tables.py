from pathlib import Path

import pytest

from experiments.common import Interval, curve, last
from experiments.table import PAGES, written


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_result_files(page: Path) -> None:
    assert written(page.read_text()) == page.read_text(), "run: python -m experiments.table"


def test_an_interval_is_students() -> None:
    # 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027
    interval = Interval.of([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


def test_a_curve_is_a_trailing_mean_over_the_records_that_have_it() -> None:
    records = [{"step": 1, "x": 1.0}, {"step": 2}, {"step": 3, "x": 3.0}, {"step": 4, "x": None}]
    assert curve(records, "x", smooth=2) == {1: 1.0, 3: 2.0}
    assert last(records, "x") == 3.0
