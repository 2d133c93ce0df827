"""Monarch over two hosts, which are this machine twice. A program of its own: Monarch has one transport a process."""

import asyncio
import os
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

from probe import Probe

from llamarl.core.errors import ConfigError, ExecutorLostError, JudgeError, StallError
from llamarl.engine.hosts import HostPool, HostsConfig
from llamarl.engine.monarch import Frontend, MonarchEngine
from llamarl.engine.wire import split_address
from llamarl.engine.worker import MonarchServer, Worker

SECRET = "0123456789abcdef" * 2
PATIENCE = 200.0

servers: list[MonarchServer] = []


def start(*arguments):
    servers.append(MonarchServer(*arguments))
    return servers[-1]


def is_refused(engine: str) -> bool:
    """Whether the engine's own port turns away who shows no certificate, before it reads anything."""
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(split_address(engine.removeprefix("tls://"), ""), timeout=PATIENCE) as plain,
            nobody.wrap_socket(plain) as connection,
        ):
            connection.sendall(b"x" * 100)
            connection.recv(100)
    except (ssl.SSLError, ConnectionError) as error:
        return "CERTIFICATE_REQUIRED" in str(error) or "reset" in str(error)
    return False


async def main() -> None:
    workers = [Worker("127.0.0.1", 0, SECRET, start=start) for _ in range(2)]
    for worker in workers:
        threading.Thread(target=worker.serve, daemon=True).start()
    config = HostsConfig(hosts=[worker.address for worker in workers], local=["here"])
    os.environ.update({"SECRET_OF_MINE": "x", "KEY_OF_A_JUDGE": "y"})
    pool = HostPool(config, SECRET, executors=["a", "b"])
    engine = MonarchEngine({"OURS": "set"}, ["KEY_OF_A_JUDGE"], hosts=pool)
    try:
        a, b, here = await asyncio.gather(
            *(engine.spawn(Probe, name=name, num_ranks=ranks) for name, ranks in (("a", 1), ("b", 2), ("here", 1)))
        )
        assert [each.host for each in (a, b, here)] == ["127.0.0.1"] * 3
        assert (here._lease, a._lease is b._lease) == (None, False)
        assert [rank for rank, _, _ in await b.call("whoami", rank=None)] == [0, 1]
        assert await here.call("echo", 3) == 3
        await check_calls(a)
        assert [await a.call("variable", name) for name in ("OURS", "KEY_OF_A_JUDGE", "SECRET_OF_MINE")] == [
            *("set", "y", None)
        ]
        assert all(is_refused(server.address) for server in servers)
        await check_loss(engine, a, b)
        check_that_one_process_has_one_secret()
    finally:
        await engine.close()
        for worker in workers:
            worker.close()
    for pid in (*a.pids, *b.pids, *here.pids):
        wait_until_gone(pid)


async def check_calls(handle) -> None:
    try:
        await handle.call("judge_error")
    except JudgeError as error:
        assert "3 of 4 votes" in str(error)
    try:
        await handle.call("forever", timeout_seconds=0.2)
    except StallError as error:
        assert "no answer within 0.2 s" in str(error)
    assert await handle.call("echo", b"x" * 3_000_000) == b"x" * 3_000_000


async def check_loss(engine: MonarchEngine, a, b) -> None:
    """The host of `b` loses its engine server: its calls fail at once, and it is replaced; `a` is unharmed."""
    call = asyncio.create_task(b.call("forever"))
    await b.call("echo", 1)
    victim = next(server for server in servers if server.address == b._lease.engine)
    os.kill(victim._process.pid, signal.SIGKILL)
    try:
        await call
        raise AssertionError("the call outlived its host")
    except ExecutorLostError as error:
        assert f"host {b._lease.config.address} is lost" in str(error)
        assert error.event
    assert not b.is_alive
    await b.stop()
    assert await a.call("echo", "unharmed") == "unharmed"
    again = await engine.spawn(Probe, name="b")
    assert await again.call("add", 5) == [5]
    again.kill()
    for pid in again.pids:
        wait_until_gone(pid)
    await again.stop()


def check_that_one_process_has_one_secret() -> None:
    Frontend(SECRET, "127.0.0.1").open()
    try:
        Frontend("f" * 32, "127.0.0.1").open()
        raise AssertionError("a second secret was taken")
    except ConfigError as error:
        assert "start another process" in str(error)


def wait_until_gone(pid: int) -> None:
    started = time.monotonic()
    while (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rsplit(") ")[1][0] != "Z":
        assert time.monotonic() - started < PATIENCE, f"{pid} is still there"
        time.sleep(0.02)


asyncio.run(main())
print("well", flush=True)
sys.stdout.flush()
os._exit(0)
