"""A run over three hosts, which are network namespaces: one of them is cut off in the middle."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamarl.controller.ledger import Ledger
from llamarl.recipes import recipe_path
from llamarl.report.metrics import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("monarch") is None, reason="needs the extra hosts"),
    pytest.mark.skipif(importlib.util.find_spec("cryptography") is None, reason="needs the extra hosts"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces need iproute2"),
]

PATIENCE = 800.0
"""Seconds: a deadline against hanging."""
FLAGS = [
    *("--engine", "monarch", "--placement.local", '["judge"]', "--schedule.steps", "12"),
    *("--schedule.prompts-per-step", "4", "--schedule.samples-per-prompt", "4", "--schedule.checkpoint-every", "2"),
    *("--evaluation.num-prompts", "0", "--sampling.max-tokens", "24", "--generator.slots", "16"),
    *("--data.limit", "48", "--data.epochs", "1"),
]


class Hosts:
    """Namespaces c, with the run's program, and a and b, with a worker each, on one bridge. All gone after `close`."""

    def __init__(self, folder: Path) -> None:
        self._prefix, self._folder = f"llamarl{os.getpid()}", folder
        self._environment = {**os.environ, "LLAMARL_SECRET": "0123456789abcdef" * 2, "PYTHONPATH": os.getcwd()}
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for host in "cab":
                self._ip("netns", "add", self._prefix + host)
                self.inside(host, "ip", "link", "set", "lo", "up")
            self.inside("c", "ip", "link", "add", "br0", "type", "bridge")
            self.inside("c", "ip", "link", "set", "br0", "up")
            self.inside("c", "ip", "addr", "add", "10.77.1.1/24", "dev", "br0")
            for number, host in ((2, "a"), (3, "b")):
                ends = (f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", self._prefix + host)
                self.inside("c", "ip", "link", "add", *ends)
                self.inside("c", "ip", "link", "set", f"to-{host}", "master", "br0", "up")
                self.inside(host, "ip", "addr", "add", f"10.77.1.{number}/24", "dev", "eth0")
                self.inside(host, "ip", "link", "set", "eth0", "up")
        except subprocess.CalledProcessError as error:
            self.close()
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")

    def inside(self, host: str, *command: str) -> None:
        self._ip("netns", "exec", self._prefix + host, *command)

    def start(self, host: str, *command: str) -> subprocess.Popen[bytes]:
        arguments = ["ip", "netns", "exec", self._prefix + host, sys.executable, "-m", "llamarl", *command]
        with (self._folder / f"{host}.log").open("ab") as log:
            self._processes.append(subprocess.Popen(arguments, stdout=log, stderr=log, env=self._environment))
        return self._processes[-1]

    def cut(self, host: str) -> None:
        self.inside("c", "ip", "link", "set", f"to-{host}", "down")

    def mend(self, host: str) -> None:
        self.inside("c", "ip", "link", "set", f"to-{host}", "up")

    def close(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
        for host in "cab":
            subprocess.run(["ip", "netns", "del", self._prefix + host], capture_output=True, check=False)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def logs(self) -> str:
        return "\n".join(f"--- {path.stem}\n{path.read_text()}" for path in sorted(self._folder.glob("*.log")))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


def read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


@pytest.mark.parametrize("replacement", ["on another host", "on the host that returns"])
def test_a_host_is_cut_off_and_nothing_is_lost_or_trained_twice(hosts: Hosts, tmp_path: Path, replacement: str) -> None:
    run_dir, is_returning = tmp_path / "run", "returns" in replacement
    able = ["trainer"] if is_returning else ["trainer", "generator-0"]
    placed = [
        {"address": "10.77.1.2:26600", "executors": able},
        {"address": "10.77.1.3:26600", "executors": ["generator-*"]},
    ]
    for host, address in (("a", "10.77.1.2"), ("b", "10.77.1.3")):
        hosts.start(host, "worker", "--host", address, "--across-hosts")
    tables = [f"{{address = {json.dumps(each['address'])}, executors = {each['executors']}}}" for each in placed]
    command = ["train", str(recipe_path("demo")), "--plain", "--run-dir", str(run_dir), *FLAGS]
    child = hosts.start("c", *command, "--placement.hosts", f"[{', '.join(tables)}]")
    deadline = time.monotonic() + PATIENCE

    def wait_until(condition: Callable[[], bool]) -> None:
        while not condition():
            assert child.poll() is None and time.monotonic() < deadline, hosts.logs() + read(run_dir / "messages.log")
            time.sleep(0.05)

    wait_until(lambda: read(run_dir / "metrics.jsonl").count("\n") >= 2)
    where = json.loads((run_dir / "hosts.json").read_text())
    assert (where["trainer"], where["generator-0"]) == ("10.77.1.2", "10.77.1.3")  # the victim is what we take it for
    hosts.cut("b")
    wait_until(lambda: "is lost" in read(run_dir / "messages.log"))
    if is_returning:
        hosts.mend("b")
    assert child.wait(timeout=PATIENCE) == 0, hosts.logs() + read(run_dir / "messages.log")
    check(run_dir, "10.77.1.3" if is_returning else "10.77.1.2")


def check(run_dir: Path, generator_host: str) -> None:
    with Ledger(run_dir / "ledger.sqlite") as ledger:
        assert ledger.counts() == {"issued": 48, "finished": 0, "trained": 48, "dropped": 0}
    steps = [record["step"] for record in read_metrics(run_dir / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 12
    messages = (run_dir / "messages.log").read_text()
    silence = re.search(r"host 10\.77\.1\.3:26600 is lost: no sign of life for ([\d.]+) s", messages)
    assert silence and float(silence[1]) < 60  # 4.5 s on a machine that keeps up (`hosts.SILENCE_SECONDS`)
    assert "generator-0 lost (executor 'generator-0' rank 0 is lost: host 10.77.1.3:26600 is lost" in messages
    assert "trainer lost" not in messages
    where = json.loads((run_dir / "hosts.json").read_text())
    assert (where["trainer"], where["generator-0"]) == ("10.77.1.2", generator_host)
