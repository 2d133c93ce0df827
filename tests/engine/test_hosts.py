"""Hosts that are lent to runs, without an engine: what a worker starts is scripted here."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest

import llamarl
from llamarl.core.errors import ConfigError, ExecutorLostError
from llamarl.engine.hosts import HostConfig, HostPool, HostsConfig, read_hosts, write_host
from llamarl.engine.identity import Identity
from llamarl.engine.wire import Wire, join_address, split_address
from llamarl.engine.worker import Worker

pytest.importorskip("cryptography")
SECRET, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
PATIENCE = 60.0
"""Seconds: deadlines against hanging."""


class ScriptedServer:
    """An engine server that starts nothing and notes what it is told."""

    def __init__(self, host: str, port: int, identity: Identity) -> None:
        self.address = f"scripted://{host}"
        self.killed: list[int] = []
        self.ended = threading.Event()

    def kill(self, pids):
        self.killed += pids

    def wait(self):
        self.ended.wait()

    def stop(self):
        self.ended.set()


class LentHost:
    """A worker of this process, with what it started and said."""

    def __init__(self, secret: str = SECRET) -> None:
        self.servers: list[ScriptedServer] = []
        self.said: list[str] = []
        self.worker = Worker("127.0.0.1", 0, secret, start=self.start, tell=self.said.append)
        self.address = self.worker.address
        threading.Thread(target=self.worker.serve, daemon=True).start()

    def start(self, *arguments):
        self.servers.append(ScriptedServer(*arguments))
        return self.servers[-1]


@pytest.fixture
def lend():
    with contextlib.ExitStack() as stack:

        def build(secret: str = SECRET) -> LentHost:
            host = LentHost(secret)
            stack.callback(host.worker.close)
            return host

        yield build


def pool_of(*hosts, secret: str = SECRET, told: list[str] | None = None, **settings) -> HostPool:
    names = {"paths", "executors", "threads", "silence_seconds"} & settings.keys()
    options = {name: settings.pop(name) for name in names}
    config = HostsConfig(hosts=[getattr(host, "address", host) for host in hosts], **settings)
    return HostPool(config, secret, tell=(told if told is not None else []).append, **options)


def run(scenario, *pools: HostPool):
    async def main():
        try:
            async with asyncio.timeout(PATIENCE):
                return await scenario()
        finally:
            for pool in pools:
                pool.close()

    return asyncio.run(main())


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# placing


def test_executors_go_to_hosts_that_may_hold_them_and_spread(lend):
    first, second = lend(), lend()
    hosts = [
        HostConfig(address=first.address, executors=["trainer", "generator-*"]),
        HostConfig(address=second.address),
    ]
    pool = HostPool(HostsConfig(hosts=hosts, local=["judge"]), SECRET)

    async def scenario():
        assert await pool.find("judge") is None
        names = ("trainer", "generator-0", "reference")
        leases = [await pool.find(name) for name in names]
        assert [lease.config.address for lease in leases] == [first.address, second.address, second.address]
        together = await asyncio.gather(*(pool.find(f"generator-{i}") for i in (1, 2)))
        assert [lease.config.address for lease in together] == [first.address, first.address]  # 1 + 2 and 2 + 0

    run(scenario, pool)
    assert (len(first.servers), len(second.servers)) == (1, 1)


def test_without_hosts_everything_is_here():
    pool = pool_of()
    assert asyncio.run(pool.find("trainer")) is None


def test_cores_of_a_host_are_shared_by_those_who_compute_there(lend):
    hosts = lend(), lend()
    names = ["trainer", *(f"generator-{i}" for i in range(4))]
    pool = pool_of(*hosts, executors=names, local=["trainer"])
    forced = pool_of(*hosts, executors=names, threads=3)

    async def scenario():
        lease = await pool.find("generator-0")
        lease.cores = 9
        assert pool.environment(lease) == {"OMP_NUM_THREADS": "4"}  # 9 cores, 4 generators on 2 hosts
        assert forced.environment(lease) == {"OMP_NUM_THREADS": "3"}

    run(scenario, pool, forced)


def test_an_executor_that_no_host_takes_is_refused_beforehand():
    config = HostsConfig(hosts=[{"address": "10.0.0.2:1", "executors": ["generator-*"]}], local=["judge"])
    config.check_all_placed(["judge", "generator-3"])
    with pytest.raises(ConfigError, match="no host takes the executor 'trainer'"):
        config.check_all_placed(["trainer"])


def test_addresses_in_a_folder_count_as_they_come(lend, tmp_path):
    host = lend()
    config = HostsConfig(hosts_folder=tmp_path)
    pool = HostPool(config, SECRET)

    async def scenario():
        finding, asking = asyncio.create_task(pool.find("generator-0")), asyncio.create_task(pool.own_address())
        await asyncio.sleep(0)
        file = write_host(tmp_path, "node-1", HostConfig(address=host.address, executors=["generator-*"]))
        assert (await finding).config.address == host.address
        assert await asking == "127.0.0.1"  # the interface that leads there
        file.unlink()

    run(scenario, pool)
    (tmp_path / "notes.json").write_text("hello")
    with pytest.raises(ConfigError, match=r"notes\.json: not written by llamarl worker"):
        read_hosts(tmp_path)


# who is let in


def test_another_secret_is_refused_by_name_of_the_variable(lend):
    host = lend()
    pool = pool_of(host, secret=OTHER, secret_env="MY_SECRET")
    with pytest.raises(
        ConfigError, match=r"does not know this run.s secret .*; give its worker the same value of MY_SECRET"
    ):
        run(lambda: pool.find("trainer"), pool)
    assert not host.servers
    wait_for(lambda: any("refused 127.0.0.1" in text for text in host.said))


def test_a_host_with_the_secret_is_taken_before_all_is_lost(lend):
    told = []
    good, bad = lend(), lend(OTHER)
    pool = pool_of(bad, good, told=told)
    assert run(lambda: pool.find("trainer"), pool).config.address == good.address
    assert any("does not know this run's secret" in text for text in told)


def test_a_plain_connection_gets_nothing(lend):
    host = lend()
    with socket.create_connection(split_address(host.address, ""), timeout=PATIENCE) as stranger:
        stranger.sendall(b'{"run": "mine", "version": "x", "paths": []}\n')
        with contextlib.suppress(ConnectionError):
            assert b"engine" not in stranger.recv(1000)
    assert not host.servers


def test_one_run_at_a_time(lend):
    host = lend()
    first, second = pool_of(host), pool_of(host, host_seconds=0.1)

    async def scenario():
        await first.find("trainer")
        with pytest.raises(ExecutorLostError, match=r"no host for it within 0\.1 s: .*: it works for another run"):
            await second.find("trainer")
        first.close()
        wait_for(host.servers[0].ended.is_set)
        patient = pool_of(host)
        await patient.find("trainer")  # the host is free for the next
        patient.close()

    run(scenario, first, second)


def test_another_version_of_the_program_is_refused(lend):
    host = lend()
    with (
        Identity(SECRET, "localhost") as identity,
        socket.create_connection(split_address(host.address, "")) as plain,
        identity.client_context().wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        wire = Wire(connection)
        wire.send({"run": "mine", "version": "0.0.1"}, PATIENCE)
        assert wire.receive(PATIENCE)["error"].startswith(f"it has llamarl {llamarl.__version__} and the run 0.0.1")


def test_a_host_without_the_runs_files_is_refused(lend, tmp_path):
    host = lend()
    missing = str(tmp_path / "run")
    pool = pool_of(host, paths={"trainer": [missing]})
    with pytest.raises(ConfigError, match=f"it has no {missing}; put that on a file system that all hosts share"):
        run(lambda: pool.find("trainer"), pool)


def test_addresses_that_stand_for_all_or_that_others_cannot_reach_are_refused():
    for host in ("0.0.0.0", "::", ""):
        with pytest.raises(ConfigError, match="state one address of this machine"):
            Worker(host, 0, SECRET)
    with pytest.raises(ConfigError, match="only this machine reaches it"):
        Worker("127.0.0.1", 0, SECRET, is_across_hosts=True)
    with pytest.raises(ConfigError, match=r"cannot listen on 203\.0\.113\.7:0"):
        Worker("203.0.113.7", 0, SECRET)


# loss and return


def test_a_worker_that_dies_is_a_loss_and_its_executors_go_elsewhere(lend):
    told = []
    first, second = lend(), lend()
    pool = pool_of(first, second, told=told)

    async def scenario():
        lease = await pool.find("generator-0")
        first.worker.close()
        assert "hung up" in await lease.lost
        assert (await pool.find("generator-0")).config.address == second.address

    run(scenario, pool)
    assert any(text.startswith(f"host {first.address} is lost") for text in told)


def test_an_engine_server_that_dies_is_a_loss_and_the_host_is_taken_again(lend):
    host = lend()
    pool = pool_of(host)

    async def scenario():
        lease = await pool.find("generator-0")
        host.servers[0].stop()
        await lease.lost
        again = await pool.find("generator-0")
        assert not again.is_lost
        assert len(host.servers) == 2

    run(scenario, pool)


def test_silence_is_a_loss():
    """A host that holds the connection and says nothing any more."""
    with Identity(SECRET, "127.0.0.1") as identity, socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def answer_and_fall_silent() -> None:
            connection, _ = listener.accept()
            with identity.server_context().wrap_socket(connection, server_side=True) as trusted:
                wire = Wire(trusted)
                wire.receive(PATIENCE)
                wire.send({"engine": "x", "python": "x", "cores": 1, "missing": []}, PATIENCE)
                done.wait()

        thread = threading.Thread(target=answer_and_fall_silent)
        thread.start()
        pool = pool_of(join_address(*listener.getsockname()), silence_seconds=1.0)

        async def scenario():
            return await (await pool.find("trainer")).lost

        try:
            assert run(scenario, pool).startswith("no sign of life for ")
        finally:
            done.set()
            thread.join()


def test_a_run_that_goes_ends_what_it_started(lend):
    host = lend()
    pool = pool_of(host)

    async def scenario():
        lease = await pool.find("generator-0")
        lease.kill([7, 8])
        while host.servers[0].killed != [7, 8]:
            await asyncio.sleep(0.02)

    run(scenario, pool)
    wait_for(host.servers[0].ended.is_set)


# settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hosts": ["10.0.0.2"]}, "'10.0.0.2' is no address; write it as host:port"),
        ({"hosts": ["10.0.0.2:99999"]}, "is no address"),
        ({"hosts": ["10.0.0.2:1", "10.0.0.2:1"]}, "repeat; name each host once"),
        ({"hosts": ["10.0.0.2:1", "127.0.0.1:1"]}, "127.0.0.1 is a loopback address"),
        ({"hosts": ["10.0.0.2:1"], "address": "localhost"}, "localhost is a loopback address"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HostsConfig.parse(settings)


def test_addresses_with_colons():
    assert split_address("[::1]:80", "") == ("::1", 80)
    assert join_address("::1", 80) == "[::1]:80"
    assert split_address(join_address("node-1", 5), "") == ("node-1", 5)


def test_a_port_on_which_something_else_listens_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                with contextlib.suppress(OSError):
                    connection.recv(10_000)

        thread = threading.Thread(target=serve)
        thread.start()
        pool = pool_of(join_address(*listener.getsockname()))
        with pytest.raises(ConfigError, match="no llamarl worker listens there"):
            run(lambda: pool.find("trainer"), pool)
        thread.join()
