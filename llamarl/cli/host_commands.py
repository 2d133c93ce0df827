"""worker: the command that lends this machine to runs."""

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from llamarl.cli.common import print_json, say
from llamarl.cli.options import Output
from llamarl.core.config import Config, Metavar, Words
from llamarl.core.paths import FullPath

if TYPE_CHECKING:
    from types import FrameType


class WorkerSettings(Config):
    """Where this host listens, and for which executors."""

    host: Annotated[str, Metavar("ADDRESS")] = "127.0.0.1"
    """Address of this machine by which the run's program reaches it; nothing else is listened on."""
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
    from llamarl.engine.hosts import HostConfig, write_host
    from llamarl.engine.identity import read_secret
    from llamarl.engine.worker import Worker

    served = Worker(
        settings.host,
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
