import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llamarl.core.errors import ConfigError, DataError, EndpointError
from llamarl.factuality.stages import Outcome, Stage, run_stage


class Doubling(Stage[int]):
    """Doubles numbers; `fails` says which of them raise what."""

    name = "doubling"

    def __init__(self, fails: Callable[[int], Exception | None] = lambda item: None, factor: int = 2) -> None:
        self.fails, self.factor = fails, factor
        self.processed: list[int] = []

    def record(self) -> Mapping[str, Any]:
        return {"factor": self.factor}

    def content(self, item: int) -> Any:
        return item

    async def process(self, item: int) -> dict[str, Any]:
        self.processed.append(item)
        if error := self.fails(item):
            raise error
        return {"value": self.factor * item}


def run(stage: Stage[int], directory: Path, count: int = 5, start: int = 0) -> Outcome:
    items = {str(number): number for number in range(start, start + count)}
    return asyncio.run(run_stage(stage, items, directory, max_in_flight=2))


def test_what_is_on_file_is_not_done_again(tmp_path: Path) -> None:
    first, second = Doubling(), Doubling()
    assert list(run(first, tmp_path).results.items())[-1] == ("4", {"value": 8})
    outcome = run(second, tmp_path, count=7)
    assert second.processed == [5, 6] and outcome.num_kept == 5
    assert [result["value"] for result in outcome.results.values()] == [0, 2, 4, 6, 8, 10, 12]


def test_a_torn_line_is_done_again(tmp_path: Path) -> None:
    run(Doubling(), tmp_path)
    path = tmp_path / "doubling.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    stage = Doubling()
    assert len(run(stage, tmp_path).results) == 5 and stage.processed == [4]


def test_other_settings_start_anew_and_the_old_ones_find_their_results(tmp_path: Path) -> None:
    run(Doubling(), tmp_path)
    tripling, again = Doubling(factor=3), Doubling()
    assert run(tripling, tmp_path).results["4"] == {"value": 12} and len(tripling.processed) == 5
    assert run(again, tmp_path).results["4"] == {"value": 8} and again.processed == []


def test_equal_items_are_done_once(tmp_path: Path) -> None:
    stage = Doubling()
    outcome = asyncio.run(run_stage(stage, {"a": 1, "b": 2, "c": 1}, tmp_path, max_in_flight=1))
    assert stage.processed == [1, 2] and outcome.results["c"] == {"value": 2}


def test_failures_leave_no_line_and_are_tried_again(tmp_path: Path) -> None:
    outcome = run(Doubling(lambda item: EndpointError("down") if item == 2 else None), tmp_path)
    assert outcome.failures == {"2": "down"} and list(outcome.results) == ["0", "1", "3", "4"]
    stage = Doubling()
    assert len(run(stage, tmp_path).results) == 5 and stage.processed == [2]


def test_a_back_end_that_is_down_is_given_up(tmp_path: Path) -> None:
    stage = Doubling(lambda item: EndpointError("down") if item >= 3 else None)
    with pytest.raises(
        EndpointError, match=r"doubling: 8 items failed one after another, the last with: down; .*again"
    ):
        run(stage, tmp_path, count=100)
    assert len(stage.processed) <= 13  # three that worked, eight that failed, and what was in flight
    mended = Doubling()
    assert len(run(mended, tmp_path, count=100).results) == 100 and len(mended.processed) == 97


def test_all_failed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="all 3 items failed"):
        run(Doubling(lambda item: EndpointError("down")), tmp_path, count=3)


def test_a_refusal_is_a_wrong_setting_at_first_and_an_item_that_failed_later(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such model"):
        run(Doubling(lambda item: ConfigError("no such model")), tmp_path / "a")
    outcome = run(Doubling(lambda item: ConfigError("too long") if item == 4 else None), tmp_path / "b")
    assert outcome.failures == {"4": "too long"}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run(Doubling(), tmp_path)
    path = tmp_path / "doubling.jsonl"
    path.write_text("{oops\n" + path.read_text())
    with pytest.raises(DataError, match=r"doubling\.jsonl, line 1: not a JSON object"):
        run(Doubling(), tmp_path)
