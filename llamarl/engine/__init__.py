"""Engines, which start and watch executors: spawn, call, stop, close. They know nothing of RL and import no torch.

engine = build_engine("inprocess")                  # or "monarch": one process per rank
trainer = await engine.spawn(make_trainer, name="trainer")
result = await trainer.call("train", samples, timeout_seconds=600)
await engine.close()
"""

from collections.abc import Collection, Mapping
from typing import Any

from llamarl.core.errors import ConfigError
from llamarl.core.protocols import Engine
from llamarl.engine.hosts import HostPool, HostsConfig
from llamarl.engine.identity import read_secret
from llamarl.engine.inprocess import InProcessEngine

ENGINES = ("inprocess", "monarch", "ray")
"""Names that `build_engine` knows."""


def build_engine(
    name: str,
    environment: Mapping[str, str] | None = None,
    passed: Collection[str] = (),
    hosts: HostsConfig | None = None,
    **options: Any,
) -> Engine:
    """The engine called `name`: one thread per executor rank (`inprocess`) or one process (`monarch`, `ray`).

    Args:
        name: one of `ENGINES`.
        environment: variables set in the processes of executors that have their own.
        passed: names of variables that these processes get from this one, beside `environment.PASSED`.
        hosts: the machines for executors, where there are others than this one.
        options: of `hosts.HostPool`.

    Raises:
        ConfigError: no such engine, or one that has no hosts; the hosts' secret is not set.
        MissingDependencyError: the engine's package is not installed; names the extra.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine: no engine {name!r}; choose one of: {', '.join(ENGINES)}")
    has_hosts = hosts is not None and hosts.has_hosts
    if name != "monarch" and has_hosts:
        raise ConfigError(f"placement.hosts: engine={name!r} does not place executors on hosts; set engine='monarch'")
    if name == "inprocess":
        return InProcessEngine()
    if name == "ray":
        from llamarl.engine.ray import RayEngine

        return RayEngine(environment, passed)
    from llamarl.engine.monarch import MonarchEngine

    if hosts is None or not has_hosts:
        return MonarchEngine(environment, passed)
    return MonarchEngine(environment, passed, hosts=HostPool(hosts, read_secret(hosts.secret_env), **options))


__all__ = ["ENGINES", "InProcessEngine", "build_engine"]
