"""An executor with one method per thing that can happen. Importable by child processes, free of pytest."""

import asyncio
import atexit
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

from llamarl.core.errors import JudgeError
from llamarl.core.protocols import Executor


class OddError(Exception):
    """Cannot be unpickled: its constructor takes two arguments and passes on one."""

    def __init__(self, number: int, colour: str):
        super().__init__(f"{number} {colour}")


class Probe(Executor):
    def setup(self):
        self.seen = []
        self.active = self.most_active = 0
        self.go, self.begun, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.setup_thread = threading.get_ident()

    def teardown(self):
        if path := os.environ.get("LLAMARL_TEST_TEARDOWN_LOG"):
            with open(path, "a") as file:
                file.write(f"{self.rank}\n")

    def echo(self, value):
        return value

    def add(self, value):
        self.seen.append(value)
        return list(self.seen)

    def whoami(self):
        return self.rank, self.world_size, os.getpid()

    def on_setup_thread(self):
        return threading.get_ident() == self.setup_thread

    def variable(self, name):
        return os.environ.get(name)

    def alone(self, seconds):
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        time.sleep(seconds)
        self.active -= 1
        return self.most_active

    def block(self, seconds):
        time.sleep(seconds)

    async def wait_for_go(self):
        await self.go.wait()
        return "went"

    async def give_go(self):
        self.go.set()

    async def forever(self):
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def wait_for_begin(self):
        await self.begun.wait()

    async def has_begun(self):
        return self.begun.is_set()

    async def wait_for_cancel(self):
        await self.cancelled.wait()

    def judge_error(self):
        raise JudgeError("the judge broke: 3 of 4 votes missing")

    async def key_error(self):
        raise KeyError("colour")

    def own_timeout(self):
        raise TimeoutError("the method's own")

    def odd_error(self):
        raise OddError(7, "red")

    def leave(self):
        sys.exit(3)

    async def leave_async(self):
        sys.exit(3)


class Leaving(Executor):
    """Notes how its process ends."""

    def __init__(self, folder):
        self.folder = folder

    def setup(self):
        atexit.register(Path(self.folder, "handlers ran").touch)
        sys.modules["kept to the end"] = _Kept(Path(self.folder, "interpreter taken apart"))

    def start_child(self):
        self.child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,), daemon=True)
        self.child.start()
        return self.child.pid

    def pid(self):
        return os.getpid()


class _Kept:
    def __init__(self, path):
        self.touch = path.touch

    def __del__(self):
        self.touch()


class Broken(Executor):
    def setup(self):
        raise ValueError("no such model")


class Stubborn(Probe):
    def teardown(self):
        raise RuntimeError("teardown failed")
