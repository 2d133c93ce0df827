"""What a recipe says of a judge, and the judge or panel built from it."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from llamarl.core.config import Config
from llamarl.core.errors import ConfigError
from llamarl.core.protocols import Judge
from llamarl.judges.panel import JudgePanel
from llamarl.judges.resolve import load_judge
from llamarl.judges.worker import ProcessJudge


class JudgeConfig(Config):
    """One judge of a task."""

    function: str
    """`module:function`, `path/to/file.py:function`, or a shipped task judge's name, such as `format`."""
    name: str | None = None
    """In verdicts and metrics; default: the function's name."""
    weight: float = Field(default=1.0, ge=0.0)
    """In the weighted mean; a judge of weight 0 only watches."""
    timeout_seconds: float = Field(default=60.0, gt=0.0)
    """With threads for a whole group, with processes for one completion."""
    isolation: Literal["thread", "process"] = "thread"
    """`process` for functions that may hang or crash: they are killed at the deadline."""
    workers: int = Field(default=2, ge=1)
    """Processes, where isolation is `process`."""


def build_judge(config: JudgeConfig) -> Judge:
    """The judge. Raises `ConfigError` if its function cannot be loaded or is no judge."""
    if config.isolation == "process":
        return ProcessJudge(
            config.function, num_workers=config.workers, timeout_seconds=config.timeout_seconds, name=config.name
        )
    return load_judge(config.function, config.name)


def build_panel(configs: Sequence[JudgeConfig], **options: Any) -> JudgePanel:
    """The panel of these judges with their weights and deadlines; `options` go to `JudgePanel`."""
    judges = [build_judge(config) for config in configs]
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise ConfigError(f"judges: {names}; give each a different 'name'")
    pairs = list(zip(names, configs, strict=True))
    weights = {name: config.weight for name, config in pairs}
    timeouts = {name: None if config.isolation == "process" else config.timeout_seconds for name, config in pairs}
    return JudgePanel(judges, weights, timeout_seconds=timeouts, **options)
