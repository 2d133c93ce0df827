"""The judges as one executor of the run: an engine builds it where judging is to happen."""

from collections.abc import Mapping, Sequence
from typing import Any

from llamarl.core.group_judge import GroupJudge, JudgesStatus
from llamarl.core.records import Completion, Prompt, Sample
from llamarl.judges.canary import CanaryWatch
from llamarl.judges.config import JudgeConfig, build_panel
from llamarl.judges.panel import JudgePanel


class JudgeExecutor(GroupJudge):
    """Hosts one `JudgePanel` for each task of the run; calls interleave, so slow judges of different groups overlap.

    Example:
        >>> executor = JudgeExecutor([JudgeConfig(function="rewards.py:accuracy")])   # doctest: +SKIP
        >>> handle = await engine.spawn(functools.partial(JudgeExecutor, judges), name="judges")   # doctest: +SKIP
        >>> samples = await handle.call("judge_group", prompt, completions)   # doctest: +SKIP
    """

    def __init__(
        self, judges: Sequence[JudgeConfig] | JudgePanel | Mapping[str, Sequence[JudgeConfig]], **options: Any
    ) -> None:
        """Keeps the description; judges are loaded by `setup`, in the executor's own process.

        Args:
            judges: configs, which pickle; or a ready panel, for an engine in this process; or configs by task.
            options: of `JudgePanel`, with configs.
        """
        self._judges, self._options = judges, options

    def setup(self) -> None:
        """Loads the judges and their models. Raises `ConfigError` for one that is wrong."""
        super().setup()
        judges = self._judges
        by_task = judges if isinstance(judges, Mapping) else {"": judges}
        self.panels = {
            name: each if isinstance(each, JudgePanel) else build_panel(each, **self._options)
            for name, each in by_task.items()
        }
        self._watches = {name: CanaryWatch(panel) for name, panel in self.panels.items()}
        for panel in self.panels.values():
            panel.load()

    def teardown(self) -> None:
        """Ends the judges' worker processes."""
        super().teardown()
        for panel in self.panels.values():
            panel.close()

    async def judge_group(
        self, prompt: Prompt, completions: Sequence[Completion], task: str = ""
    ) -> tuple[Sample, ...]:
        """Returns the judged samples of one prompt, in order, by the judges of its task.

        Where there is one panel only, it judges every task. Raises `JudgeError` if a judge is broken.
        """
        panel = next(iter(self.panels.values())) if len(self.panels) == 1 else self.panels[task]
        return await panel.judge_group(prompt, completions)

    async def check_canaries(self, during_run: bool = False) -> list[str]:
        """Returns what the judges of all tasks got wrong of their canaries (`CanaryWatch.look`)."""
        found = [await watch.look(during_run=during_run) for watch in self._watches.values()]
        return [problem for problems in found for problem in problems]

    async def status(self) -> JudgesStatus:
        """Returns the panels' metrics since the last call, by task, with those of their canaries."""
        panels = self.panels.values()
        return JudgesStatus(
            {name: {**panel.metrics(), **self._watches[name].metrics()} for name, panel in self.panels.items()},
            max(panel.unscored_fraction for panel in panels),
            any(panel.is_degraded for panel in panels),
        )
