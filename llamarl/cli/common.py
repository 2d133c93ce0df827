"""Parts that several commands share."""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from llamarl.report.text import visible

if TYPE_CHECKING:
    from llamarl.cli.options import LiveOutput

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM."""


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Prints text that may hold other people's words, by default on standard output, and steers no terminal.

    Control characters become pictures; what the stream cannot encode becomes a question mark.
    """
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(visible(text).encode(encoding, errors="replace").decode(encoding), file=stream)


def quieten_terminal() -> None:
    """Log records and warnings, which may hold other people's words too, are shown like `say` shows text."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_VisibleFormatter())
    warnings.formatwarning = _format_warning


HEAVY = {"torch": "torch", "pyspark": "Spark"}
"""Libraries whose import takes a second and more, and their names for people."""


def announce_loading(stream: TextIO) -> None:
    """Says on a terminal, once, that a heavy library is being loaded: nothing else is seen until it is there."""
    if stream.isatty() and not HEAVY.keys() & sys.modules.keys():
        sys.meta_path.insert(0, _LoadingNotice(stream))


class _LoadingNotice(MetaPathFinder):
    """Sees imports begin, and finds nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in HEAVY and self in sys.meta_path:
            sys.meta_path.remove(self)
            say(f"loading {HEAVY[fullname]} ...", self._stream)
        return None


class _VisibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return visible(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2, default=str))


@contextmanager
def show_progress(what: str, output: "LiveOutput", *, can_go_on: bool = True) -> Iterator[Callable[..., None]]:
    """Shows how far a job is, on standard error, and yields what to call: `update(done, total, failed=0, note="")`.

    Nothing is shown before the first call, when the input is known to be good, nor where the result is JSON.

    Args:
        what: the pieces of work, in the plural.
        output: what the user asked for.
        can_go_on: whether the same command goes on where it was stopped, which a user who stops it is told.
    """
    from llamarl.report.progress import make_progress

    is_begun = False
    is_quiet = output.quiet or output.json
    with make_progress(what, quiet=is_quiet, plain=output.plain, can_go_on=can_go_on) as progress:

        def update(done: int, total: int, failed: int = 0, note: str = "") -> None:
            nonlocal is_begun
            if not is_begun:
                progress.start(max(0, done - 1), total)  # of a job that goes on, what was there before
                is_begun = True
            progress.update(done, failed, note)

        yield update
