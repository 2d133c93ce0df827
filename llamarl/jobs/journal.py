"""Journal of a job's finished parts, a line each, in a file that outlives the process that writes it."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.report.files import JsonlFile, Record

SYNC_SECONDS = 5.0
"""Time between two waits for the disk, in seconds."""


class Journal:
    """Appends finished rows; a line that a kill tore is cut off when the file is opened again.

    Args:
        path: created with its folders where absent.

    Raises:
        DataError: the disk refuses; so of every method.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._explain():
            self._file = JsonlFile(self.path)
        self._is_synced, self._last_sync = True, time.monotonic()

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes a line: from here on a kill of this process cannot lose it, and soon a power cut cannot either."""
        with self._explain():
            self._file.append(record)
        self._is_synced = False
        if time.monotonic() - self._last_sync >= SYNC_SECONDS:  # seldom: waiting for the disk takes milliseconds
            self.sync()

    def keep_only(self, should_keep: Callable[[Record], bool]) -> int:
        """Drops the other lines, in one atomic replacement; returns how many went."""
        with self._explain():
            return self._file.keep_only(should_keep)

    def sync(self) -> None:
        """Waits until the disk has what was appended."""
        if self._is_synced:
            return
        self._is_synced, self._last_sync = True, time.monotonic()
        with self._explain(), open(self.path, "rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Syncs and closes. Idempotent."""
        try:
            self.sync()
        finally:
            self._file.close()

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        """Says what to do where the disk refuses."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}); mend that and run the same again"
            ) from error
