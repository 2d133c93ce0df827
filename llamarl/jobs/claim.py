"""Claims on a directory: one process works there at a time, and finds only work of the kind that is asked for."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from llamarl.core.errors import ConfigError
from llamarl.core.machine import try_lock

LOCK_FILE = ".lock"


def lock_directory(directory: str | Path, doing: str) -> TextIO:
    """Holds a directory for this process until the file is closed; the system lets go however the process ends.

    Args:
        directory: made where absent.
        doing: what such processes do there, such as `evaluating into`, for the error.

    Returns:
        The open file that holds the lock.

    Raises:
        ConfigError: another process holds it, named by its id; or the directory cannot be written.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written ({error.strerror}); choose another directory") from None
    if not try_lock(file):
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ConfigError(
            f"{directory}: process {holder} is {doing} this directory; wait for it, or choose another one"
        )
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def changed_names(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Finds what differs between two records of what a job depends on.

    Args:
        before: plain JSON values, of the job on file; nested.
        now: of the job that is asked for.

    Returns:
        Dotted name -> (value before, value now); None where there is none.
    """
    old, new = dict(_flatten(before)), dict(_flatten(now))
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested mappings as dotted names with their values."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item
