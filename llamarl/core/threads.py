"""Daemon threads that may still be at work when the program is to end.

A thread cannot be ended from outside, and it must not be cut off either: an interpreter that exits while one of its
threads is inside C++ (a backward pass, say) is aborted by that thread, and its exit status is lost. So whoever runs
such work on a daemon thread says so here, and the end of the program waits for it, within bounds.
"""

import atexit
import sys
import threading
import time

WAIT_SECONDS = 10.0
"""Longest wait for such threads at the end of a program, in seconds."""

_unfinished: set[threading.Thread] = set()
"""`add` and `discard` are atomic."""


def note_unfinished(thread: threading.Thread) -> None:
    """The thread works on, or may; until it ends or `forget` is called."""
    _unfinished.add(thread)


def forget(thread: threading.Thread) -> None:
    """The thread does nothing that may not be cut off."""
    _unfinished.discard(thread)


def list_unfinished() -> list[str]:
    """Names of the threads that still work."""
    return sorted({thread.name for thread in _unfinished.copy() if thread.is_alive()})


def wait_for_unfinished(seconds: float = WAIT_SECONDS) -> list[str]:
    """Waits until no such thread works any more, at most so long; returns the names of those that still do."""
    if not (names := list_unfinished()):
        return []
    text = f"waiting up to {seconds:g} s for work that cannot be interrupted: {', '.join(names)}"
    print(text, file=sys.stderr, flush=True)
    deadline = time.monotonic() + seconds
    while (names := list_unfinished()) and time.monotonic() < deadline:
        time.sleep(0.02)  # a judge's thread never ends, so there is nothing to join
    return names


atexit.register(wait_for_unfinished)  # runs before the interpreter cuts daemon threads off
