import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamarl.controller.checkpoints import MANIFEST, CheckpointStore
from llamarl.core.errors import CheckpointError


def writer(text: str):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        (folder / "trainer").mkdir()
        (folder / "trainer" / "weights").write_text(text)
        (folder / "state.json").write_text("{}")

    return write


def test_latest_is_what_was_saved_last_and_older_copies_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3, 4):
        store.save(step, writer(str(step)), score={1: 0.1, 2: 0.9, 3: 0.5, 4: 0.4}[step])
    assert store.steps() == [2, 3, 4]  # the last two, and the best
    assert (tmp_path / "best").read_text() == "step_000002"
    assert (tmp_path / "latest").read_text() == "step_000004"
    assert (store.load_latest().path / "trainer" / "weights").read_text() == "4"


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
@pytest.mark.parametrize("name", ["trainer/weights", "state.json"])
def test_a_damaged_copy_is_skipped_with_a_word(tmp_path: Path, damage: str, name: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"))
    file = store.save(2, writer("two")) / (MANIFEST if damage == "manifest" else name)
    content = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    elif damage == "flip":
        content[0] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[:-1])
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert store.load_latest().step == 1


def test_a_manifest_with_any_byte_changed_is_skipped_with_a_word(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"))
    file = store.save(2, writer("two"), score=0.5) / MANIFEST
    content, said = file.read_bytes(), []  # type: ignore[var-annotated]
    for position in range(len(content)):
        for bit in (1, 4, 128):
            changed = bytearray(content)
            changed[position] ^= bit
            if json.loads(content) == parsed(changed):
                continue  # only the layout: nothing is lost
            file.write_bytes(changed)
            assert store.load_latest(said.append).step == 1, (position, bit)
            assert "damaged checkpoint" in said[-1] and MANIFEST in said[-1]
    assert len(said) > 2 * len(content)


def parsed(content: bytearray) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize("text", ["", "[]", "null", "7", '{"step": 2}', '{"step": 2, "sha256": null}', "[" * 100_000])
def test_a_manifest_that_is_something_else_is_skipped_with_a_word(tmp_path: Path, text: str) -> None:
    store, said = CheckpointStore(tmp_path), []  # type: ignore[var-annotated]
    store.save(1, writer("one"))
    (store.save(2, writer("two")) / MANIFEST).write_text(text)
    assert store.load_latest(said.append).step == 1 and len(said) == 1
    assert store.save(3, writer("three"), score=1.0).name == (tmp_path / "best").read_text()


def test_a_folder_of_another_step_is_damaged(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one")).rename(tmp_path / "step_000007")
    with pytest.raises(CheckpointError, match=r"manifest\.json: is of step 1; the copy is damaged"):
        store.load(7)


@pytest.mark.parametrize("name", ["", "step_", "step_000009", "step_²", "step_00000\udcff1"])
def test_a_damaged_pointer_is_named(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"), score=1.0)
    (tmp_path / "best").write_bytes(name.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"best: names .*, which is not there; name a step, one of \[1\]"):
        store.number("best")


def test_looking_for_checkpoints_writes_nothing(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "checkpoints").steps() == []
    assert not list(tmp_path.iterdir())


def test_no_usable_copy_is_an_error_that_lists_why(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (store.save(1, writer("one")) / "state.json").unlink()
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match=r"starts over from step 0\n.*state.json"):
        store.load_latest()


def test_no_copy_at_all_is_an_error_that_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint yet; `llamarl resume .*` goes on"):
        CheckpointStore(tmp_path / "checkpoints").load_latest()


def test_a_failed_write_leaves_the_previous_copy_and_no_litter(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("one"))

    def full_disk(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.save(2, full_disk)
    assert store.load_latest().step == 1
    assert not list(tmp_path.glob("tmp-*"))


def test_saving_a_step_again_replaces_it_whole(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("old"))
    store.save(1, writer("new"))
    assert (store.load(1).path / "trainer" / "weights").read_text() == "new"
    assert not list(tmp_path.glob("tmp-*"))


def test_rejects_keeping_a_single_copy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep at least 2"):
        CheckpointStore(tmp_path, keep_last=1)


KILLED = """
import sys
from pathlib import Path
from llamarl.controller.checkpoints import CheckpointStore
store, step = CheckpointStore(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
while True:
    step += 1
    def write(folder):
        for n in range(4):
            (folder / f"f{n}").write_bytes(bytes([step % 256]) * 200_000)
    store.save(step, write)
    print(step, flush=True)
"""


def test_kills_at_random_moments_never_cost_a_complete_checkpoint(tmp_path: Path) -> None:
    import random

    rng, reached = random.Random(0), 0
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(reached)], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline().strip() == b"ready"
        child.stdout.readline()  # at least one more copy is sealed
        time.sleep(rng.random() * 0.02)
        assert child.poll() is None
        os.kill(child.pid, signal.SIGKILL)
        lines = child.stdout.read().split()
        child.stdout.close()
        child.wait()
        found = CheckpointStore(tmp_path).load_latest()
        assert found.step >= max([int(line) for line in lines], default=reached)
        assert {(found.path / f"f{n}").read_bytes() for n in range(4)} == {bytes([found.step % 256]) * 200_000}
        reached = found.step
