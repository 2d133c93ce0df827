"""Progress of a step's training, shared across processes without a call: the trainer answers none while it trains."""

import contextlib
import struct
from pathlib import Path

_NUMBERS = struct.Struct("<II")


class StepProgress:
    """The micro-batch under way and how many there are, in eight bytes of a file. Pickles as the file's name.

    Args:
        path: the file, in a directory that writer and readers share.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, number: int, total: int) -> None:
        """Notes micro-batch `number` of `total`, from 1. A full disk stops no training."""
        with contextlib.suppress(OSError):
            self._path.write_bytes(_NUMBERS.pack(number, total))

    def read(self) -> tuple[int, int] | None:
        """Returns the micro-batch under way and how many there are; None where nothing was noted."""
        try:
            numbers: tuple[int, int] = _NUMBERS.unpack(self._path.read_bytes())
        except (OSError, struct.error):  # struct.error: read between the file's emptying and its writing
            return None
        return numbers

    def clear(self) -> None:
        """Removes the file."""
        with contextlib.suppress(OSError):
            self._path.unlink()
