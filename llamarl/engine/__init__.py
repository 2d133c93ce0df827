"""Engines, which start and watch executors: spawn, call, stop, close. They know nothing of RL and import no torch.

engine = build_engine("inprocess")                  # or "monarch": one process per rank
trainer = await engine.spawn(make_trainer, name="trainer")
result = await trainer.call("train", samples, timeout_seconds=600)
await engine.close()
"""

from collections.abc import Collection, Mapping

from llamarl.core.errors import ConfigError
from llamarl.core.protocols import Engine
from llamarl.engine.inprocess import InProcessEngine

ENGINES = ("inprocess", "monarch")
"""Names that `build_engine` knows."""


def build_engine(name: str, environment: Mapping[str, str] | None = None, passed: Collection[str] = ()) -> Engine:
    """The engine called `name`: one thread per executor rank (`inprocess`) or one process (`monarch`).

    Args:
        name: one of `ENGINES`.
        environment: variables set in the processes of executors that have their own.
        passed: names of variables that these processes get from this one, beside the common ones (`environment.PASSED`).

    Raises:
        ConfigError: no such engine.
        MissingDependencyError: the engine's package is not installed; names the extra.
    """
    if name == "inprocess":
        return InProcessEngine()
    if name == "monarch":
        from llamarl.engine.monarch import MonarchEngine

        return MonarchEngine(environment, passed)
    raise ConfigError(f"engine: no engine {name!r}; choose one of: {', '.join(ENGINES)}")


__all__ = ["ENGINES", "InProcessEngine", "build_engine"]
