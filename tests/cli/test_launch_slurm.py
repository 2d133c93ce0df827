"""`llamarl launch --slurm` on a real Slurm of two virtual nodes, in a network namespace of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamarl.controller.ledger import Ledger
from llamarl.recipes import recipe_path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.geteuid() != 0, reason="a Slurm of one's own needs root"),
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"needs {tool} (slurmctld slurmd slurm-client munge)")
        for tool in ("ip", "nsenter", "munged", "slurmctld", "slurmd", "sbatch")
    ),
]

PATIENCE = 600.0
"""Seconds: a deadline against hanging."""
ADDRESS = "10.77.2.1"
FLAGS = [
    *("--schedule.steps", "10", "--schedule.prompts-per-step", "4", "--schedule.samples-per-prompt", "4"),
    *("--schedule.checkpoint-every", "2", "--evaluation.num-prompts", "0", "--sampling.max-tokens", "24"),
    *("--generator.slots", "16", "--data.limit", "40", "--data.epochs", "1"),
]


class Slurm:
    """Controller and two node daemons on an address that only this namespace has. All gone after `close`."""

    def __init__(self, folder: Path) -> None:
        self._namespace, self._folder = f"llamarlslurm{os.getpid()}", folder
        self._environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": os.getcwd()}
        # nsenter and not `ip netns exec`, which mounts a /sys of its own: slurmd needs the one with cgroups.
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._ip("netns", "add", self._namespace)
            self.run("ip", "link", "set", "lo", "up")
            self.run("ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo")
        except subprocess.CalledProcessError as error:
            self.close()
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        (folder / "slurm.conf").write_text(self._configuration())
        files = {"socket": "munge.sock", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        named = [f"--{option}={folder / file}" for option, file in files.items()]
        self._start("munged", "--foreground", "--force", f"--key-file={folder / 'key'}", *named)
        self.wait_until((folder / "munge.sock").exists)
        self._start("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-N", node, "-c")
        self.wait_until(lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2")

    def _configuration(self) -> str:
        name, folder = socket.gethostname(), self._folder
        nodes = "\n".join(
            f"NodeName=n{i} NodeHostname={name} NodeAddr={ADDRESS} Port={27900 + i} CPUs=2 RealMemory=4000"
            for i in (1, 2)
        )
        return f"""ClusterName=llamarl
SlurmctldHost={name}({ADDRESS})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d-%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d-%n.log
SlurmctldPort=27817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=5
SlurmdTimeout=0
SlurmdParameters=config_overrides
{nodes}
PartitionName=cpu Nodes=n1,n2 Default=YES MaxTime=01:00:00 State=UP
"""

    def run(self, *command: str, text: str | None = None) -> str:
        arguments = ["nsenter", f"--net=/run/netns/{self._namespace}", *command]
        done = subprocess.run(
            arguments, input=text, capture_output=True, text=True, check=True, env=self._environment, timeout=PATIENCE
        )
        return done.stdout

    def state(self, job: str) -> str:
        fields = dict(word.partition("=")[::2] for word in self.run("scontrol", "show", "job", job).split())
        return fields["JobState"]

    def wait_until(self, condition: Callable[[], bool], say: Callable[[], str] = str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, say()
            time.sleep(0.1)

    def close(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        subprocess.run(["ip", "netns", "del", self._namespace], capture_output=True, check=False)

    def _start(self, *command: str) -> None:
        arguments = ["nsenter", f"--net=/run/netns/{self._namespace}", *command]
        with (self._folder / "daemons.log").open("ab") as log:
            self._daemons.append(subprocess.Popen(arguments, stdout=log, stderr=log, env=self._environment))

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    made = Slurm(folder)
    yield made
    made.close()


def test_a_job_of_two_nodes_is_requeued_in_the_middle_and_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    launch = [sys.executable, "-m", "llamarl", "launch", str(recipe_path("demo")), "--slurm", "--run-dir", str(run_dir)]
    script = slurm.run(*launch, "--nodes", "2", "--time", "00:30:00", *FLAGS)
    slurm.run("sbatch", "--test-only", text=script)
    with pytest.raises(subprocess.CalledProcessError):  # more nodes than there are
        slurm.run("sbatch", "--test-only", text=script.replace("--nodes=2", "--nodes=3"))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        slurm.run(*launch, "--partition", "nowhere", "--submit", *FLAGS)
    assert "error: sbatch refused the job" in refused.value.stderr

    job = json.loads(slurm.run(*launch, "--nodes", "2", "--time", "00:30:00", "--submit", "--json", *FLAGS))[
        "submitted"
    ]

    def say() -> str:
        logs = sorted(tmp_path.glob("*.log")) + sorted((tmp_path / "slurm").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def steps() -> int:
        file = run_dir / "metrics.jsonl"
        return file.read_text().count("\n") if file.is_file() else 0

    slurm.wait_until(lambda: steps() >= 3, say)
    assert slurm.state(job) == "RUNNING"
    where = json.loads((run_dir / "hosts.json").read_text())
    assert where == {"trainer": ADDRESS, "judge": ADDRESS, "generator-0": ADDRESS}
    slurm.run("scontrol", "requeue", job)
    slurm.wait_until(lambda: slurm.state(job) != "RUNNING", say)
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    slurm.wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED", "CANCELLED"), say)
    assert slurm.state(job) == "COMPLETED", say()
    with Ledger(run_dir / "ledger.sqlite") as ledger:
        assert ledger.counts() == {"issued": 40, "finished": 0, "trained": 40, "dropped": 0}
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 10
    assert not list((tmp_path / "run.hosts").glob("*/secret"))


def test_a_cancelled_job_that_is_submitted_again_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    launch = [sys.executable, "-m", "llamarl", "launch", str(recipe_path("demo")), "--slurm", "--run-dir", str(run_dir)]
    submit = [*launch, "--nodes", "2", "--submit", "--json", *FLAGS]
    job = json.loads(slurm.run(*submit))["submitted"]
    slurm.wait_until(lambda: (run_dir / "checkpoints").is_dir() and any((run_dir / "checkpoints").iterdir()))
    slurm.run("scancel", job)
    slurm.wait_until(lambda: slurm.state(job) == "CANCELLED")
    slurm.wait_until(lambda: slurm.run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2")
    again = json.loads(slurm.run(*submit))["submitted"]
    slurm.wait_until(lambda: slurm.state(again) in ("COMPLETED", "FAILED"))
    assert slurm.state(again) == "COMPLETED", "".join(log.read_text() for log in tmp_path.glob("*.log"))
    with Ledger(run_dir / "ledger.sqlite") as ledger:
        assert ledger.counts() == {"issued": 40, "finished": 0, "trained": 40, "dropped": 0}
