"""Directories of a checkpoint that appear whole, or not at all, and take the place of no other files.

write_export    a draft beside the directory -> a list of its files -> the directory's name
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamarl.core.errors import CheckpointError

EXPORT_FILE = "llamarl_export.json"
"""Marks a directory as written by `write_export`: the name and size in bytes of each of its files."""


def write_export(directory: str | Path, write: Callable[[Path], None]) -> Path:
    """Writes files to a hidden sibling folder, which takes the directory's name only when all of them are on disk.

    Args:
        directory: new, empty, or an earlier result of this function with nothing else in it.
        write: writes the files into the folder that it is given.

    Raises:
        CheckpointError: the directory holds other files.
    """
    target = Path(directory).resolve()
    check_target(target)
    draft = target.with_name(f".{target.name}.draft-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        write(draft)
        _write_export_file(draft)
        _swap_in(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def check_target(directory: str | Path, source: str | Path | None = None) -> None:
    """Refuses what `write_export` could not or should not write to; call it before the work whose result goes there.

    Args:
        directory: new, empty, or an earlier result of `write_export` with nothing else in it.
        source: the checkpoint that the result is made from, which is never overwritten; Hub ids are out of reach.

    Raises:
        CheckpointError: the directory holds other files, lies below a file, may not be written, or is `source`, holds
            it or lies in it.
    """
    target = Path(directory).resolve()
    own = None if source is None else Path(source).expanduser().resolve()
    if own is not None and own.exists() and (target == own or target in own.parents or own in target.parents):
        raise CheckpointError(
            f"{directory}: is, holds or lies in the model that the result is made from ({source}), and would overwrite "
            "it or mix with it; choose another directory"
        )
    standing = next(path for path in (target, *target.parents) if path.exists())
    if not standing.is_dir():
        raise CheckpointError(f"{target}: {'' if standing == target else f'{standing} '}is a file; give a directory")
    folder = target.parent if standing == target else standing  # where the finished draft takes its name
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"{target}: {folder} may not be written; choose another directory or change its rights")
    found = {file.name for file in target.iterdir()} if standing == target else set()
    known = set(read_object(target / EXPORT_FILE)["files"]) | {EXPORT_FILE} if EXPORT_FILE in found else set()
    if foreign := sorted(found - known):
        raise CheckpointError(
            f"{target}: not empty and not an earlier export (holds {foreign[0]}); choose another directory or empty it"
        )


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file of a checkpoint holds.

    Raises:
        CheckpointError: the file is missing, broken, or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file.parent}: no {file.name}; is this the directory of a Hugging Face checkpoint?"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}); copy or download it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds {type(values).__name__}, not an object; copy or download it again")
    return values


def _write_export_file(draft: Path) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
    (draft / EXPORT_FILE).write_text(json.dumps({"format": 1, "files": sizes}, indent=2) + "\n", encoding="utf-8")
    for file in draft.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def _swap_in(draft: Path, target: Path) -> None:
    """Renames `draft` to `target`; an older checkpoint there steps aside first and is then deleted."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        draft.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
