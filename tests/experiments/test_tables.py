from pathlib import Path

import pytest

from experiments.common import Experiment, Interval, curve, differences, last
from experiments.numbers import unsourced
from experiments.table import PAGES, table, written


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_number_of_the_results_stands_in_a_result_file(page: Path) -> None:
    assert unsourced(page.read_text()) == []


def test_a_number_that_stands_nowhere_is_found() -> None:
    block = "<!-- experiment: cgpo_hacking -->\n<!-- end -->\n"
    text = f"{block}What it shows: 91 % (CRPG) and 0.8797, at q+ 0.25 and `0.123`.\n"
    assert unsourced(text) == [("cgpo_hacking", "0.8797")]
    assert unsourced(text.replace("0.8797", "0.880 ± 0.059")) == []


def test_differences_are_paired_by_seed() -> None:
    # 1 - 0, 3 - 1, 5 - 2: mean 2, standard error 1/sqrt(3); seed 3 has no partner
    runs = [{"arm": "a", "seed": s, "x": float(2 * s + 1)} for s in range(4)]
    runs += [{"arm": "b", "seed": s, "x": float(s)} for s in range(3)]
    (found,) = differences(runs, [("a", "b")])
    assert (found["mean"], found["seeds"], found["number"]) == (2.0, 3, "x")
    assert found["half_width"] == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("git", "shown"),
    [
        ({"commit": "abcdefgh", "is_dirty": True}, "abcdefg+."),
        ({"commit": "abcdefgh", "is_dirty": False}, "abcdefg."),
        (None, "unknown."),
    ],
)
def test_a_tree_with_uncommitted_changes_is_marked(git: dict[str, object] | None, shown: str) -> None:
    number = {"mean": 1.0, "half_width": 0.5, "seeds": 3}
    text = table({"arms": {"a": {"x": number}}, "environment": {"git": git}, "date": "2026-11-22T00"})
    assert text.endswith(f"commit {shown}\n")


def test_results_hold_their_settings(tmp_path: Path) -> None:
    experiment = Experiment("nothing", "")
    experiment.folder = tmp_path
    for seed in (0, 1):
        (tmp_path / f"q+ 0.25-{seed}").mkdir()
        (tmp_path / f"q+ 0.25-{seed}" / "recipe.json").write_text(f'{{"seed": {seed}}}')
    (found,) = experiment.settings().values()
    assert found["recipe"] == {"seed": 0} and found["sha256"].keys() == {"0", "1"}


def test_arms_with_fewer_seeds_say_so() -> None:
    arms = {
        "a": {"x": {"mean": 1.0, "half_width": 0.5, "seeds": 5}},
        "b": {"x": {"mean": 2.0, "half_width": None, "seeds": 1}},
    }
    lines = table({"arms": arms, "environment": {"git": None}, "date": "2026-11-30T00"}).splitlines()
    assert lines[0] == "| arm | seeds | x |"
    assert lines[2:4] == ["| a | 5 | 1.000 ± 0.500 |", "| b | 1 | 2.000 |"]
    assert lines[-1].startswith("1 to 5 seeds")
