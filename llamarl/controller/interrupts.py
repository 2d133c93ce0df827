"""Ctrl-C and its like: the first one asks the run to stop, a second one stops it."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llamarl.controller.reporter import Reporter


@contextmanager
def first_interrupt(stop: Callable[[], None], reporter: Reporter) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or SIGHUP (a closed terminal) finishes the step and saves; a second ends at once.

    A second SIGHUP does not: shell and system may both send one. A signal that is ignored (`nohup`) stays so.
    """
    loop = asyncio.get_running_loop()
    is_main = threading.current_thread() is threading.main_thread()  # Python lets no other thread set handlers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def on_signal() -> None:
        for number in before:
            loop.remove_signal_handler(number)
            if is_main:
                signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.default_int_handler)
        reporter.on_interrupt()
        stop()

    try:
        for number in before:
            loop.add_signal_handler(number, on_signal)
    except (ValueError, RuntimeError, NotImplementedError):  # a thread that hears of no signal, or no POSIX
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if is_main:
                signal.signal(number, handler)
