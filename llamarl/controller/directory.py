"""A run directory: worked on by one process at a time, and gone on with as the run that it is."""

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamarl.controller.ledger import is_refused
from llamarl.controller.recipe import Recipe
from llamarl.core.errors import CheckpointError, ConfigError, MissingCheckpointError
from llamarl.report.files import read_json

RECIPE_FILE = "recipe.json"
LEDGER_FILE = "ledger.sqlite"
LOCK_FILE = ".lock"
"""Held by the process that trains, whose id it names."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

FREE_DATA_SETTINGS = frozenset({"epochs", "on_bad_row"})
"""Data settings that may change on resume: neither the prompts of a run nor which are held out depend on them."""


def read_recipe(directory: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """The recipe of a run, with `--dotted.name value` or nested overrides.

    Raises:
        MissingCheckpointError: not a run directory.
        DataError: `recipe.json` is broken.
        ConfigError: names each wrong field.
    """
    path = Path(directory) / RECIPE_FILE
    if not path.is_file():
        raise MissingCheckpointError(f"{directory}: no {RECIPE_FILE}; give the directory of a llamarl run")
    read_json(path)
    return Recipe.load(path, overrides)


def check_unused(directory: Path) -> None:
    """Raises `ConfigError` unless the directory is absent, or empty but for a lock."""
    try:
        names = {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"run_dir={directory}: {error.strerror}; choose another directory") from None
    if names - {LOCK_FILE}:
        raise ConfigError(
            f"run_dir={directory}: not empty; `llamarl resume {directory}` goes on with it, or choose another directory"
        )


def missing_folders(directory: Path) -> list[Path]:
    """The directory and those of its parents that are still to be made, the innermost first."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def clear(directory: Path, made: Sequence[Path]) -> None:
    """Removes what a run that never began wrote, and the folders that were made for it where nothing else is in them.

    Args:
        directory: of the run; it held nothing before (`check_unused`).
        made: what `missing_folders` gave before `hold`.
    """
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    with contextlib.suppress(OSError):  # somebody else has written into one of them
        for path in made:
            path.rmdir()


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Makes the directory where absent, and holds it: the system lets it go however the process ends.

    Raises:
        ConfigError: another process holds it (names it), or it cannot be written.
        CheckpointError: the disk is full, or ran full meanwhile; or the ledger is damaged.
    """
    import fcntl  # POSIX only

    with _explain(directory):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = open(directory / LOCK_FILE, "a+b", buffering=0)  # noqa: SIM115 - closed below
        except OSError as error:
            if error.errno in FULL:
                raise
            raise ConfigError(
                f"run_dir={directory}: cannot be written ({error.strerror}); choose another directory"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().decode().strip() or "unknown"
                raise ConfigError(
                    f"run_dir={directory}: process {holder} is training in it; wait until it ends, or end it, then "
                    "resume"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
            yield


@contextmanager
def _explain(directory: Path) -> Iterator[None]:
    """Raises `CheckpointError` in place of what a full disk or a damaged ledger raises."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, errno.EROFS):
            raise
        raise _full(directory, error) from error
    except sqlite3.DatabaseError as error:
        if is_refused(error):
            raise _full(directory, error) from error
        raise CheckpointError(
            f"{directory / LEDGER_FILE}: {error}; restore it from a copy, or start a new run from `llamarl export`"
        ) from error


def _full(directory: Path, error: Exception) -> CheckpointError:
    is_run = (directory / RECIPE_FILE).is_file()
    remedy = f"`llamarl resume {directory}`" if is_run else "start the run again"
    return CheckpointError(f"{directory}: the disk takes no more ({error}); make room, then {remedy}")


def check_same_run(then: Recipe, now: Recipe, directory: Path) -> None:
    """Checks that no setting changed which decides a run's prompts or what its numbers mean.

    Raises:
        ConfigError: names each changed setting, its old and its new value.
    """
    old, new = _identity(then), _identity(now)
    changes = [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    if changes:
        raise ConfigError(
            f"{directory}: the run began with other settings, so its numbers and its ledger would no longer fit: "
            f"{'; '.join(changes)}. Leave them as they were, or start a new run from "
            f"`llamarl export {directory} MODEL_DIR`; if a file only moved, change its name in "
            f"{directory / RECIPE_FILE}"
        )


def _identity(recipe: Recipe) -> dict[str, Any]:
    """Dotted name -> value of each setting that a resumed run must keep."""
    evaluation = recipe.evaluation
    kept: dict[str, Any] = {
        "model": recipe.model,
        "chat_template_args": recipe.chat_template_args,
        "seed": recipe.seed,
        # Checkpoints hold adapters without their scale: another one would make them another policy.
        "trainer.lora": recipe.trainer.lora and recipe.trainer.lora.model_dump(),
        "evaluation.num_prompts": evaluation.num_prompts,
        "evaluation.source": evaluation.source,
        "evaluation.temperature": evaluation.temperature,
    }
    if recipe.data is not None:
        kept |= _select_settings("data.", recipe.data.model_dump())
    for index, task in enumerate(recipe.tasks):
        kept |= {f"tasks.{index}.name": task.name, f"tasks.{index}.held_out": task.held_out}
        kept |= _select_settings(f"tasks.{index}.data.", task.data.model_dump())
    return kept


def _select_settings(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items() if name not in FREE_DATA_SETTINGS}
