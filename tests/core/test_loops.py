"""Coroutines from plain code, with and without a running loop; Ctrl-C reaches both."""

import asyncio
import contextvars
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from llamarl.core.loops import run_async
from llamarl.core.threads import list_unfinished

VALUE = contextvars.ContextVar("value", default=0)


def plainly(call: Callable[[], Any]) -> Any:
    return call()


def in_a_loop(call: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return call()

    return asyncio.run(main())


WHERE = pytest.mark.parametrize("where", [plainly, in_a_loop])


@WHERE
def test_the_result_comes_back(where: Callable[..., Any]) -> None:
    async def work() -> tuple[int, str]:
        await asyncio.sleep(0)
        return VALUE.get(), threading.current_thread().name

    VALUE.set(7)
    value, thread = where(lambda: run_async(work()))
    assert value == 7 and (thread == "MainThread") == (where is plainly)
    assert not list_unfinished()


@WHERE
def test_an_error_comes_back(where: Callable[..., Any]) -> None:
    async def work() -> None:
        raise ValueError("so it is")

    with pytest.raises(ValueError, match="so it is"):
        where(lambda: run_async(work()))
    assert not list_unfinished()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


async def endless(done: list[str]) -> None:
    try:
        interrupt()
        await asyncio.sleep(600)
    finally:
        done.append("closed")


@WHERE
def test_ctrl_c_cancels_and_is_raised(where: Callable[..., Any]) -> None:
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        where(lambda: run_async(endless(done)))
    assert done == ["closed"] and signal.getsignal(signal.SIGINT) == before and not list_unfinished()


@WHERE
def test_the_first_ctrl_c_calls_the_handler_and_the_second_cancels(where: Callable[..., Any]) -> None:
    heard: list[str] = []

    async def work() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGINT, stop.set)
        interrupt()
        await stop.wait()
        heard.append("first")
        loop.remove_signal_handler(signal.SIGINT)
        await endless(heard)

    with pytest.raises(KeyboardInterrupt):
        where(lambda: run_async(work()))
    assert heard == ["first", "closed"]


def test_a_coroutine_that_will_not_end_is_left_behind_at_the_third_ctrl_c() -> None:
    release = threading.Event()

    async def work() -> None:
        for _ in range(2):
            interrupt()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(600)
        interrupt()
        release.wait()

    with pytest.raises(KeyboardInterrupt):
        in_a_loop(lambda: run_async(work()))
    assert list_unfinished() == ["event loop"]
    release.set()


def test_another_thread_than_the_main_one_waits_too() -> None:
    async def work() -> str:
        return threading.current_thread().name

    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(in_a_loop(lambda: run_async(work()))))
    thread.start()
    thread.join()
    assert names == ["event loop"]


def test_a_cancelled_coroutine_is_no_ctrl_c() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    outcome: list[type] = []

    def call() -> None:
        try:
            run_async(work())
        except BaseException as error:
            outcome.append(type(error))

    in_a_loop(call)
    assert outcome == [asyncio.CancelledError]


def test_a_result_is_handed_over_without_being_spelled_out():
    class Long:
        def __repr__(self):
            raise AssertionError("this would take hours")

    async def work():
        return result

    result = Long()
    assert run_async(work()) is result
