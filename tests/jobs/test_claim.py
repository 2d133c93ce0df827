import pytest

from llamarl.core.errors import ConfigError
from llamarl.jobs import changed_names, lock_directory


def test_changes_are_told_by_dotted_names() -> None:
    before = {"chat": {"model": "a", "sampling": {"top_p": 1.0}}, "seed": 0, "gone": None, "old": 1}
    now = {"chat": {"model": "b", "sampling": {"top_p": 1.0}}, "seed": 0, "new": [1]}
    assert changed_names(before, now) == {"chat.model": ("a", "b"), "old": (1, None), "new": (None, [1])}
    assert changed_names(now, now) == {}


def test_a_directory_is_held_until_the_lock_is_closed(tmp_path) -> None:
    pattern = r"process \d+ is working in this directory; wait for it"
    with lock_directory(tmp_path / "new", "working in"), pytest.raises(ConfigError, match=pattern):
        lock_directory(tmp_path / "new", "working in")
    lock_directory(tmp_path / "new", "working in").close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/below: cannot be written .*; choose another directory"):
        lock_directory(tmp_path / "file" / "below", "working in")
