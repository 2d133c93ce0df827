import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.controller.ledger import Ledger, read_counts
from llamarl.core.errors import CheckpointError


def test_counts_follow_a_prompt_through_its_states(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for prompt_id in "abc":
            ledger.issue(0, prompt_id)
        ledger.finish(0, "a")
        ledger.drop(0, "b", version=0, reason="no_signal")
        ledger.commit_step(1, [(0, "a")])
        assert ledger.counts() == {"issued": 3, "finished": 0, "trained": 1, "dropped": 1}
        assert ledger.drop_reasons() == {"no_signal": 1}
        assert read_counts(tmp_path / "ledger.sqlite") == ledger.counts()


def test_what_was_not_committed_with_a_step_is_gone_after_a_kill(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.issue(0, "a")
    ledger.commit_step(1, [(0, "a")])
    ledger.issue(0, "b")
    reader = Ledger(tmp_path / "copy.sqlite")  # a second connection sees only what is on disk
    rows = sqlite3.connect(tmp_path / "ledger.sqlite").execute("SELECT prompt_id FROM prompts").fetchall()
    assert rows == [("a",)]
    reader.close()


def test_rewind_forgets_later_steps_and_unfinished_work() -> None:
    ledger = Ledger(":memory:")
    for prompt_id in "abcd":
        ledger.issue(0, prompt_id)
    ledger.commit_step(1, [(0, "a")])
    ledger.drop(0, "b", version=1, reason="no_signal")
    ledger.commit_step(2, [(0, "c")])
    ledger.rewind(1)
    assert ledger.accounted() == {(0, "a"), (0, "b")}
    ledger.rewind(0)
    assert ledger.accounted() == set()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("itdr"), st.integers(0, 4)), max_size=40))
def test_no_prompt_trains_twice_in_an_epoch(moves: list[tuple[str, int]]) -> None:
    ledger, version, trained = Ledger(":memory:"), 0, {}  # type: ignore[var-annotated]
    under_way: set[str] = set()
    for move, number in moves:
        prompt_id = str(number)
        if move == "i" and prompt_id not in under_way and (0, prompt_id) not in ledger.accounted():
            ledger.issue(0, prompt_id)
            under_way.add(prompt_id)
        elif move == "t" and prompt_id in under_way:
            version += 1
            ledger.commit_step(version, [(0, prompt_id)])
            under_way.discard(prompt_id)
            trained[prompt_id] = version
        elif move == "t":
            with pytest.raises(ValueError, match="not under way"):
                ledger.commit_step(version + 1, [(0, prompt_id)])
            ledger.commit()
        elif move == "r":
            version = number
            ledger.rewind(version)
            under_way.clear()
            trained = {k: v for k, v in trained.items() if v <= version}
        assert {i for _, i in ledger.accounted()} == set(trained)
    counts = ledger.counts()
    assert counts["trained"] == len(trained) and counts["issued"] == len(trained) + len(under_way)


def test_accounted_up_to_a_version_is_what_rewinding_leaves() -> None:
    ledger = Ledger(":memory:")
    for prompt_id in "abc":
        ledger.issue(0, prompt_id)
    ledger.commit_step(1, [(0, "a")])
    ledger.drop(0, "b", version=2, reason="no_signal")
    ledger.commit_step(2, [(0, "c")])
    assert ledger.accounted(1) == {(0, "a")}
    assert ledger.accounted(0) == set()
    ledger.rewind(1)
    assert ledger.accounted() == {(0, "a")}
    with pytest.raises(CheckpointError, match="no prompt that step 2 trained"):
        ledger.accounted(2)


def test_counts_of_an_empty_file_are_zero_and_of_a_broken_one_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger of #1.sqlite"
    path.touch()
    assert read_counts(path) == {"issued": 0, "finished": 0, "trained": 0, "dropped": 0}
    path.write_text("not a database" * 100)
    with pytest.raises(CheckpointError, match="not a readable ledger"):
        read_counts(path)


def test_rejects_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("not a database, but long enough to be read as one" * 30)
    with pytest.raises(CheckpointError, match="not a ledger"):
        Ledger(path)
