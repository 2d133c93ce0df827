"""worker and launch: a run on several machines."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llamarl.cli.common import print_json, say
from llamarl.cli.options import Output, Overrides, Positional
from llamarl.core.config import Config, Metavar, Words
from llamarl.core.errors import ConfigError
from llamarl.core.paths import FullPath

if TYPE_CHECKING:
    from types import FrameType


class WorkerSettings(Config):
    """Where this host listens, and for which executors."""

    host: Annotated[str, Metavar("ADDRESS")] = "127.0.0.1"
    """Address of this machine by which the run's program reaches it; nothing else is listened on."""
    towards: Annotated[str | None, Metavar("ADDRESS")] = None
    """Listen on the address of the interface that leads there, instead of --host."""
    port: int = Field(default=26600, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    engine_port: int = Field(default=0, ge=0, le=65535)
    """Port of the engine while a run works here; 0 takes a free one each time."""
    secret_env: Annotated[str, Metavar("NAME")] = "LLAMARL_SECRET"
    """Environment variable with the secret that a run must know."""
    executors: Words = ("*",)
    """Names of executors that may live here, with wildcards, such as trainer,judge or generator-*."""
    hosts_folder: FullPath | None = None
    """Shared folder to write the address into, where runs look for it (placement.hosts_folder)."""
    name: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    """Name of the file in that folder; by default that of this machine and process."""
    across_hosts: bool = False
    """Refuse a loopback address, which other hosts could not reach."""


def worker(settings: WorkerSettings, output: Output) -> int:
    """Lend this machine to runs that know its secret, for executors to live on.

    The secret is the value of LLAMARL_SECRET, the same wherever a run's parts live.

    Examples:
        llamarl worker
        llamarl worker --host 10.0.0.2 --executors 'generator-*'
        llamarl worker --host 10.0.0.2 --port 0 --hosts-folder /shared/run/hosts
    """
    from llamarl.engine.hosts import HostConfig, address_towards, write_host
    from llamarl.engine.identity import read_secret
    from llamarl.engine.worker import Worker

    served = Worker(
        settings.host if settings.towards is None else address_towards(settings.towards, 1),
        settings.port,
        read_secret(settings.secret_env),
        engine_port=settings.engine_port,
        tell=lambda text: say(text, sys.stderr),
        is_across_hosts=settings.across_hosts,
    )
    file = None
    _exit_on(signal.SIGTERM)
    try:
        if settings.hosts_folder is not None:
            host = HostConfig(address=served.address, executors=settings.executors)
            name = settings.name or f"{socket.gethostname()}-{os.getpid()}"
            file = write_host(settings.hosts_folder, name, host)
        if output.json:
            print_json({"address": served.address})
        else:
            say(f"{served.address} waits for runs; Ctrl-C ends it")
        sys.stdout.flush()
        served.serve()
    except KeyboardInterrupt:
        say("no run works here any more", sys.stderr)
    finally:
        if file is not None:
            file.unlink(missing_ok=True)
        served.close()
    return 0


def _exit_on(number: signal.Signals) -> None:
    """Makes a signal end the worker as Ctrl-C does: in order, with its file removed."""

    def interrupt(number: int, frame: "FrameType | None") -> None:
        raise KeyboardInterrupt

    signal.signal(number, interrupt)


class LaunchSettings(Config):
    """A recipe, the cluster that runs it, and the size of the job."""

    recipe: Positional[str]
    """TOML file; any setting of it can be overridden by --dotted.name VALUE."""
    slurm: bool = False
    """Print a batch script for Slurm."""
    kubernetes: bool = False
    """Print a Job for Kubernetes."""
    submit: bool = False
    """Submit it too, by sbatch or kubectl."""
    nodes: int = Field(default=2, ge=1)
    """Nodes: the first holds the trainer, the others the generators."""
    run_dir: FullPath | None = None
    """Folder of the run, on a file system that all nodes share (default runs/ and the recipe's name)."""
    name: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Name of the job (default: llamarl- and the recipe's name)."""
    python: Annotated[str | None, Metavar("PATH")] = None
    """Python with llamarl on the nodes (default: this one; in a container, python)."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs of each node."""
    cpus_per_node: int | None = Field(default=None, ge=1)
    """Cores of each node."""
    memory_per_node: Annotated[str | None, Metavar("SIZE")] = None
    """Memory of each node, in the cluster's own units, such as 64G for Slurm or 64Gi for Kubernetes."""
    time: Annotated[str | None, Metavar("LIMIT")] = None
    """Slurm: the time limit, such as 04:00:00; two minutes before it the run saves a checkpoint and ends."""
    partition: str | None = None
    """Slurm: the partition."""
    image: str | None = None
    """Kubernetes: a container image with llamarl; required."""
    claim: str | None = None
    """Kubernetes: a volume claim that many pods may write, with recipe, model and run directory; required."""
    mount: str = "/shared"
    """Kubernetes: where the pods see that volume."""


def launch(settings: LaunchSettings, output: Output, overrides: Overrides) -> int:
    """Print a job that runs a recipe over the nodes of a cluster, or submit it.

    Examples:
        llamarl launch recipe.toml --slurm --nodes 3 --time 04:00:00 > job.sh
        llamarl launch recipe.toml --slurm --nodes 3 --gpus-per-node 1 --num-generators 2 --submit
        llamarl launch /shared/recipe.toml --kubernetes --image registry/llamarl --claim shared --run-dir /shared/run
    """
    from llamarl.cli.jobs_of_clusters import ClusterJob, check_nodes, kubernetes_manifests, slurm_script
    from llamarl.controller.recipe import Recipe

    if settings.slurm == settings.kubernetes:
        raise ConfigError("launch: give one of --slurm and --kubernetes")
    recipe = Recipe.load(settings.recipe, [*overrides, "--engine", "monarch"])
    if recipe.placement.has_hosts or recipe.placement.local:
        raise ConfigError("placement: the job places executors by itself; leave hosts, hosts_folder and local out")
    check_nodes(settings.nodes, recipe.num_generators)
    path = Path(settings.recipe).absolute()
    name = settings.name or re.sub(r"[^a-z0-9]+", "-", f"llamarl-{path.stem}".lower()).strip("-")
    run_dir = settings.run_dir or Path("runs", path.stem).absolute()
    python = settings.python or ("python" if settings.kubernetes else sys.executable)
    job = ClusterJob(name, str(path), str(run_dir), python, settings.nodes, overrides)
    if settings.slurm:
        options = {
            "time": settings.time,
            "partition": settings.partition,
            "gpus-per-node": settings.gpus_per_node or None,
            "cpus-per-task": settings.cpus_per_node,
            "mem": settings.memory_per_node,
        }
        text, command = slurm_script(job, options), ["sbatch", "--parsable"]
    else:
        if settings.image is None or settings.claim is None:
            raise ConfigError("launch: --kubernetes needs --image and --claim")
        if not run_dir.is_relative_to(settings.mount):
            raise ConfigError(
                f"--run-dir {run_dir}: pods share {settings.mount} alone, where --claim is mounted; give a folder there"
            )
        if not path.is_relative_to(settings.mount):
            note = f"pods see what is in the image and under {settings.mount}; {path} must be in one of them, with the"
            say(f"{note} model and files that it names", sys.stderr)
        manifests = kubernetes_manifests(
            job,
            image=settings.image,
            claim=settings.claim,
            mount=settings.mount,
            gpus=settings.gpus_per_node,
            cpus=settings.cpus_per_node,
            memory=settings.memory_per_node,
        )
        text, command = _write_yaml(manifests), ["kubectl", "apply", "-f", "-"]
        say(f"the job reads its secret from a Secret, which you make once:\n  {_make_secret(name)}", sys.stderr)
    answer = _submit(command, text, run_dir.parent) if settings.submit else None
    if output.json:
        print_json({"job": text, **({} if answer is None else {"submitted": answer})})
    else:
        print(text if answer is None else answer, end="" if answer is None else "\n")
    return 0


def _write_yaml(manifests: Sequence[Mapping[str, Any]]) -> str:
    """YAML whose scripts read as scripts, line by line."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc] # PyYAML is untyped
        """A dumper apart, so that PyYAML's shared one keeps its own representers."""

    def represent(dumper: Any, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, represent)
    written: str = yaml.dump_all(manifests, Dumper=Dumper, sort_keys=False)
    return written


def _make_secret(name: str) -> str:
    value = "$(python -c 'import secrets; print(secrets.token_hex(32))')"
    return f"kubectl create secret generic {name} --from-literal=secret={value}"


def _submit(command: Sequence[str], text: str, folder: Path) -> str:
    """Hands a job to the cluster's own command; returns what that says."""
    folder.mkdir(parents=True, exist_ok=True)  # for the log, which the cluster opens before the job begins
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(f"{command[0]}: not on this machine; print the job here and submit it where it is") from None
    if done.returncode:
        raise ConfigError(f"{command[0]} refused the job: {done.stderr.strip()}")
    return done.stdout.strip()
