"""Differences between operating systems, each part imported where it is used.

The package is tested on Linux and expected to work on macOS. Elsewhere it imports, reads configs and data, and asks
models behind endpoints; worker processes of judges, the sandbox and engines with processes need POSIX.
"""

import os
import sys
from typing import IO, Any


def usable_cores() -> int:
    """Cores that this process may run on, where the system tells; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def return_freed_memory() -> None:
    """Gives the system back what this process has freed, on Linux with glibc; elsewhere nothing.

    A server whose batches are never of the same shape frees tensors of all sizes, and glibc keeps the gaps.
    """
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # musl has none
    if trim is not None:
        trim(0)


def try_lock(file: IO[Any]) -> bool:
    """Locks an open file for this process, and says whether it could; the system lets go however the process ends."""
    try:
        import fcntl
    except ImportError:
        return _try_lock_first_byte(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_lock_first_byte(file: IO[Any]) -> bool:
    """The same on Windows."""
    import importlib

    msvcrt: Any = importlib.import_module("msvcrt")  # types know it on Windows only
    file.seek(1 << 30)  # a byte that is locked can't be read, so not one of those that name the process
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True
