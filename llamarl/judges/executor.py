"""The judges as one executor of the run: an engine builds it where judging is to happen."""

from collections.abc import Sequence
from typing import Any

from llamarl.core.protocols import Executor
from llamarl.core.records import Completion, Prompt, Sample
from llamarl.judges.config import JudgeConfig, build_panel
from llamarl.judges.panel import JudgePanel


class JudgeExecutor(Executor):
    """Hosts one `JudgePanel`; calls interleave, so slow judges of different groups overlap.

    Example:
        >>> executor = JudgeExecutor([JudgeConfig(function="rewards.py:accuracy")])   # doctest: +SKIP
        >>> handle = await engine.spawn(functools.partial(JudgeExecutor, judges), name="judges")   # doctest: +SKIP
        >>> samples = await handle.call("judge_group", prompt, completions)   # doctest: +SKIP
    """

    def __init__(self, judges: Sequence[JudgeConfig] | JudgePanel, **options: Any) -> None:
        """Keeps the description; judges are loaded by `setup`, in the executor's own process.

        Args:
            judges: configs, which pickle; or a ready panel, for an engine in this process.
            options: of `JudgePanel`, with configs.
        """
        self._judges, self._options = judges, options

    def setup(self) -> None:
        """Loads the judges. Raises `ConfigError` for one that is wrong."""
        judges = self._judges
        self.panel = judges if isinstance(judges, JudgePanel) else build_panel(judges, **self._options)

    def teardown(self) -> None:
        """Ends the judges' worker processes."""
        self.panel.close()

    async def judge_group(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Sample, ...]:
        """Judged samples of one prompt, in order. Raises `JudgeError` where a judge is broken."""
        return await self.panel.judge_group(prompt, completions)

    async def status(self) -> dict[str, float | None]:
        """The panel's metrics since the last call; `judge/is_degraded` is 1 while too many samples go unscored."""
        return {**self.panel.metrics(), "judge/is_degraded": float(self.panel.is_degraded)}
