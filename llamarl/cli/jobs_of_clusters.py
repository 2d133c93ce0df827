"""Jobs of clusters that run a recipe over several nodes: a Slurm script, or Kubernetes manifests.

Both do the same. Each node runs `llamarl worker`, which writes its address into a folder that all nodes share; the
first node also runs `llamarl train`, or `llamarl resume` where the run began before. The nodes know each other by a
secret that is drawn for the job, in a file that only its owner can read (Slurm), or in a Secret (Kubernetes).
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamarl.core.errors import ConfigError

FIRST_NODE = "trainer,reference,judge"
OTHER_NODES = "generator-*"


@dataclass(frozen=True)
class ClusterJob:
    """A run of a recipe on several nodes."""

    name: str
    recipe: str
    """Path of the recipe, the same on all nodes."""
    run_dir: str
    """Path of the run directory, on a file system that all nodes share."""
    python: str
    """Python with llamarl, on all nodes."""
    nodes: int
    overrides: Sequence[str] = ()
    """Settings that `llamarl train` is given, as on a command line."""

    @property
    def hosts_folder(self) -> str:
        """Folder for addresses, beside the run directory, which must be empty before the run."""
        return f"{self.run_dir}.hosts"

    def train(self) -> str:
        """The shell command that begins the run or goes on with it; `$hosts` is the folder of addresses."""
        # The job has a secret of its own, under a name of its own, whatever the recipe calls its secret.
        placed = ["--placement.secret-env", "LLAMARL_SECRET", "--placement.hosts-folder"]
        settings = [*self.overrides, "--engine", "monarch", *placed]
        begin = shlex.join(["train", self.recipe, "--run-dir", self.run_dir, "--plain", *settings])
        go_on = shlex.join(["resume", self.run_dir, "--plain", *placed])
        record, python = shlex.quote(f"{self.run_dir}/recipe.json"), shlex.quote(self.python)
        return (
            f"if [ -e {record} ]; then\n"
            f'  {python} -m llamarl {go_on} "$hosts" &\n'
            "else\n"
            f'  {python} -m llamarl {begin} "$hosts" &\n'
            "fi"
        )


def check_nodes(nodes: int, num_generators: int) -> None:
    """Raises `ConfigError` if a node would have nothing to do."""
    if num_generators < nodes - 1:
        raise ConfigError(
            f"nodes={nodes}: the first holds the trainer, and num_generators={num_generators} leaves "
            f"{nodes - 1 - num_generators} of the others without a generator; set --num-generators {nodes - 1}, or "
            "fewer nodes"
        )


def slurm_script(job: ClusterJob, options: Mapping[str, str | int | None]) -> str:
    """The batch script for `sbatch`.

    Args:
        job: what to run.
        options: of `sbatch`, by long name; None leaves one out.
    """
    directives = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "output": f"{job.run_dir}.slurm-%j.log",
        "open-mode": "append",
        **options,
    }
    head = "\n".join(f"#SBATCH --{name}={value}" for name, value in directives.items() if value is not None)
    python, hosts = shlex.quote(job.python), shlex.quote(job.hosts_folder)
    first = "*" if job.nodes == 1 else FIRST_NODE
    return f"""#!/bin/bash
{head}
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
# Written by llamarl launch. Submitted again, or requeued, it goes on from the newest checkpoint.
set -euo pipefail
umask 077 # the secret is in a file
export python={python} first={shlex.quote(first)} others={shlex.quote(OTHER_NODES)}
export hosts={hosts}/$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}
rm -rf {hosts}/"$SLURM_JOB_ID"-* # of attempts that were killed
mkdir -p "$hosts"
"$python" -c 'import secrets; print(secrets.token_hex(32))' > "$hosts/secret"

# A worker on each node, at the address of the interface that leads to the node which starts them.
srun --mpi=none --kill-on-bad-exit=0 bash -c '
  LLAMARL_SECRET=$(cat "$hosts/secret") && export LLAMARL_SECRET
  if [ "$SLURM_NODEID" = 0 ]; then executors=$first; else executors=$others; fi
  exec "$python" -m llamarl worker --towards "$SLURM_LAUNCH_NODE_IPADDR" --port 0 {across(job)}\\
    --hosts-folder "$hosts" --name "$SLURM_NODEID" --executors "$executors"
' &
workers=$!

LLAMARL_SECRET=$(cat "$hosts/secret") && export LLAMARL_SECRET
{job.train()}
run=$!
trap 'kill -TERM $run 2> /dev/null || true' TERM # the time is up, or scancel: the run saves a checkpoint and ends
status=0
wait $run || status=$?
while kill -0 $run 2> /dev/null; do # a signal ended the wait, not the run
  status=0
  wait $run || status=$?
done
kill $workers 2> /dev/null || true
wait $workers || true
rm -rf "$hosts"
exit $status
"""


def across(job: ClusterJob) -> str:
    """The option that refuses loopback addresses, where there are other nodes."""
    return "--across-hosts " if job.nodes > 1 else ""


def kubernetes_manifests(
    job: ClusterJob, *, image: str, claim: str, mount: str, gpus: int, cpus: int | None, memory: str | None
) -> list[dict[str, Any]]:
    """An Indexed Job: pod 0 holds the trainer and starts the run.

    Args:
        job: what to run.
        image: of a container with llamarl.
        claim: name of a volume claim that many pods may write, for recipe, model and run directory.
        mount: where the pods see it.
        gpus: of each pod.
        cpus: of each pod.
        memory: of each pod, such as `64Gi`.
    """
    resources = {"cpu": str(cpus) if cpus else None, "memory": memory, "nvidia.com/gpu": str(gpus) if gpus else None}
    limits = {name: value for name, value in resources.items() if value}
    secret = {"secretKeyRef": {"name": job.name, "key": "secret"}}
    container = {
        "name": "llamarl",
        "image": image,
        "command": ["bash", "-c", _pod_script(job)],
        "env": [
            {"name": "LLAMARL_SECRET", "valueFrom": secret},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "volumeMounts": [{"name": "shared", "mountPath": mount}],
        **({"resources": {"limits": limits}} if limits else {}),
    }
    pod = {
        "restartPolicy": "OnFailure",
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}],
    }
    spec = {
        "completions": job.nodes,
        "parallelism": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 6,
        "template": {"spec": pod},
    }
    return [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job.name}, "spec": spec}]


def _pod_script(job: ClusterJob) -> str:
    python, hosts = shlex.quote(job.python), shlex.quote(job.hosts_folder)
    first = "*" if job.nodes == 1 else FIRST_NODE
    return f"""set -euo pipefail
export hosts={hosts}
mkdir -p "$hosts"
executors={shlex.quote(OTHER_NODES)}
if [ "$JOB_COMPLETION_INDEX" = 0 ]; then
  executors={shlex.quote(first)}
  rm -f "$hosts/over" # of an earlier attempt
fi
{python} -m llamarl worker --host "$POD_IP" {across(job)}--hosts-folder "$hosts" --name "$JOB_COMPLETION_INDEX" \
  --executors "$executors" &
worker=$!
if [ "$JOB_COMPLETION_INDEX" != 0 ]; then # until the run is over
  while [ ! -e "$hosts/over" ]; do
    kill -0 $worker 2> /dev/null || exit 1 # a pod without its worker is of no use: Kubernetes starts it again
    sleep 5
  done
  kill $worker
  exit 0
fi
{job.train()}
run=$!
trap 'kill -TERM $run' TERM
status=0
wait $run || status=$?
while kill -0 $run 2> /dev/null; do status=0; wait $run || status=$?; done
if [ $status = 0 ]; then touch "$hosts/over"; fi
kill $worker || true
exit $status
"""
