import random
import resource
import sqlite3
from contextlib import closing
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
        assert ledger.counts()["dropped"] == 1
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
    assert ledger.read_accounted() == {(0, "a"), (0, "b")}
    ledger.rewind(0)
    assert ledger.read_accounted() == set()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("itdr"), st.integers(0, 4)), max_size=40))
def test_no_prompt_trains_twice_in_an_epoch(moves: list[tuple[str, int]]) -> None:
    ledger, version, trained = Ledger(":memory:"), 0, {}  # type: ignore[var-annotated]
    under_way: set[str] = set()
    for move, number in moves:
        prompt_id = str(number)
        if move == "i" and prompt_id not in under_way and (0, prompt_id) not in ledger.read_accounted():
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
        assert {i for _, i in ledger.read_accounted()} == set(trained)
    counts = ledger.counts()
    assert counts["trained"] == len(trained) and counts["issued"] == len(trained) + len(under_way)


def test_accounted_up_to_a_version_is_what_rewinding_leaves() -> None:
    ledger = Ledger(":memory:")
    for prompt_id in "abc":
        ledger.issue(0, prompt_id)
    ledger.commit_step(1, [(0, "a")])
    ledger.drop(0, "b", version=2, reason="no_signal")
    ledger.commit_step(2, [(0, "c")])
    assert ledger.read_accounted(1) == {(0, "a")}
    assert ledger.read_accounted(0) == set()
    ledger.rewind(1)
    assert ledger.read_accounted() == {(0, "a")}


def test_counts_of_an_empty_file_are_zero_and_of_a_broken_one_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger of #1.sqlite"
    path.touch()
    assert read_counts(path) == {"issued": 0, "finished": 0, "trained": 0, "dropped": 0}
    path.write_text("not a database" * 100)
    with pytest.raises(CheckpointError, match="not a ledger, or a damaged one"):
        read_counts(path)


def test_rejects_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("not a database, but long enough to be read as one" * 30)
    with pytest.raises(CheckpointError, match="not a ledger"):
        Ledger(path)


def filled(path: Path) -> dict[int, str]:
    """A ledger of 60 prompts; its digests by version."""
    digests = {}
    with Ledger(path) as ledger:
        for version in range(1, 21):
            for number in range(3):
                ledger.issue(0, f"prompt-{version}-{number}")
            ledger.drop(0, f"prompt-{version}-0", version, "no_signal")
            ledger.commit_step(version, [(0, f"prompt-{version}-{number}") for number in (1, 2)])
            digests[version] = ledger.digest(version)
    return digests


def test_the_digest_of_a_version_depends_on_what_was_trained_and_dropped_and_on_nothing_else(tmp_path: Path) -> None:
    digests = filled(tmp_path / "a.sqlite")
    assert len(set(digests.values())) == 20
    with Ledger(tmp_path / "a.sqlite") as ledger:  # from the rows, no longer kept up
        assert {version: ledger.digest(version) for version in digests} == digests
        ledger.rewind(7)
        assert ledger.digest(7) == ledger.digest(20) == digests[7]
    other = Ledger(":memory:")
    for number in (2, 0, 1, 9):
        other.issue(0, f"prompt-1-{number}")
    other.commit_step(1, [(0, "prompt-1-2"), (0, "prompt-1-1")])
    assert other.digest(1) != digests[1]
    other.drop(0, "prompt-1-0", 1, "unscored")
    assert other.digest(1) == digests[1] and other.digest(0) == Ledger(":memory:").digest(9)


CHANGES = ["status = 'issued'", "status = 'dropped'", "prompt_id = 'q'", "version = 3", "epoch = 1"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_row_is_seen(tmp_path: Path, change: str) -> None:
    path = tmp_path / "ledger.sqlite"
    digest = filled(path)[20]
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE prompts SET {change} WHERE prompt_id = 'prompt-4-1'")
    with Ledger(path) as ledger, pytest.raises(CheckpointError, match="when step 20 was saved"):
        ledger.check_digest(20, digest)


def test_any_bytes_overwritten_are_seen(tmp_path: Path) -> None:
    path, rng = tmp_path / "ledger.sqlite", random.Random(0)
    digest = filled(path)[20]
    content, rows = path.read_bytes(), rows_of(path)
    for _ in range(300):
        length = rng.choice([1, 1, 8, 64])
        position = rng.randrange(len(content) - length)
        changed = content[:position] + rng.randbytes(length) + content[position + length :]
        path.write_bytes(changed)
        try:
            with Ledger(path) as ledger:
                ledger.check_digest(20, digest)
        except CheckpointError as error:
            assert "restore" in str(error)
        else:
            assert rows_of(path) == rows  # it hit nothing that counts
        for extra in ("-wal", "-shm"):
            Path(f"{path}{extra}").unlink(missing_ok=True)


def rows_of(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT epoch, prompt_id, status, version FROM prompts ORDER BY 1, 2").fetchall()


@pytest.mark.parametrize("status", ["traineD", "", "lost"])
def test_a_status_that_no_ledger_writes_is_refused(tmp_path: Path, status: str) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA ignore_check_constraints = 1")
        db.execute("UPDATE prompts SET status = ? WHERE prompt_id = 'prompt-4-1'", (status,))
    with pytest.raises(CheckpointError, match=r"damaged one \(.*(CHECK|status)"):
        Ledger(path)


def test_a_disk_that_refuses_is_not_called_a_foreign_file_and_counts_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path)
    counts = read_counts(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # stands for a full disk
    try:
        with pytest.raises(CheckpointError, match=r"the disk refuses it .*; make room"):
            Ledger(path)
        assert read_counts(path) == counts == {"issued": 60, "finished": 0, "trained": 40, "dropped": 20}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
