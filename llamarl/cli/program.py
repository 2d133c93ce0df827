"""The outermost frame of the program: whatever threads do, it ends with the status of its command."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable

from llamarl.cli.common import INTERRUPTED
from llamarl.cli.main import main
from llamarl.core.threads import WAIT_SECONDS, list_unfinished, wait_for_unfinished


def run(command: Callable[[], int] = main, *, wait_seconds: float = WAIT_SECONDS) -> None:
    """Runs the command and ends this process with its status: 1 after an error that nobody expected.

    A thread that goes on computing (a trainer's backward pass, a judge's model) would abort an interpreter that exits
    in order. So it is waited for, and if it takes too long, or somebody pressed Ctrl-C twice, the process ends without
    the interpreter, its files flushed.
    """
    try:
        status = command()
    except SystemExit as error:  # argparse's, say
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:  # before the command began
        status = INTERRUPTED
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        left = list_unfinished() if status == INTERRUPTED else wait_for_unfinished(wait_seconds)
    except KeyboardInterrupt:
        left, status = ["interrupted"], INTERRUPTED
    if left:
        _flush()
        os._exit(status)
    sys.exit(status)


def _flush() -> None:
    """Flushes what the interpreter would at its end; a run's files are written line by line, or closed by now."""
    for flush in (logging.shutdown, sys.stdout.flush, sys.stderr.flush):
        with contextlib.suppress(OSError, ValueError):  # the reader of a pipe has gone, or it is closed
            flush()
